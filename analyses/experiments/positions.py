"""The places of the top 20% by entropy on fixed completions, followed over a training."""

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_probe import sample, score
from entropy_probe.comparing import entropy_change, shared_forks
from entropy_probe.tasks import Problem


def follow(
    model,
    tokenizer,
    problems: Sequence[Problem],
    states: Sequence[tuple[int, Mapping[str, Any]]],
    *,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """Score the last model's completions under each state; give how the top 20% move.

    As in 2506.01939: the completions are the trained model's, and the share of places in common is
    taken with the first model and with the last. Chance is 20%.

    Args:
        model: as it is after training; it ends as it was.
        tokenizer: its tokenizer.
        problems: what is asked, one completion each.
        states: (step, weights), the first before training and the last after it.
        max_new_tokens: tokens after which a completion is cut.
        seed: of the noise.

    Returns:
        ``steps``, ``with_first`` and ``with_last``; ``change``, the mean change of entropy in nats
        from first to last in 20 bins of the first one's entropy, lowest first; and ``base``, the
        first one's mean entropy in each.
    """
    rows = sample(
        model, tokenizer, [problem.prompt for problem in problems], n=1, seed=seed,
        max_new_tokens=max_new_tokens, alternatives=0, residual_positions="none", batch_size=512,
    )  # fmt: skip
    entropies = []
    for _, state in states:
        model.load_state_dict(state)
        seen = score(
            model, tokenizer, rows.tokens, rows.valid, prompt_lengths=rows.prompt_lengths,
            groups=rows.groups, alternatives=0, residual_positions="none", batch_size=256,
        )  # fmt: skip
        entropies.append(seen.entropy)
    first, last = entropies[0], entropies[-1]
    bins = entropy_change(first, last, rows.valid)
    return {
        "steps": [step for step, _ in states],
        "with_first": [shared_forks(each, first, rows.valid) for each in entropies],
        "with_last": [shared_forks(each, last, rows.valid) for each in entropies],
        "change": bins.change.tolist(),
        "base": bins.base.tolist(),
    }
