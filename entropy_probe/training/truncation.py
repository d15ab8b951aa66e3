"""Which completions ended by themselves, and which were cut."""

from collections.abc import Sequence

from entropy_probe.models.engine import decoder_of
from entropy_probe.models.prompts import stop_ids
from entropy_probe.rollout import Rollouts


def finished(
    model, tokenizer, rollouts: Rollouts, max_new_tokens: int, stop: Sequence[str | int] = ()
) -> list[bool]:
    """Say of each row whether the model ended it; False where a limit cut it off.

    Args:
        model: what generated the rows.
        tokenizer: its tokenizer.
        rollouts: the rows.
        max_new_tokens: the limit that they were sampled with.
        stop: the texts and token ids that ended a row besides the end-of-text tokens.
    """
    decoder = decoder_of(model)
    ends, texts = stop_ids(decoder, tokenizer, stop)
    context = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
    found = []
    for row, length in enumerate(rollouts.lengths.tolist()):
        made = length - int(rollouts.prompt_lengths[row])
        at_limit = made >= max_new_tokens or length == context
        by_token = made > 0 and int(rollouts.tokens[row, length - 1]) in ends
        by_text = any(text in rollouts.completion(row) for text in texts)
        found.append(not at_limit or by_token or by_text)
    return found
