"""`probe score`: texts and runs, described as `score` describes them."""

import math
from pathlib import Path

import pytest
import torch
from commands import files_under, probe, tiny_folder, write_run
from hostile import record_of

from entropy_probe import load, open_run


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def score(*words, stdin=b""):
    return probe("score", "--model", tiny_folder(), *words, stdin=stdin)


def captured(*words):
    made = probe(
        "capture", "--model", tiny_folder(), "-p", "w1 w2 ", "-p", "w3 ", "--n", 2,
        "--max-new-tokens", 8, "--temperature", 0.5, *words, "-o", "run", "-q",
    )  # fmt: skip
    assert made.code == 0
    return open_run("run").rollouts()


def test_a_text_is_described_from_its_second_token_on():
    result = score("-p", "w5 w6 w7 w8 ", "--temperature", 2, "-o", "scored", "--json")
    assert result.json["tokens"] == 3
    found = open_run("scored").rollouts()
    model, tokenizer = load(tiny_folder())
    ids = tokenizer("w5 w6 w7 w8 ", return_tensors="pt").input_ids
    assert found.tokens.tolist() == ids.tolist()
    assert found.valid.tolist() == [[False, True, True, True]]
    with torch.no_grad():
        logits = model(ids).logits.double()[0, :-1] / 2
    wanted = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(found.entropy[0, 1:].double(), wanted.entropy(), atol=1e-4)
    assert torch.allclose(found.logprobs[0, 1:].double(), wanted.log_prob(ids[0, 1:]), atol=1e-4)


def test_a_run_scored_by_its_own_model_is_the_run_again():
    before = captured()
    result = score("run", "--layers", "last", "--activations", "all", "-o", "scored")
    assert (result.code, result.out) == (0, "scored\n")
    found = open_run("scored").rollouts()
    assert torch.equal(found.tokens, before.tokens)
    assert torch.equal(found.valid, before.valid)
    assert torch.equal(found.groups, before.groups)
    assert found.provenance.entropy_temperature == 0.5
    assert torch.allclose(found.entropy, before.entropy, atol=1e-4)
    assert found.residuals[2].shape[0] == int(found.valid.sum())


def test_prompts_and_another_temperature_on_request():
    before = captured()
    score("run", "--include-prompts", "--temperature", 1, "--limit", 3, "-o", "scored")
    found = open_run("scored").rollouts()
    assert len(found) == 3
    assert int(found.valid.sum()) == int((before.lengths[:3] - 1).sum())
    assert found.provenance.entropy_temperature == 1


def test_rewards_stay_and_unknown_ones_do_not_count():
    rewards = torch.tensor([math.nan, 1.0, 0.5])
    write_run(Path("run"), record_of([b"w1 ", b"w2 "], rows=3).with_rewards(rewards))
    assert score("run", "-o", "scored", "--json").json["mean_reward"] == 0.75
    assert open_run("scored").rollouts().rewards[1:].tolist() == [1, 0.5]


def test_files_of_texts_and_standard_input():
    Path("texts").write_text('{"prompt": "w1 w2 "}\n{"prompt": "w3 w4 "}\n')
    assert score("--prompts", "texts", "-o", "a").code == 0
    assert score("--prompts", "-", "-o", "b", stdin=b"w1 w2 \nw3 w4 \n").code == 0
    first, second = open_run("a").rollouts(), open_run("b").rollouts()
    assert torch.equal(first.entropy, second.entropy)


def test_scores_that_were_cut_off_go_on_alone():
    captured()
    score("run", "-o", "scored")
    whole = open_run("scored").rollouts()
    for table in ("samples", "tokens"):
        Path(f"scored/{table}.parquet/chunk-00000.parquet").unlink()
    wrong = probe("capture", "--resume", "-o", "scored")
    assert (wrong.code, wrong.told[2]) == (2, "probe score --resume -o scored")
    result = probe("score", "--resume", "-o", "scored")
    assert result.code == 0, result.err
    assert torch.equal(open_run("scored").rollouts().entropy, whole.entropy)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "there are no prompts"),
        (("run", "-p", "w1 w2 "), 2, "a run and texts exclude each other"),
        (("nothing",), 2, "'nothing' is not a run directory"),
        (("-p", "w1 "), 2, "has no token to score"),
        (("-p", ""), 2, "prompt 0 is empty"),
        (("-p", "w1 " * 129), 2, "the model's context is 128"),
        (("run", "--layers", "3"), 2, "layer 3 is out of range"),
        (("run", "--head", "liger"), 2, "no ranks and no alternatives"),
        (("run", "--head", "liger", "--alternatives", "0"), 2, "kernel for CUDA"),
        (("run", "--temperature", "0"), 2, "'--temperature'"),
        (("run", "--fraction", "2"), 2, "'--fraction'"),
        (("run", "-o", "run"), 2, "'run' already holds a run"),
        (("run", "-o", "run", "--overwrite"), 2, "both what is to be read and where to write"),
        (("run", "-o", "run/../run/", "--overwrite"), 2, "both what is to be read"),
        (("run", "-o", "/proc/x"), 1, "cannot write to '/proc/x'"),
        (("empty",), 5, "none of its chunks has been computed"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(words, code, text):
    captured()
    Path("empty").mkdir()
    Path("empty/run.json").write_bytes(Path("run/run.json").read_bytes())
    before = files_under(Path())
    result = score(*words)
    assert result.code == code, result.err
    assert text in " ".join(result.told)
    assert files_under(Path()) == before
