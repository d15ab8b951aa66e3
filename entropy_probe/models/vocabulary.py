"""The bytes of each token: what its text is before anybody decodes or escapes it."""

import json
import re
from collections.abc import Iterable

INVENTED = 10**9
"""Ids from here on are no tokenizer's: each stands for a prompt that an import has as text alone,
or not at all, among token ids that are real."""

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer, ids: Iterable[int]) -> dict[int, bytes]:
    """Give the bytes that each token id stands for, special tokens by their name.

    Byte-level and byte-fallback vocabularies split characters over tokens: joining the bytes of
    a row and decoding them once is right where decoding token by token is not. Ids outside the
    vocabulary become ``<unknown ID>``.
    """
    wanted = sorted(set(ids))
    names = tokenizer.convert_ids_to_tokens(wanted)
    kinds = _decoder_kinds(tokenizer)
    special = special_ids(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    table = _byte_characters() if "ByteLevel" in kinds else None
    out = {}
    for token, name in zip(wanted, names, strict=True):
        if name is None:
            out[token] = f"<unknown {token}>".encode()
        elif token in special:
            out[token] = name.encode("utf-8", "surrogateescape")
        elif table is not None and token not in added and all(c in table for c in name):
            out[token] = bytes(table[c] for c in name)
        elif "ByteFallback" in kinds and (match := _BYTE_FALLBACK.fullmatch(name)):
            out[token] = bytes([int(match[1], 16)])
        elif "ByteFallback" in kinds or "Metaspace" in kinds:
            out[token] = name.replace("\u2581", " ").encode()
        else:
            out[token] = name.encode("utf-8", "surrogateescape")
    return out


def special_ids(tokenizer) -> frozenset[int]:
    """Give the ids that are control tokens, not text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}


def _decoder_kinds(tokenizer) -> set[str]:
    """Name the decoders that a fast tokenizer runs; a slow one is taken to be sentencepiece."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"ByteFallback"}
    if backend.decoder is None:
        return set()
    decoder = json.loads(backend.decoder.__getstate__())  # not to_str(), of megabytes
    return {d.get("type") for d in decoder.get("decoders", [decoder])}


def _byte_characters() -> dict[str, int]:
    """Give the printable stand-in of each byte in byte-level vocabularies (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
