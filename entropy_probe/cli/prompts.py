"""Prompts from the command line, a file, standard input or a task, checked before a model loads."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .failing import Failure, usage
from .output import note

if TYPE_CHECKING:
    from entropy_probe.tasks import Task

_TASK_LIMIT = 16
_FORMS = 'write {"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]} there'


def read_prompts(
    texts: Sequence[str], file: str | None, task: str | None, limit: int | None
) -> list[Any]:
    """Give the prompts, or the problems of a task, from the one source that was named.

    Args:
        texts: the prompts themselves.
        file: a file of them, ``-`` for standard input.
        task: name of a task.
        limit: how many to take at most.
    """
    named = {"-p": bool(texts), "--prompts": file is not None, "--task": task is not None}
    given = [name for name, is_there in named.items() if is_there]
    if len(given) != 1:
        why = f"{' and '.join(given)} exclude each other" if given else "there are no prompts"
        what = "prompts come from one place"
        raise usage(what, why, "pass one of -p TEXT, --prompts FILE, --task NAME")
    if task is not None:
        return find_task(task).problems(limit or _TASK_LIMIT)
    if file is not None:
        return _from_file(file)[:limit]
    for i, text in enumerate(texts):
        _check_text(text, f"prompt {i}")
    return list(texts)[:limit]


def find_task(name: str) -> "Task":
    """Give a task by its name, or say which there are."""
    from entropy_probe.tasks import FORMS, TaskError, get_task

    try:
        return get_task(name)
    except TaskError:
        raise  # it says more than that there is none
    except ValueError as error:
        fix = f"pass one of {', '.join(FORMS)}"
        raise usage(f"no such task: {name}", str(error), fix) from error


def _from_file(file: str) -> list[Any]:
    """Read prompts: one a line, or JSON lines where the first line begins with a brace."""
    name = "standard input" if file == "-" else file
    raw = _standard_input() if file == "-" else _bytes(file)
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        what = f"{name!r} is not text"
        raise usage(what, str(error), "write prompts in UTF-8, one a line") from error
    numbered = [(i, line.removesuffix("\r")) for i, line in enumerate(lines, start=1)]
    numbered = [(i, line) for i, line in numbered if line.strip()]
    if not numbered:
        why = "it is empty" if not raw else "it holds nothing but blank lines"
        raise usage(f"no prompts in {name!r}", why, "write one prompt a line, or JSON lines")
    if not numbered[0][1].lstrip().startswith("{"):
        return [line for _, line in numbered]
    return [_from_json(line, f"line {i} of {name}") for i, line in numbered]


def _standard_input() -> bytes:
    if sys.stdin.isatty():
        note("reading prompts from the terminal: one a line, Ctrl-D ends them")
    return click.get_binary_stream("stdin").read()


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        what = f"cannot read the prompts {file!r}"
        raise usage(what, error.strerror or str(error), "check the path") from error


def _from_json(line: str, where: str) -> str | list[dict[str, Any]]:
    """Read one prompt or message list."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        fix = f"{_FORMS}; in a file of plain prompts the first line may not begin with a brace"
        raise usage(f"{where} is not JSON", str(error), fix) from error
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        keys = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise usage(f"{where} is no prompt", f"expected prompt or messages, got {keys}", _FORMS)
    if "prompt" in value:
        if not isinstance(value["prompt"], str):
            why = f"expected a text, got {type(value['prompt']).__name__}"
            raise usage(f"{where} is no prompt", why, _FORMS)
        _check_text(value["prompt"], where)
        return value["prompt"]
    messages = value["messages"]
    if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        why = "messages must be a list of objects with a role and a content, both texts"
        raise usage(f"{where} is no prompt", why, _FORMS)
    for message in messages:
        _check_encodable(message["content"], where)
    return messages


def _is_message(value: object) -> bool:
    texts = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None,)
    return all(isinstance(text, str) for text in texts)


def _check_text(text: str, where: str) -> None:
    """Refuse a prompt from which nothing can be predicted, or that is no Unicode."""
    if not text:
        why = "the first token needs something to be predicted from"
        raise usage(f"{where} is empty", why, "write something for the model to continue")
    _check_encodable(text, where)


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise usage(f"{where} is not text", str(error), "write it in UTF-8") from error


def refuse_without_samples(count: int, path: Path) -> None:
    """Raise where a run holds nothing to read."""
    if not count:
        what = f"no samples in {str(path)!r}"
        why = "none of its chunks has been computed"
        raise Failure("nothing", what, why, "go on with it with --resume, or pass another run")
