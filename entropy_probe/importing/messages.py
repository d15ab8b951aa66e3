"""Chat messages as readable text, and as plain JSON values for a chat template."""

from collections.abc import Mapping, Sequence
from typing import Any


def written_out(messages: Sequence[Any]) -> str:
    """Give messages as text for a reader; a single message gives its content alone."""
    texts = [(_role(m), content_of(m)) for m in messages]
    if len(texts) == 1:
        return texts[0][1]
    return "\n".join(f"{role}: {text}" for role, text in texts)


def content_of(message: object) -> str:
    """Give the text of a message: its content, or the text among its content's parts."""
    content = message.get("content") if isinstance(message, Mapping) else message
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))


def plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give messages without the keys that tables fill with nulls, contents as text."""
    kept = ({k: v for k, v in m.items() if v is not None} for m in messages)
    return [m | {"content": content_of(m)} for m in kept]


def _role(message: object) -> str:
    role = message.get("role") if isinstance(message, Mapping) else None
    return role if isinstance(role, str) else "unknown"
