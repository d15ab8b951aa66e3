"""The study of SmolLM2's features: its two parts share no topic and no numbers."""

import re

from analyses.benchmarks.workloads import QUESTIONS, TEXTS
from analyses.sae import smollm2


def texts_of(part):
    return [prompt if isinstance(prompt, str) else prompt[0]["content"] for prompt in part]


def test_no_topic_and_no_pair_of_numbers_is_in_both_parts():
    parts = {name: texts_of(part) for name, part in smollm2.prompts().items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 64, "report": 32}
    assert not set(parts["train"]) & set(parts["report"])
    for topic in smollm2.TOPICS:
        asked = {form.format(topic) for form in (*smollm2.ASKED, *smollm2.BEGUN)}
        assert len([name for name, part in parts.items() if asked & set(part)]) == 1
    sums = {
        name: {tuple(re.findall(r"\d+", t)[:2]) for t in part if t not in (*TEXTS, *QUESTIONS)}
        for name, part in parts.items()
    }
    assert sums["train"] & sums["report"] == {()}  # what is no sum has no numbers
