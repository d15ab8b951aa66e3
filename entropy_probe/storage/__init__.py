"""The run directory: what a capture leaves on disk, and how it is read back."""
