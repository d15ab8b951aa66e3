"""The verdicts come out both ways on models of which it is known what their gain is."""

import json

import pytest
import torch
from safetensors.torch import save_file

from analyses.sae.verdicts import LAYER, PAIRS, main
from entropy_probe import load, sample
from entropy_probe.tasks import get_task
from sae_steering.verdicts import CHANCE, LEAST_GAIN, NOT_SHOWN, SHOWN, UNSPECIFIC

pytestmark = pytest.mark.slow
ORDERS = ("shuffled 1", "shuffled 2")


def write_axes(folder, organism):
    """Write a dictionary whose features are the two ends of the states' principal axes."""
    model, tokenizer = load(f"organism:{organism}")
    prompts = [p.prompt for p in get_task("arithmetic").problems(400, split="train", seed=9)]
    drawn = sample(
        model, tokenizer, prompts, max_new_tokens=1, residual_layers=[LAYER],
        residual_positions="all", batch_size=400,
    )  # fmt: skip
    states = drawn.residuals[LAYER].float()
    _, _, axes = torch.linalg.svd(states - states.mean(dim=0), full_matrices=False)
    ends = torch.cat([axes[:64], -axes[:64]])
    folder.mkdir()
    config = {"architecture": "standard", "d_in": 128, "d_sae": 128, "dtype": "float32",
              "metadata": {"sae_lens_version": "6.0.0", "layer": LAYER}}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    parts = {"W_enc": ends.T.contiguous(), "b_enc": torch.zeros(128), "W_dec": ends.contiguous(),
             "b_dec": states.mean(dim=0)}  # fmt: skip
    save_file(parts, folder / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Give what came out for each pair; the siblings are trained once."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("verdicts")
    for organism in ("amenable", "absent"):
        write_axes(folder / f"sae-{organism}", organism)
    results = folder / "lines.jsonl"
    words = ["--folder", str(folder), "--results", str(results), "--problems", "60", "--n", "4"]
    assert main([*words, "--randoms", "0", "--only", *PAIRS, *ORDERS]) == 0
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    for name in (*PAIRS, *ORDERS):
        folder_of_page = folder / "evidence" / name.replace(" ", "-")
        assert (folder_of_page / "evidence.html").exists()
    return {line["key"]: line for line in lines}


def test_it_is_shown_where_reinforcement_elicits(found):
    line = found["amenable"]
    assert line["capability"] == SHOWN
    assert line["gain"]["low"] > LEAST_GAIN
    recovered = line["shares"]["features"]["value"] >= 0.5
    assert line["carried"] == (UNSPECIFIC if recovered else NOT_SHOWN)


def test_a_word_does_as_well_as_the_features(found):
    line = found["amenable"]
    (word,) = [n for n in line["shares"] if n in ("begin with code", "begin with '>>> '")]
    assert line["shares"][word]["value"] > 0.5
    assert line["ahead"][word]["low"] <= 0  # the features are not ahead of the word


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_not_shown_with_shuffled_labels(found, order):
    """It is there, and a blind direction may point at it: as other orders' directions do."""
    line = found[order]
    assert (line["capability"], line["carried"]) == (NOT_SHOWN, NOT_SHOWN)
    for name in ("features", "mean difference"):
        chosen = line["chosen"][name]
        blind = {each["length"]: each["dealt out"]["value"] for each in chosen["tried"]}
        assert blind[chosen["length"]] == max(blind.values())
    for blind in line["blind"].values():
        assert len(blind["others"]) == 100
        assert blind["chance"] > CHANCE


def test_it_is_not_shown_where_the_gain_was_taught(found):
    line = found["taught"]
    assert line["gain"]["low"] > 0.15
    assert (line["capability"], line["carried"]) == (NOT_SHOWN, NOT_SHOWN)
    assert line["shares"]["begin with code"]["value"] < 0.2


@pytest.mark.parametrize("pair", ["absent", "random weights"])
def test_it_is_not_shown_where_there_is_nothing_to_show(found, pair):
    assert (found[pair]["capability"], found[pair]["carried"]) == (NOT_SHOWN, NOT_SHOWN)
    assert found[pair]["would change"]


def test_a_second_call_computes_nothing_again(found, tmp_path, capsys):
    results = tmp_path / "lines.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in found.values()))
    words = ["--folder", str(tmp_path / "none"), "--results", str(results)]
    assert main([*words, "--only", *found]) == 0
    assert capsys.readouterr().out.startswith("amenable: base ")
    assert not (tmp_path / "none").exists()
