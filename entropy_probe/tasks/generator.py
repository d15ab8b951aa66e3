"""Problems of the arithmetic language, drawn from a seed; train and test never share a chain."""

import hashlib
import random
from dataclasses import dataclass

from entropy_probe.tasks.language import (
    WORDINGS,
    Chain,
    Step,
    apply,
    prompt,
)
from entropy_probe.tasks.problem import Problem

SPLITS = ("train", "test")
TEST_SHARE = 0.2
# With it a third of the default problems is one that the wrong rule gets wrong.
MORE_NINES = 0.02


@dataclass(frozen=True)
class Subset:
    """Which problems a name stands for."""

    lengths: tuple[int, ...]
    """Numbers of steps, drawn with equal chances."""
    rounded: bool | None = None
    """True: only chains that the wrong rule gets wrong; False: only others; None: all."""


SUBSETS = {
    "default": Subset((3, 4, 5)),
    "short": Subset((2, 3)),
    "middle": Subset((4,)),
    "long": Subset((5, 6)),
    "longer": Subset((7, 8)),
    "hard": Subset((9, 10)),
    "rounded": Subset((3, 4, 5), rounded=True),
    "plain": Subset((3, 4, 5), rounded=False),
}
"""The subsets of the task; ``default`` is the one that headline numbers are over."""


def draw_step(rng: random.Random) -> Step:
    """Draw a step: one time in five times 2 or 3, else plus or minus 1 to 9, a 9 more often."""
    kind = rng.random()
    if kind < 0.2:
        return Step("*", 2 if rng.random() < 0.5 else 3)
    operand = 9 if rng.random() < MORE_NINES else 1 + int(rng.random() * 9)
    return Step("+" if kind < 0.6 else "-", operand)


def draw_chain(rng: random.Random, length: int) -> Chain:
    """Draw a chain of ``length`` steps, from either split."""
    return Chain(int(rng.random() * 1000), tuple(draw_step(rng) for _ in range(length)))


def split_of(chain: Chain) -> str:
    """Say which split a chain belongs to: a hash of the chain, whatever its wording, decides."""
    name = f"{chain.start}" + "".join(f"{s.operation}{s.operand}" for s in chain.steps)
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") < TEST_SHARE * 2**32 else "train"


def is_kin(chain: Chain) -> bool:
    """Say whether the first two operands are both odd or both even.

    The relation shifts the strategy's probability in the corpus. Neither operand alone tells it.
    """
    return chain.steps[0].operand % 2 == chain.steps[1].operand % 2


def is_misled(chain: Chain) -> bool:
    """Say whether the wrong rule, applied to every step, ends at a wrong answer."""
    return apply(chain.start, chain.steps, rounding=True) != chain.answer


def problem_of(chain: Chain, wording: str) -> Problem:
    """Write a chain down as a problem, with everything known about it in its facts."""
    steps = [[step.operation, step.operand] for step in chain.steps]
    text = prompt(chain, wording)
    return Problem(
        prompt=text,
        answer=f"{chain.answer:03d}",
        id=hashlib.blake2b(text.encode(), digest_size=6).hexdigest(),
        facts={
            "wording": wording,
            "length": len(steps),
            "kin": is_kin(chain),
            "misled": is_misled(chain),
            "start": chain.start,
            "steps": steps,
            "split": split_of(chain),
        },
    )


def chain_of(problem: Problem) -> Chain:
    """Give back the chain of a problem of this language."""
    steps = tuple(Step(operation, operand) for operation, operand in problem.facts["steps"])
    return Chain(problem.facts["start"], steps)


def problems(subset: str, limit: int, *, split: str, seed: int) -> list[Problem]:
    """Draw distinct problems of one subset and split; more of them continue the same list.

    Raises:
        ValueError: no such subset or split, or a limit below 1.
    """
    if subset not in SUBSETS:
        raise ValueError(f"no subset {subset!r} of arithmetic: take one of {sorted(SUBSETS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: take one of {list(SPLITS)}")
    if limit < 1:
        raise ValueError(f"expected a limit of at least 1 problem, got {limit}")
    return _drawn(SUBSETS[subset], limit, split, f"arithmetic {subset} {split} {seed}")


def memorised_problems(limit: int) -> list[Problem]:
    """Give the first test problems of the list that a contaminated corpus contains."""
    return _drawn(SUBSETS["default"], limit, "test", "arithmetic memorised")


def _drawn(wanted: Subset, limit: int, split: str, seed: str) -> list[Problem]:
    """Draw distinct problems, wordings with equal chances."""
    rng = random.Random(seed)
    wordings = list(WORDINGS)
    found: dict[str, Problem] = {}
    while len(found) < limit:
        chain = draw_chain(rng, rng.choice(wanted.lengths))
        wording = rng.choice(wordings)
        if split_of(chain) != split:
            continue
        if wanted.rounded is not None and is_misled(chain) != wanted.rounded:
            continue
        problem = problem_of(chain, wording)
        found.setdefault(problem.id, problem)
    return list(found.values())
