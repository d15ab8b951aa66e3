"""Logprobs of OpenAI's API and of servers that speak it, such as vLLM, in JSON or JSON lines."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropy_probe.models.vocabulary import INVENTED
from entropy_probe.rollout import Provenance

from .fields import listed, logprob_of, mapped, optional, text_of, whole
from .reading import read_objects
from .responses import failed, listed_choices, prompt_of, request_and_response
from .rows import UNKNOWN_RANK, Imported, Numbers, TokenRow, left_out, unreadable
from .truncated import entropy_bound

_AS_ID = re.compile(r"token_id:(\d{1,9})")
_AS_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
_NO_PROMPT = b"<prompt not recorded>"


@dataclass(frozen=True)
class _Step:
    """A generated (or echoed) token and what the server said of its distribution."""

    token: bytes
    """Bytes of the token."""
    logprob: float | None
    """Its log-probability; None where nothing produced it."""
    top: Sequence[tuple[bytes, float]]
    """The most probable tokens, best first."""


@dataclass(frozen=True)
class _Choice:
    """One completion of a prompt."""

    steps: Sequence[_Step]
    """Its tokens, an echoed prompt included."""
    echoed: int
    """Leading tokens that are the prompt's."""
    prompt: str | None
    """The prompt, messages written out, where the file has it."""
    key: object
    """Equal for completions of one prompt."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says."""


def read_openai(path: Path) -> Imported:
    """Read responses that were asked for with logprobs.

    A file holds one response, a list of them, or one a line; a line of a batch's output and
    ``{"request": …, "response": …}``, which keeps the prompt, will do as well. Errors and answers
    without logprobs are left out and counted.

    Raises:
        RunError: something else, or nothing but responses without logprobs.
    """
    choices, models, skipped = [], [], 0
    for number, value in enumerate(read_objects(path)):
        try:
            found, without, model = _choices(mapped(value, "a response"), number)
        except ValueError as error:
            raise unreadable(path, f"response {number + 1}: {error}") from None
        choices += found
        skipped += without
        models += [model] if model and model not in models else []
    vocabulary = _Vocabulary(choices)
    numbered: dict[object, int] = {}
    rows, missing = [], []
    for choice in choices:
        try:
            row, masses = _row(choice, vocabulary, numbered.setdefault(choice.key, len(numbered)))
        except ValueError as error:
            raise unreadable(path, str(error)) from None
        rows.append(row)
        missing += masses
    if not missing:
        raise unreadable(
            path,
            "no token in it has a log-probability",
            "ask the server for them: logprobs=true and top_logprobs=20 (chat), or logprobs=5",
        )
    most = max(len(n.alternatives) for row in rows for n in row.known.values())
    origin = (f"{path.name}: logprobs as of OpenAI's API", left_out(skipped, len(rows)))
    provenance = Provenance(
        model=", ".join(models) or "unknown",
        source="import",
        dtype="unknown",
        temperature=None,
        entropy_basis=_basis(most),
        entropy_temperature=None,
        origin="; ".join(filter(None, origin)),
        missing_mass=sum(missing) / len(missing),
    )
    return Imported(
        rows,
        provenance,
        most,
        pieces=vocabulary.pieces,
        special_ids=vocabulary.special,
        skipped=skipped,
    )


def _basis(most: int) -> str:
    """Say what the entropies are of, for so many listed tokens at most."""
    known = f"its {most} most probable tokens" if most else "the drawn token alone"
    ranks = "a rank is known where these settle it" if most else "no rank is known"
    return f"the server's distribution, {known} and the rest as one: a lower bound; {ranks}"


class _Vocabulary:
    """Ids for tokens known by their bytes: the server's own where it names them, else counted."""

    def __init__(self, choices: Sequence[_Choice]) -> None:
        """Look whether the server wrote ids in place of texts, everywhere."""
        tokens = {t for c in choices for s in c.steps for t in (s.token, *(t for t, _ in s.top))}
        self._as_ids = bool(tokens) and all(_AS_ID.fullmatch(_text(t)) for t in tokens)
        self._found: dict[bytes, int] = {}
        self.pieces: dict[int, bytes] = {}
        self.special: frozenset[int] = frozenset()

    def id_of(self, token: bytes) -> int:
        """Give the id of a token."""
        match = _AS_ID.fullmatch(_text(token)) if self._as_ids else None
        if match:
            return int(match[1])
        start = INVENTED if self._as_ids else 0
        number = self._found.setdefault(token, start + len(self._found))
        self.pieces[number] = token
        return number

    def placeholder(self) -> int:
        """Give the id of a control token that stands for a prompt that is not known."""
        number = self.id_of(_NO_PROMPT)
        self.special = frozenset({number})
        return number


def _choices(value: Mapping[str, Any], number: int) -> tuple[list[_Choice], int, str | None]:
    """Give a response's completions, how many more have no logprobs, and the model's name."""
    request, response = request_and_response(value)
    if response.get("choices") is None and failed(value):
        return [], 1, None
    given_choices = listed_choices(response)
    prompt, messages = prompt_of(request)
    usage = mapped(response.get("usage") or {}, "usage")
    out = []
    for given in given_choices:
        choice = mapped(given, "a choice")
        steps = list(_steps(mapped(choice.get("logprobs") or {}, "logprobs")))
        if not steps:
            continue
        echoed = 0
        if steps[0].logprob is None:
            prompt_tokens = whole(usage.get("prompt_tokens", 1), "usage.prompt_tokens")
            echoed = min(max(1, prompt_tokens), len(steps))
        said = mapped(choice.get("message") or {}, "message")
        facts = {"finish_reason": optional(choice.get("finish_reason"), str, "finish_reason")}
        if messages is not None:
            facts["messages"] = [messages, [{"role": "assistant", "content": said.get("content")}]]
        known = None if prompt is None else ("prompt", prompt)
        out.append(_Choice(steps, echoed, prompt, known or ("response", number), facts))
    skipped = max(len(given_choices) - len(out), int(not out))
    return out, skipped, optional(response.get("model"), str, "model")


def _steps(logprobs: Mapping[str, Any]) -> Iterator[_Step]:
    """Go through the tokens of either layout: chat's and the older completions'."""
    if logprobs.get("content") is not None:
        for given in listed(logprobs["content"], "logprobs.content"):
            entry = mapped(given, "an entry of logprobs.content")
            top = [mapped(t, "an alternative") for t in listed(entry.get("top_logprobs") or [], "")]
            pairs = [(_bytes(t), logprob_of(t.get("logprob"))) for t in top]
            yield _Step(_bytes(entry), logprob_of(entry.get("logprob"), missing=True), _best(pairs))
        return
    tokens = [text_of(t, "a token") for t in listed(logprobs.get("tokens") or [], "tokens")]
    values = listed(logprobs.get("token_logprobs") or [], "token_logprobs")
    tops = listed(logprobs.get("top_logprobs") or [None] * len(tokens), "top_logprobs")
    if not len(tokens) == len(values) == len(tops):
        raise ValueError("tokens, token_logprobs and top_logprobs differ in length")
    for token, value, given in zip(tokens, values, tops, strict=True):
        top = mapped(given or {}, "top_logprobs")
        pairs = [(_raw(text), logprob_of(logprob)) for text, logprob in top.items()]
        yield _Step(_raw(token), logprob_of(value, missing=True), _best(pairs))


def _best(pairs: Sequence[tuple[bytes, float | None]]) -> list[tuple[bytes, float]]:
    known = [(token, value) for token, value in pairs if value is not None]
    return sorted(known, key=lambda pair: -pair[1])


def _bytes(entry: Mapping[str, Any]) -> bytes:
    """Give the bytes of a chat layout's token: its own list, or its text's."""
    values = entry.get("bytes")
    text = text_of(entry.get("token"), "token")
    if values is None or _AS_ID.fullmatch(text):
        return _raw(text)
    if not all(isinstance(b, int) and 0 <= b < 256 for b in listed(values, "bytes")):
        raise ValueError("bytes must be a list of numbers from 0 to 255")
    return bytes(values)


def _raw(text: str) -> bytes:
    """Give the bytes of a token's text, which may be spelled out in hexadecimal."""
    if match := _AS_BYTES.fullmatch(text):
        return bytes.fromhex(match[1].replace("\\x", ""))
    return text.encode("utf-8", "surrogatepass")


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _row(choice: _Choice, vocabulary: _Vocabulary, group: int) -> tuple[TokenRow, list[float]]:
    """Give a row, and the missing mass at each of its positions."""
    prompt: list[int] = []
    if not choice.echoed:
        known = choice.prompt.encode("utf-8", "surrogatepass") if choice.prompt else None
        prompt = [vocabulary.placeholder() if known is None else vocabulary.id_of(known)]
    known, missing = {}, []
    tokens = [*prompt, *(vocabulary.id_of(step.token) for step in choice.steps)]
    for position, step in enumerate(choice.steps, start=len(prompt)):
        if step.logprob is None:
            continue
        listed_too = _is_listed(step)
        values = [value for _, value in step.top] + ([] if listed_too else [step.logprob])
        entropy, mass = entropy_bound(values)
        missing.append(mass)
        known[position] = Numbers(
            entropy,
            step.logprob,
            _rank(step, mass),
            [(vocabulary.id_of(token), value) for token, value in step.top],
        )
    length = len(prompt) or choice.echoed
    return TokenRow(tokens, length, group, known, facts=choice.facts), missing


def _is_listed(step: _Step) -> bool:
    return any(token == step.token for token, _ in step.top)


def _rank(step: _Step, missing: float) -> int:
    """Give how many tokens were more probable than the drawn one, where the file settles it.

    Some servers list the drawn token whatever its rank; it is one of the most probable where a
    listed one is less probable, or where all that are not listed are together.
    """
    if not _is_listed(step):
        return UNKNOWN_RANK
    above = sum(token != step.token and value > step.logprob for token, value in step.top)
    settled = above < len(step.top) - 1 or missing < math.exp(step.logprob)
    return above if settled else UNKNOWN_RANK
