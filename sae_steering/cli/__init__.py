"""Verbs that join `probe`: a small module each."""
