"""Readers of what other tools leave behind: OpenAI and vLLM logprobs, TRL and prime-rl dumps."""

from .files import FORMATS, import_file

__all__ = ["FORMATS", "import_file"]
