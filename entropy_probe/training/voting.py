"""Rewards by majority vote: within the group at hand, or against labels made beforehand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_probe.tasks.problem import Problem
from entropy_probe.training.checking import RewardError
from entropy_probe.training.completion import Completion
from entropy_probe.training.rules import Named, each, needed

LABEL_SAMPLES = 64
"""Samples of the model before training that a label is the majority of (2506.10947)."""


def most_frequent(answers: Sequence[str | None]) -> str | None:
    """Give the answer that occurs most often, None for no answer; the first one among equals.

    >>> most_frequent(["7", None, "5", None, None, "5"])
    '5'
    """
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=counts.__getitem__, default=None)


def majority(task: Any) -> Named:
    """Reward the answer that most completions of the group give (TTRL, arXiv 2504.16084).

    Ties go to the answer that comes first by row number; a completion without an answer does
    not vote and gets 0.
    """
    task = needed(task, "majority", "answer_of")
    read = each("majority", lambda c: task.answer_of(c.problem, c.text))

    def values(completions: Sequence[Completion]) -> list[float]:
        answers = read(completions)
        groups: dict[int, list[int]] = {}
        for i in sorted(range(len(completions)), key=lambda i: completions[i].row):
            groups.setdefault(completions[i].group, []).append(i)
        wanted = {g: most_frequent([answers[i] for i in rows]) for g, rows in groups.items()}
        return [
            float(answer is not None and answer == wanted[c.group])
            for c, answer in zip(completions, answers, strict=True)
        ]

    return Named("majority", values)


def labelled(task: Any, labels: Mapping[str, str], *, name: str = "labels") -> Named:
    """Reward the answer that a label names, whether or not it is right.

    Args:
        task: one that reads answers.
        labels: problem id -> answer, as `majority_labels` gives them.
        name: what the reward is called in errors and logs.
    """
    task = needed(task, name, "answer_of")

    def of(completion: Completion) -> float:
        problem = completion.problem
        if problem.id not in labels:
            raise RewardError(
                f"reward {name!r} has no label for problem {problem.id!r} (row {completion.row}): "
                "train on the problems that were labelled, or label this one"
            )
        return float(task.answer_of(problem, completion.text) == labels[problem.id])

    return each(name, of)


def incorrect(task: Any, labels: Mapping[str, str]) -> Named:
    """Reward the wrong answer that the majority gave: 2506.10947's incorrect reward.

    It is no opposite of `correct`: training has only the problems whose label is wrong (see
    `wrongly_labelled`), and any other wrong answer gets 0.
    """
    task = needed(task, "incorrect", "answer_of", "accepts")
    match = labelled(task, labels, name="incorrect")

    def of(completion: Completion) -> float:
        problem = completion.problem
        if problem.id in labels and task.accepts(problem, labels[problem.id]):
            raise RewardError(
                f"the label of problem {problem.id!r} (row {completion.row}) is right: the reward "
                "'incorrect' takes problems with a wrong label only, as wrongly_labelled gives"
            )
        return match([completion])[0]

    return each("incorrect", of)


def wrongly_labelled(
    task: Any, problems: Sequence[Problem], labels: Mapping[str, str]
) -> list[Problem]:
    """Keep the problems whose label is wrong; those without a label go too (2506.10947).

    Raises:
        ValueError: none is left.
    """
    task = needed(task, "incorrect", "accepts")
    kept = [p for p in problems if p.id in labels and not task.accepts(p, labels[p.id])]
    if not kept:
        labelled_ones = sum(p.id in labels for p in problems)
        raise ValueError(
            f"none of {len(problems)} problems has a wrong label ({labelled_ones} have one): take "
            "more problems, harder ones, or a weaker model's labels"
        )
    return kept


def majority_labels(
    task: Any, problems: Sequence[Problem], completions: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Give problem id -> the answer that most of its completions give.

    Problems for which no completion gives an answer are left out.

    Args:
        task: one that reads answers.
        problems: what is labelled.
        completions: for each problem, the texts of its samples, in their order.

    Raises:
        ValueError: not one list of completions a problem.
    """
    task = needed(task, "majority", "answer_of")
    if len(completions) != len(problems):
        raise ValueError(
            f"expected completions for {len(problems)} problems, got {len(completions)} lists"
        )
    labels = {}
    for problem, texts in zip(problems, completions, strict=True):
        label = most_frequent([task.answer_of(problem, text) for text in texts])
        if label is not None:
            labels[problem.id] = label
    return labels


def label_problems(
    model,
    tokenizer,
    task: Any,
    problems: Sequence[Problem],
    *,
    n: int = LABEL_SAMPLES,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    stop: Sequence[str | int] = (),
    offset: int = 0,
) -> dict[str, str]:
    """Sample from a model before its training and give the majority's answers as labels.

    Args:
        model: as for `sample`, like the arguments after ``n``.
        tokenizer: its tokenizer.
        task: one that reads answers.
        problems: what is labelled.
        n: samples a problem.
        max_new_tokens: tokens after which a sample ends.
        temperature: sampling temperature.
        seed: seed of the sampling noise.
        batch_size: rows decoded together.
        stop: texts and token ids that end a sample.
        offset: the first problem's place among all that are labelled, which its noise depends on.

    Returns:
        problem id -> answer; problems without any answer are left out.
    """
    from entropy_probe.sampling import sample

    needed(task, "majority", "answer_of")
    rollouts = sample(
        model, tokenizer, [p.prompt for p in problems], n=n, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, batch_size=batch_size, stop=stop, alternatives=0,
        offset=offset,
    )  # fmt: skip
    texts = [rollouts.completion(i) for i in range(len(rollouts))]
    return majority_labels(
        task, problems, [texts[i * n : (i + 1) * n] for i in range(len(problems))]
    )
