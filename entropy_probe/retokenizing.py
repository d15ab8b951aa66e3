"""Rows of token ids to score, from whatever holds tokens or text; ids stay where they can."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from .models.prompts import encode_prompts
from .models.vocabulary import INVENTED, special_ids, token_bytes
from .planning import rows_of
from .rollout import Rollouts
from .storage.run import Run

KEPT = "its token ids"
"""Says that rows have the source's token ids."""


@dataclass(frozen=True)
class Given:
    """What is to be scored."""

    rows: Sequence[dict[str, Any]]
    """Inputs of a plan: ``tokens``, ``valid`` spans, ``prompt_length``, ``group``, ``reward``."""
    origin: str
    """Where they come from, in words."""
    temperature: float | None = 1.0
    """Temperature of the source's entropies; None where it does not tell."""
    task: str | None = None
    """Task whose problems the prompts are."""
    problems: Sequence[Mapping[str, Any]] = ()
    """Id, answer and facts of each row's problem, where there is a task."""


def rows_to_score(tokenizer, source: Run | Rollouts | Sequence[object]) -> Given:
    """Give the rows of a run, a record or texts, in the tokens of a tokenizer.

    Raises:
        ValueError: nothing to score, or messages without a chat template.
    """
    if isinstance(source, Run):
        return _rows_of_run(tokenizer, source)
    if isinstance(source, Rollouts):
        rows, how = _rows_of_record(tokenizer, source)
        about = source.provenance
        return Given(rows, f"tokens of {about.model}, {how}", about.entropy_temperature)
    encoded = encode_prompts(tokenizer, source)
    if short := [i for i, ids in enumerate(encoded) if len(ids) < 2]:
        raise ValueError(
            f"text {short[0]} has no token to score: the first one needs something to be "
            "predicted from, so pass at least two tokens"
        )
    return Given([_row(ids[:1], ids[1:], i) for i, ids in enumerate(encoded)], "given text")


def _rows_of_run(tokenizer, run: Run) -> Given:
    """Give the rows of a run, with what its samples' lines say of their problems."""
    lines = run.samples().select(["group", "prompt", "completion", "reward", "problem", "answer",
                                  "facts"]).to_pylist()  # fmt: skip
    problems = [
        {
            "id": line["problem"],
            "answer": line["answer"],
            "facts": json.loads(line["facts"] or "{}"),
        }
        for line in lines
    ]
    about = run.provenance
    said = [problem["facts"].get("messages") for problem in problems]
    if about is None or about.source != "text":
        rows, how = _rows_of_record(tokenizer, run.rollouts(residuals=False), said)
    else:
        rows, how = [_row_of_text(tokenizer, line) for line in lines], "text, tokenized here"
    if not how.startswith(KEPT):
        # What a chat template makes of the messages is nearer to what the model saw.
        rows = [
            row if messages is None else _row_of_messages(tokenizer, line, *messages)
            for row, line, messages in zip(rows, lines, said, strict=True)
        ]
    if not run.complete:
        how += f"; the {len(run)} of {run.plan.samples} samples that were there"
    known = any(line["problem"] is not None or line["facts"] is not None for line in lines)
    return Given(
        rows,
        f"{run.path} ({about.origin or about.model}): {how}",
        about.entropy_temperature,
        task=run.plan.task if run.plan else None,
        problems=problems if known else (),
    )


def _rows_of_record(
    tokenizer, rollouts: Rollouts, said: Sequence[Any] = ()
) -> tuple[list[dict[str, Any]], str]:
    """Give a record's rows, and in words whether their token ids were kept.

    ``said`` has the messages of each row's prompt and completion, None where there are none.
    """
    rows = rows_of(rollouts)
    used = {token for row in rows for token in row["tokens"]}
    pieces = {i: rollouts.pieces[i] for i in used if i in rollouts.pieces}
    real = {i: piece for i, piece in pieces.items() if i < INVENTED}
    if token_bytes(tokenizer, real) == real:
        return _with_prompts(tokenizer, rollouts, rows, said)
    names = set(token_bytes(tokenizer, special_ids(tokenizer)).values())
    out = []
    for i, row in enumerate(rows):
        prompt = row["tokens"][: row["prompt_length"]]
        # Control tokens that this tokenizer does not know would only be read as text.
        kept = (
            pieces.get(token, b"")
            for token in prompt
            if token not in rollouts.special_ids or pieces.get(token) in names
        )
        text = b"".join(kept).decode("utf-8", "replace")
        ids = _encode(tokenizer, text), _encode(tokenizer, rollouts.completion(i), more=True)
        out.append(_row(*ids, row["group"], row["reward"]))
    return out, "text, tokenized anew for another vocabulary"


def _with_prompts(
    tokenizer, rollouts: Rollouts, rows: list[dict[str, Any]], said: Sequence[Any]
) -> tuple[list[dict[str, Any]], str]:
    """Give rows of kept ids, with the ids of prompts that the record has as text, or not at all."""
    out, unknown = [], 0
    for row, messages in itertools.zip_longest(rows, said):
        start = row["prompt_length"]
        prompt, completion = row["tokens"][:start], row["tokens"][start:]
        if not any(i >= INVENTED and i in rollouts.pieces for i in prompt):
            out.append(row)
            continue
        text = b"".join(rollouts.pieces[i] for i in prompt if i not in rollouts.special_ids)
        unknown += not text
        if messages is None:
            ids = _encode(tokenizer, text.decode("utf-8", "replace"))
        else:
            ids = encode_prompts(tokenizer, [messages[0]])[0]
        spans = [[max(1, a - start + len(ids)), b - start + len(ids)] for a, b in row["valid"]]
        valid = [[a, b] for a, b in spans if a < b]
        out.append(_row(ids, completion, row["group"], row["reward"]) | {"valid": valid})
    if all(a is b for a, b in zip(out, rows, strict=True)):
        return rows, KEPT
    bare = f"; {unknown} rows without theirs, which it does not have" if unknown else ""
    return out, f"{KEPT} after prompts tokenized here{bare}"


def _row_of_text(tokenizer, line: Mapping[str, Any]) -> dict[str, Any]:
    """Give the row of a sample that is text only."""
    prompt = _encode(tokenizer, line["prompt"] or "")
    completion = _encode(tokenizer, line["completion"] or "", more=True)
    return _row(prompt, completion, line["group"], line["reward"])


def _row_of_messages(
    tokenizer, line: Mapping[str, Any], prompt: Sequence[dict], completion: Sequence[dict]
) -> dict[str, Any]:
    """Give the row of a conversation: what the assistant wrote in the completion is valid."""
    tokens = encode_prompts(tokenizer, [prompt])[0]
    start, valid = len(tokens), []
    said, done = list(prompt), _render(tokenizer, prompt, opening=True)
    for message in completion:
        mine = message.get("role") == "assistant"
        opened = _render(tokenizer, said, opening=True) if mine else done
        said.append(message)
        closed = _render(tokenizer, said)
        if not (opened.startswith(done) and closed.startswith(opened)):
            raise ValueError(
                "the chat template rewrites earlier messages when later ones come, so that the "
                "tokens that the model saw are not known: score texts or token ids instead"
            )
        tokens = tokens + _encode(tokenizer, opened[len(done) :], more=True)
        written = _encode(tokenizer, closed[len(opened) :], more=True)
        if mine and written:
            valid.append([len(tokens), len(tokens) + len(written)])
        tokens, done = tokens + written, closed
    row = _row(tokens[:start], tokens[start:], line["group"], line["reward"])
    return row | {"valid": valid}


def _render(tokenizer, messages: Sequence[dict], *, opening: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=opening, tokenize=False
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses a conversation: {error}") from None


def _encode(tokenizer, text: str, *, more: bool = False) -> list[int]:
    """Give the ids of a text: a prompt's, begun as the tokenizer begins one, or what follows it."""
    if more:
        return tokenizer(text, add_special_tokens=False).input_ids if text else []
    if text:
        return encode_prompts(tokenizer, [text])[0]
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _row(
    prompt: list[int], completion: list[int], group: int, reward: float | None = None
) -> dict[str, Any]:
    """Give a row of a plan whose completion is valid, all but a first token of the row."""
    start, end = max(1, len(prompt)), len(prompt) + len(completion)
    return {
        "tokens": prompt + completion,
        "valid": [[start, end]] if end > start else [],
        "prompt_length": min(start, end),
        "group": group,
        "reward": None if reward is None or math.isnan(reward) else reward,
    }
