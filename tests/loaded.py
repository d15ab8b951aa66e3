"""Loads, once for many processes, all that a capture of a tiny model needs."""

from tiny import tiny_model, tiny_tokenizer

import entropy_probe.capturing  # noqa: F401

tiny_model()
tiny_tokenizer()
