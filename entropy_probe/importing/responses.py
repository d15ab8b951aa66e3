"""One line of a file of responses: what it is, and the request, response and choices in it."""

from collections.abc import Mapping
from typing import Any

from .fields import listed
from .messages import written_out


def is_openai(value: object) -> bool:
    """Tell whether a JSON value looks like a response, a choice or a line of a batch."""
    if not isinstance(value, Mapping):
        return False
    names = ("choices", "logprobs", "top_logprobs")
    return any(name in part for part in _parts(value) for name in names) or failed(value)


def listed_choices(response: Mapping[str, Any]) -> list[Any]:
    """Give a response's choices, which may be one alone, or its logprobs alone."""
    if response.get("choices") is not None:
        return listed(response["choices"], "choices")
    if "logprobs" in response:
        return [response]
    if any(name in response for name in ("content", "tokens", "token_logprobs", "top_logprobs")):
        return [{"logprobs": response}]
    raise ValueError(
        "it is neither a response nor an error line, which have 'choices', 'logprobs' or 'error'"
    )


def _parts(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give a line, the response that it wraps and that one's body, as far as there are any."""
    inner = value.get("response")
    body = inner.get("body") if isinstance(inner, Mapping) else None
    return [part for part in (value, inner, body) if isinstance(part, Mapping)]


def failed(value: Mapping[str, Any]) -> bool:
    """Tell whether a line says that there was no answer."""
    if "response" in value and value["response"] is None:
        return True
    parts = _parts(value)
    return any(p.get("error") is not None or p.get("object") == "error" for p in parts)


def request_and_response(value: Mapping[str, Any]) -> tuple[Mapping, Mapping]:
    """Take apart a bare response, a wrapped one, and a line of a batch's output."""
    if not isinstance(value.get("response"), Mapping):
        return value, value
    response = value["response"]
    request = value.get("request") if isinstance(value.get("request"), Mapping) else value
    return request, response.get("body") if isinstance(response.get("body"), Mapping) else response


def prompt_of(request: Mapping[str, Any]) -> tuple[str | None, list | None]:
    """Give (the prompt's text, its messages), None for what there is not."""
    if isinstance(request.get("messages"), list):
        return written_out(request["messages"]), request["messages"]
    return (request["prompt"], None) if isinstance(request.get("prompt"), str) else (None, None)
