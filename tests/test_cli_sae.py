"""`probe sae` and `probe features` on a small run of an organism, in this process."""

import json
from importlib import metadata

import pytest
import torch
from commands import probe
from safetensors.torch import save_file
from wrapped import needs

from entropy_probe import capture, load, open_run
from entropy_probe.tasks.generator import problems

ORGANISM = "organism:amenable-300k"
VERBS = {"sae": "sae_steering.cli.sae:sae", "features": "sae_steering.cli.features:features"}


@pytest.fixture(autouse=True)
def verbs(monkeypatch):
    """Let the verbs be there whatever the metadata of the installation says."""
    entries = tuple(metadata.EntryPoint(n, v, "entropy_probe.verbs") for n, v in VERBS.items())
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder with a run, and with a random dictionary of its layer."""
    folder = tmp_path_factory.mktemp("cli")
    model, tokenizer = load(ORGANISM)
    capture(
        model, tokenizer, problems("short", 24, split="test", seed=0), folder / "run",
        task="arithmetic", n=2, max_new_tokens=40, residual_layers=[1], residual_positions="all",
        chunk_prompts=10,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(40, 64), dim=1)
    (folder / "sae").mkdir()
    config = {"architecture": "topk", "k": 8, "d_in": 64, "d_sae": 40, "dtype": "float32",
              "metadata": {"sae_lens_version": "6.0.0", "layer": 1,
                           "model_name": ORGANISM}}  # fmt: skip
    (folder / "sae/cfg.json").write_text(json.dumps(config))
    parts = {"W_enc": weights.T.contiguous(), "b_enc": torch.zeros(40), "W_dec": weights,
             "b_dec": torch.zeros(64)}  # fmt: skip
    save_file(parts, folder / "sae/sae_weights.safetensors")
    return folder


def test_help_says_what_they_do():
    listed = probe("--help").out
    assert "sae       Train a sparse autoencoder on a run's states, or measure one." in listed
    assert "features  List the features that tell some states of a run from others." in listed
    for words in (("sae", "train"), ("sae", "eval"), ("features",)):
        assert probe(*words, "--help").code == 0


def test_features_stand_beside_the_token_alone(folder):
    result = probe("features", folder / "run", "--sae", folder / "sae", "--top", 5)
    assert (result.code, result.err) == (0, "")
    about, head, *lines = result.out.splitlines()
    assert about.startswith("states ")
    assert head.split("  ")[0] == "feature"
    assert "on equal tokens" in head
    assert "token alone" in head
    assert len(lines) == 5
    found = probe("features", folder / "run", "--sae", folder / "sae", "--top", 5, "--json").json
    assert [f["feature"] for f in found["features"]] == [int(x.split()[0]) for x in lines]
    far = [abs(f["matched"] - 0.5) for f in found["features"]]
    assert far == sorted(far, reverse=True)
    assert found["about"]["positive"] == sum(-(-int(n) // 5) for n in chunk_tokens(folder / "run"))


def chunk_tokens(path):
    from entropy_probe import open_run

    return [record.captured.sum() for record in open_run(path).records()]


@pytest.mark.parametrize(
    "words",
    [
        ("--by", "strategy", "--split", ">>> "),
        ("--by", "outcome"),
        ("--by", "reason", "--word", "well", "--word", "then"),
    ],
)
def test_every_score_can_be_asked_for(folder, words):
    result = probe("features", folder / "run", "--sae", folder / "sae", "--top", 3, *words)
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 5


def test_a_page_of_cards_and_a_table_are_written(folder, tmp_path):
    result = probe(
        "features", folder / "run", "--sae", folder / "sae", "--top", 3, "--model", ORGANISM,
        "-o", tmp_path / "cards.html", "--save", tmp_path / "scores.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.last == str(tmp_path / "cards.html")
    page = (tmp_path / "cards.html").read_text()
    assert page.count("<section") == 3
    assert "raises" in page
    assert len(json.loads((tmp_path / "scores.json").read_text())["features"]) == 40


def test_a_dictionary_is_measured(folder):
    words = ("sae", "eval", folder / "sae", folder / "run", "--model", ORGANISM, "--rows", 8)
    result = probe(*words)
    assert result.code == 0, result.err
    for word in ("all", "forks", "elsewhere", "explained variance", "spliced", "recovered"):
        assert word in result.out
    found = probe(*words, "--json").json
    assert found["fits"]["all"]["l0"]["value"] == pytest.approx(8, abs=0.5)
    assert found["losses"]["forks"]["clean"]["value"] > 0
    assert "losses" in probe("sae", "eval", folder / "sae", folder / "run", "--json").json


def test_reason_scores_are_of_whole_completions(folder, tmp_path):
    words = ("--sae", folder / "sae", "--by", "reason", "--word", "well")
    found = probe("features", folder / "run", *words, "--states", 200, "--json").json["about"]
    record = open_run(folder / "run").rollouts(residuals=False)
    longest = int(record.valid.sum(dim=1).max())
    assert longest < 60
    assert 200 - longest < found["states"] <= 200
    capture(
        *load(ORGANISM), problems("short", 4, split="test", seed=0), tmp_path / "forks",
        task="arithmetic", max_new_tokens=40, residual_layers=[1], residual_positions="forks",
    )  # fmt: skip
    result = probe("features", tmp_path / "forks", *words)
    assert result.code == 2
    assert result.told[0] == "whole samples are needed, and states of some tokens are not there"
    assert "captured: top 0.2 of the batch's valid tokens" in result.told[1]
    assert "--activations all" in result.told[2]
    assert probe("features", tmp_path / "forks", "--sae", folder / "sae").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--by", "strategy"), "which strategy?"),
        (("--split", "x"), "which strategy?"),
        (("--by", "strategy", "--split", "("), "--split is no regular expression"),
        (("--by", "strategy", "--split", "nothing"), "nothing to compare"),
        (("--word", "x"), "--word without --by reason"),
        (("--by", "reason", "--word", "zzz"), "`probe features` cannot do that"),
    ],
)
def test_what_makes_no_sense_is_told(folder, words, told):
    result = probe("features", folder / "run", "--sae", folder / "sae", *words)
    assert result.code == 2
    assert result.told[0] == told


def test_runs_without_outcomes_or_states_are_told(folder, tmp_path):
    model, tokenizer = load(ORGANISM)
    capture(model, tokenizer, ["Compute "], tmp_path / "bare", max_new_tokens=3)
    bare = ("features", tmp_path / "bare", "--sae", folder / "sae")
    assert "no captured states to score" in probe(*bare).told[1]
    capture(
        model, tokenizer, ["Compute "], tmp_path / "plain", max_new_tokens=3, residual_layers=[1]
    )
    plain = ("features", tmp_path / "plain", "--sae", folder / "sae", "--by", "outcome")
    assert probe(*plain).told[0] == "no outcomes to tell apart"
    assert probe("features", folder / "run", "--sae", tmp_path / "no").code == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layer", "last"), "which layer?"),
        (("--positions", "forks=2"), "invalid value for '--positions'"),
        (("--k", "2.5"), "`probe sae` cannot do that"),
    ],
)
def test_trainings_that_make_no_sense_are_told(folder, tmp_path, words, told):
    result = probe("sae", "train", folder / "run", "-o", tmp_path / "sae", *words)
    assert result.code == 2
    assert result.told[0] == told


@pytest.mark.slow
def test_a_dictionary_is_trained_and_gone_on_with(folder, tmp_path):
    needs("sae_lens")
    words = ("sae", "train", folder / "run", "-o", tmp_path / "sae", "--samples", 4000, "--k", 4,
             "--batch-size", 100, "--features", 32, "--positions", "forks=0.5")  # fmt: skip
    result = probe(*words)
    assert result.code == 0, result.err
    assert result.last == str(tmp_path / "sae")
    assert "SparseDictionary(topk, 32 features of 64 after block 1" in result.err
    again = probe(*words, "--resume", "--json").json
    assert (again["layer"], again["features"], again["architecture"]) == (1, 32, "topk")
    assert probe(*words).code == 2
    assert probe("sae", "eval", tmp_path / "sae", folder / "run", "--json").code == 0
