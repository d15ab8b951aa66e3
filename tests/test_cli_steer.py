"""`probe steer` on an organism, in this process: both sides, what changed, and what is refused."""

import html
import re
from importlib import metadata

import pytest
from commands import probe
from dictionaries import write_dictionary

from entropy_probe import capture, load
from entropy_probe.models.fingerprint import weights_fingerprint

ORGANISM = "organism:amenable-300k"
WORDS = ("--feature", 3, "--strength", 30, "--max-new-tokens", 16, "--seed", 4)


@pytest.fixture(autouse=True)
def verb(monkeypatch):
    """Let the verb be there whatever the metadata of the installation says."""
    entry = metadata.EntryPoint("steer", "sae_steering.cli.steer:steer", "entropy_probe.verbs")
    monkeypatch.setattr(metadata, "entry_points", lambda group: (entry,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with dictionaries of an organism: its own, another's, one without a layer."""
    folder = tmp_path_factory.mktemp("steer")
    model, tokenizer = load(ORGANISM)
    own = {"layer": 1, "model_name": ORGANISM, "model_weights": weights_fingerprint(model)}
    write_dictionary(folder / "sae", 64, 40, **own)
    write_dictionary(folder / "other", 64, 40, **own | {"model_weights": "0123"})
    write_dictionary(folder / "placeless", 64, 40)
    write_dictionary(folder / "wide", 32, 40, **own)
    write_dictionary(folder / "deep", 64, 40, **own | {"layer": 9})
    capture(model, tokenizer, ["Compute 12, plus 5.\n"], folder / "run", n=4, max_new_tokens=20)
    return folder


def steer(folder, *words, sae="sae", task=True, out="page.html"):
    source = ("--task", "arithmetic", "--limit", 5) if task else ()
    return probe(
        "steer", "--model", ORGANISM, "--sae", folder / sae, "-o", folder / out, *source, *words
    )


def frames(page):
    return [html.unescape(text) for text in re.findall(r'srcdoc="([^"]*)"', page)]


def test_help_says_what_it_does():
    listed = probe("--help").out
    assert "steer     Write what a model says as it is and steered beside each other." in listed
    assert probe("steer", "--help").code == 0


def test_both_sides_stand_on_one_page(folder):
    result = steer(folder, *WORDS, "--where", "opening")
    assert result.code == 0, result.err
    assert result.last == str(folder / "page.html")
    page = (folder / "page.html").read_text()
    assert len(frames(page)) == 2
    for text in (
        "add feature 3 30 after layer 1, where=opening",
        "these weights",
        "5 of arithmetic",
    ):
        assert text in page
    lines = result.out.splitlines()
    assert lines[0].split() == ["as", "it", "is", "steered", "difference"]
    names = ("right", "share of code", "tokens a completion", "entropy, nats", "repetition", "KL")
    for name in names:
        assert any(line.startswith(name) for line in lines), name
        assert name in page


def test_the_figures_are_those_of_the_two_samplings(folder):
    from entropy_probe import sample
    from entropy_probe.tasks import get_task
    from sae_steering import load_sae
    from sae_steering.steering import steer as steering

    longer = ("--n", 2, "--max-new-tokens", 30)
    found = steer(folder, *WORDS, "--where", "generated", *longer, "--json").json
    task = get_task("arithmetic")
    problems = task.problems(5)
    model, tokenizer = load(ORGANISM)
    settings = {"n": 2, "max_new_tokens": 30, "seed": 4}
    prompts = [problem.prompt for problem in problems]
    plain = sample(model, tokenizer, prompts, **settings)
    with steering(model, load_sae(folder / "sae"), {3: 30.0}, where="generated") as steered:
        drawn = sample(steered, tokenizer, prompts, **settings)
    right = [task.verify(problems[i // 2], drawn.completion(i)) for i in range(10)]
    measures = found["measures"]
    assert measures["right"]["steered"]["value"] == pytest.approx(float(sum(right)) / 10, abs=1e-4)
    tokens = float(plain.valid.sum()) / 10
    assert measures["tokens a completion"]["plain"]["value"] == pytest.approx(tokens, abs=1e-4)
    changed = [plain.completion(i) != drawn.completion(i) for i in range(10)]
    assert 0 < sum(changed)
    assert measures["completions changed"]["steered"]["value"] == pytest.approx(sum(changed) / 10)
    assert measures["KL from as it is, nats a token"]["steered"]["value"] > 0.01


def test_strength_0_changes_nothing(folder):
    words = ("--feature", 3, "--strength", 0, "--max-new-tokens", 8, "--json")
    measures = steer(folder, *words).json["measures"]
    assert measures["completions changed"]["steered"]["value"] == 0
    assert measures["right"]["difference"]["value"] == 0
    assert measures["KL from as it is, nats a token"]["steered"]["value"] == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("mode", ["clamp", "ablate", "replace"])
def test_every_mode_can_be_asked_for(folder, mode):
    words = (
        "--mode",
        mode,
        "--feature",
        3,
        "--feature",
        5,
        "--strength",
        1,
        "--max-new-tokens",
        4,
        "--json",
    )
    result = steer(folder, *words, "-p", "Compute 12, plus 5.\n", task=False)
    assert result.code == 0, result.err
    assert (
        f"{mode} feature 3 1, feature 5 1 after layer 1, where=all" in result.json["facts"]["Edit"]
    )
    assert "right" not in result.json["measures"]
    assert result.json["measures"]["repetition"]["steered"]["low"] is None  # of one prompt


def test_forks_are_held_against_a_named_threshold(folder):
    forks = (*WORDS, "--where", "forks", "--json")
    own = steer(folder, *forks).json["facts"]
    assert "percentile 80 of 5 completions of organism:amenable-300k as it is" in own["Threshold"]
    assert "twice" in own["Edited"]
    assert "edited" in frames((folder / "page.html").read_text())[1].lower()
    run = steer(folder, *forks, "--threshold", folder / "run").json["facts"]
    assert "percentile 80 of run run of organism:amenable-300k" in run["Threshold"]
    given = steer(folder, *forks, "--threshold", 0.25).json["facts"]
    assert given["Threshold"] == "0.25 nats or more (given)"
    high = steer(folder, *forks, "--threshold", 50).json
    assert high["facts"]["Edited"].startswith("0 of ")
    assert high["measures"]["completions changed"]["steered"]["value"] == 0
    others = steer(folder, *WORDS, "--where", "non-forks", "--threshold", 50, "--json").json
    assert "(100.0%)" in others["facts"]["Edited"]


def test_a_greedy_decoding_has_no_divergence(folder):
    measures = steer(folder, *WORDS, "--temperature", 0, "--json").json["measures"]
    assert not any(name.startswith("KL") for name in measures)


def test_other_weights_are_told_and_a_missing_layer_given(folder):
    result = steer(folder, *WORDS, sae="other")
    assert result.code == 0
    assert "of other weights" in result.err
    assert "OTHER WEIGHTS" in (folder / "page.html").read_text()
    assert steer(folder, *WORDS, "--layer", 1, sae="placeless").code == 0


def test_prompts_can_be_left_out(folder):
    words = (*WORDS, "-p", "Compute 473, plus 8.\n", "--redact-prompts", "--title", "a <b>\x1b")
    assert steer(folder, *words, task=False).code == 0
    page = (folder / "page.html").read_text()
    assert "473, plus" not in page
    assert "a &lt;b&gt;" in page
    assert "\x1b" not in page


BAD = {
    "no such feature": (("--feature", 40, "--strength", 1), "no feature 40"),
    "a negative feature": (("--feature", -1, "--strength", 1), "invalid value for '--feature'"),
    "a feature twice": (
        ("--feature", 3, "--feature", 3, "--strength", 1), "a feature is named twice",
    ),
    "strength nan": (("--feature", 3, "--strength", "nan"), "strengths must be finite"),
    "strength inf": (("--feature", 3, "--strength", "-inf"), "strengths must be finite"),
    "too few strengths": (
        ("--feature", 1, "--feature", 2, "--feature", 3, "--strength", 1, "--strength", 2),
        "which strength is whose?",
    ),
    "no strength": (("--feature", 3), "missing '--strength'"),
    "no feature": (("--strength", 3), "missing '--feature'"),
    "another place": ((*WORDS, "--where", "nowhere"), "invalid value for '--where'"),
    "threshold unread": ((*WORDS, "--threshold", 1), "--threshold without forks"),
    "threshold nan": ((*WORDS, "--where", "forks", "--threshold", "nan"),
                      "invalid value for '--threshold'"),
    "threshold of no run": ((*WORDS, "--where", "forks", "--threshold", "/no/such"), None),
    "another layer": ((*WORDS, "--layer", 2), "its features are of another layer"),
    "all layers": ((*WORDS, "--layer", "all"), "which layer?"),
    "no such task": ((*WORDS, "--task", "cooking"), "no such task: cooking"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_told(folder, case):
    words, told = BAD[case]
    result = steer(folder, *words)
    assert result.code == 2, result.err
    assert told is None or result.told[0] == told
    assert result.out == ""


@pytest.mark.parametrize(
    ("sae", "told"),
    [
        ("wide", "the SAE belongs to another model"),
        ("placeless", "which layer?"),
        ("deep", "`probe steer` cannot do that"),
    ],
)
def test_dictionaries_that_do_not_fit_are_told(folder, sae, told):
    result = steer(folder, *WORDS, sae=sae)
    assert (result.code, result.told[0]) == (2, told)


def test_what_is_not_there_is_told(folder):
    assert steer(folder, *WORDS, sae="no").code == 1
    assert steer(folder, *WORDS, task=False).told[0] == "prompts come from one place"
    result = steer(folder, *WORDS, out="sae/cfg.json/page.html")
    assert (result.code, result.told[0].split("'")[0]) == (1, "cannot write ")
