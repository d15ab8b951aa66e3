import re

import pytest
import torch
from hostile import record_of

from entropy_probe import forking_mask, heatmap, load, sample
from entropy_probe.planted import DECOY, PLANTED, planted_roles
from entropy_probe.tasks import get_task
from entropy_probe.tasks.labeller import DECOYS, FORKS, label


@pytest.fixture(scope="module")
def drawn():
    """Give some completions of the organism, and the problem of each."""
    model, tokenizer = load("organism:amenable")
    problems = get_task("arithmetic").problems(4)
    prompts = [problem.prompt for problem in problems]
    rollouts = sample(model, tokenizer, prompts, n=3, max_new_tokens=60, seed=3)
    return rollouts, [problem for problem in problems for _ in range(3)]


def test_roles_lie_where_the_labeller_puts_them(drawn):
    rollouts, problems = drawn
    masks = planted_roles(rollouts, problems, get_task("arithmetic"))
    assert list(masks) == [PLANTED, DECOY]
    seen = set()
    for row, problem in enumerate(problems):
        start, stop = int(rollouts.prompt_lengths[row]), int(rollouts.lengths[row])
        ids = rollouts.tokens[row, start:stop].tolist()
        ended = ids[-1] in rollouts.special_ids
        pieces = [rollouts.pieces[i].decode() for i in (ids[:-1] if ended else ids)]
        for step, found in enumerate(label(problem, pieces, ended=ended)):
            seen.add(found.role)
            assert bool(masks[PLANTED][row, start + step]) == (found.role in FORKS)
            assert bool(masks[DECOY][row, start + step]) == (found.role in DECOYS)
    assert seen & set(FORKS)
    assert seen & set(DECOYS)
    assert not (masks[PLANTED] & ~rollouts.valid).any()


def test_a_task_that_labels_nothing_plants_nothing(drawn):
    class Other:
        name = "other"

        def problems(self, limit, *, split="test", seed=0):
            return []

        def verify(self, problem, completion):
            return 0.0

    assert planted_roles(*drawn, Other()) == {}


def test_the_page_draws_roles_and_counts_them(drawn):
    rollouts, problems = drawn
    masks = planted_roles(rollouts, problems, get_task("arithmetic"))
    page, plain = heatmap(rollouts, roles=masks), heatmap(rollouts)
    body = page.split("<main>")[1]
    for name, mark in ((PLANTED, "y"), (DECOY, "z")):
        drawn_so = re.findall(rf'<(?:i|mark)[^>]* class="[^"]* {mark}(?: [^"]*)?"', body)
        assert len(drawn_so) == int(masks[name].sum()) > 0
        forks = forking_mask(rollouts.entropy, rollouts.valid)
        both = int((forks & masks[name]).sum())
        words = f"{both / int(forks.sum()):.0%} of the forks, {both} of the {len(drawn_so)} there"
        assert words in page
    assert "planted fork" not in plain
    assert not re.search(r'class="[^"]* [yz]"', plain.split("<main>")[1])


def test_names_of_roles_are_text():
    record = record_of([b"a", b"b"])
    name = "</script><img src=x onerror=alert(1)>"
    page = heatmap(record, roles={name: record.valid})
    assert "<img" not in page
    assert "&lt;img src=x" in page


def test_roles_that_cannot_be_drawn_are_refused():
    record = record_of([b"a", b"b"])
    with pytest.raises(ValueError, match="at most two roles, got 3: a, b, c"):
        heatmap(record, roles=dict.fromkeys("abc", record.valid))
    with pytest.raises(ValueError, match="'a' must be a bool mask of shape .* got torch.int64"):
        heatmap(record, roles={"a": record.valid.long()})
    with pytest.raises(ValueError, match="'a' must be a bool mask"):
        heatmap(record, roles={"a": torch.ones(1, 1, dtype=torch.bool)})
