"""From what a caller passes as a prompt to token ids: one BOS, chat templates, stop tokens."""

from collections.abc import Sequence

from jinja2 import TemplateError


def encode_prompts(tokenizer, prompts: Sequence[object]) -> list[list[int]]:
    """Give the token ids of each prompt.

    A prompt is a text, a list of chat messages (dicts with "role" and "content", rendered with
    the tokenizer's chat template and its generation prompt), or a list of token ids, taken as
    it is. A beginning-of-text token is there once at most, also where template and tokenizer
    both put one.

    Raises:
        ValueError: no prompts, an empty prompt, messages without a template, another type.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of prompts, got a single str: pass [text]")
    if len(prompts) == 0:
        raise ValueError("there are no prompts: pass at least one")
    encoded = [_encode(tokenizer, prompt, i) for i, prompt in enumerate(prompts)]
    for i, ids in enumerate(encoded):
        if not ids:
            raise ValueError(
                f"prompt {i} is empty: the first token needs something to be predicted from "
                "(this tokenizer adds no beginning-of-text token)"
            )
    return encoded


def stop_ids(model, tokenizer, stop: Sequence[str | int] = ()) -> tuple[set[int], list[str]]:
    """Give (token ids that end a row, texts that end a row).

    The ids are the model's end-of-text tokens (generation configuration, then tokenizer) and the
    ints in ``stop``; the texts are its strings.
    """
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    ids = set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    if isinstance(stop, str):
        raise ValueError(f"stop is a list of texts and token ids, got one text: pass [{stop!r}]")
    for item in stop:
        if not isinstance(item, str | int) or item == "":
            raise ValueError(f"stop takes non-empty texts and token ids, got {item!r}")
    ids |= {item for item in stop if isinstance(item, int)}
    return ids, [item for item in stop if isinstance(item, str)]


def _encode(tokenizer, prompt: object, number: int) -> list[int]:
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: write something for the model to continue")
        _refuse_surrogates(prompt, number)
        return _open_ended(tokenizer, prompt)
    items = list(prompt) if isinstance(prompt, Sequence) else None
    if items and all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        return items
    if items and all(isinstance(m, dict) and "role" in m for m in items):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"prompt {number} is a list of messages, but the tokenizer has no chat template: "
                "pass a text, or set tokenizer.chat_template"
            )
        try:
            text = tokenizer.apply_chat_template(items, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise ValueError(
                f"the chat template refuses prompt {number}: {error}; change its messages, or "
                "render it yourself and pass the text"
            ) from None
        _refuse_surrogates(text, number)
        return _single_bos(tokenizer, tokenizer(text, add_special_tokens=False).input_ids)
    if items == []:
        raise ValueError(f"prompt {number} is empty: write something for the model to continue")
    raise ValueError(
        f"prompt {number} must be a text, a list of messages or a list of token ids, "
        f"got {type(prompt).__name__}"
    )


def _refuse_surrogates(text: str, number: int) -> None:
    """Raise where a text holds what no tokenizer takes: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt {number} is no valid text: half of a surrogate pair at character "
            f"{error.start}; read the file that it is from as UTF-8"
        ) from None


def _open_ended(tokenizer, text: str) -> list[int]:
    """Encode a text, an end-of-text token that the tokenizer adds left out.

    A prompt that ends in one asks the model to begin something else.
    """
    ids, eos = tokenizer(text).input_ids, tokenizer.eos_token_id
    if len(ids) > 1 and ids[-1] == eos:
        written = tokenizer(text, add_special_tokens=False).input_ids
        if written[-1:] != [eos]:
            ids = ids[:-1]
    return _single_bos(tokenizer, ids)


def _single_bos(tokenizer, ids: list[int]) -> list[int]:
    """Drop a doubled beginning-of-text token."""
    bos = tokenizer.bos_token_id
    while len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos:
        ids = ids[1:]
    return ids
