"""On a GPU, what a CPU gives: the commands, the recorder, the update and steering."""

import math
from functools import partial
from importlib import metadata

import pytest
import torch
from commands import probe
from dictionaries import tiny_dictionary, write_dictionary
from tiny import tiny_model, tiny_tokenizer
from updates import furthest, make_batch, random_mask, take_gradients, trainable

from entropy_probe import describing, open_run, sample, score
from entropy_probe.sampling import Sampling
from entropy_probe.training.journal import read_log
from entropy_probe.training.recorder import Recorder
from entropy_probe.training.sparse import policy_step
from sae_steering import steer

pytestmark = pytest.mark.gpu

KEPT = {"residual_positions": "none", "fraction": 0.2}
ORGANISM = "organism:amenable-300k"
TASK = ("--model", ORGANISM, "--task", "arithmetic", "--limit", 6)
GREEDY = ("--n", 2, "--max-new-tokens", 24, "--temperature", 0, "--layers", 1)


@pytest.fixture(autouse=True)
def verbs(monkeypatch):
    """Let the verbs be there whatever the metadata of the installation says."""
    entries = tuple(
        metadata.EntryPoint(n, f"sae_steering.cli.{n}:{n}", "entropy_probe.verbs")
        for n in ("sae", "features", "steer", "evidence")
    )
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: entries if group == "entropy_probe.verbs" else ()
    )


def told(*words):
    result = probe(*words)
    assert result.code == 0, result.err
    return result


def test_a_run_is_that_of_a_cpu_and_says_which_gpu_it_was(tmp_path):
    for device in ("cuda", "cpu"):
        more = () if device == "cuda" else ("--device", device)
        told("capture", *TASK, *GREEDY, *more, "-o", tmp_path / device)
    here, there = (open_run(tmp_path / device).rollouts() for device in ("cpu", "cuda"))
    assert torch.equal(here.tokens, there.tokens)
    torch.testing.assert_close(there.entropy, here.entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(there.residuals[1], here.residuals[1], rtol=1e-3, atol=1e-4)
    assert torch.cuda.get_device_name() in (tmp_path / "cuda" / "run.json").read_text()
    told("score", tmp_path / "cuda", "--model", ORGANISM, "-o", tmp_path / "again")
    again = open_run(tmp_path / "again").rollouts()
    torch.testing.assert_close(again.entropy, there.entropy, rtol=0, atol=1e-4)


def test_training_runs(tmp_path):
    words = ("train", "--model", ORGANISM, "--task", "arithmetic", "--problems", 16, "--prompts",
             4, "--n", 4, "--max-new-tokens", 30, "--lr", 0.01, "--optimizer", "sgd")  # fmt: skip
    told(*words, "--steps", 4, "-o", tmp_path / "whole", "--checkpoint-every", 2)
    log = [line for line in read_log(tmp_path / "whole") if "loss" in line]
    assert len(log) == 4
    assert all(math.isfinite(line["loss"]) for line in log)
    assert any(line["loss"] for line in log)


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 40, "temperature": 1.3}], ids=str
)
@pytest.mark.parametrize("rows", [5, 13])
def test_draws_replayed_as_a_graph_are_those_of_its_kernels(how, rows, monkeypatch):
    monkeypatch.setitem(describing.DRAWN, "cuda", 4 * 150_000)  # several at a time
    more = {"n": 1, "max_new_tokens": 9, "top_p": 1.0, "top_k": 0, "alternatives": 5, "seed": 3}
    settings = Sampling(**more | {"temperature": 1.0, "batch_size": 13} | KEPT | how)
    plain = partial(describing.draw_and_describe, settings=settings)
    replayed = describing.Replayed(plain, 13)
    for step in range(3):
        logits = (3 * torch.randn(rows, 150_000, device="cuda")).bfloat16()
        numbers, made = torch.arange(rows).cuda(), torch.full((rows,), step).cuda()
        wanted = plain(logits, numbers, made)
        for mine, theirs in zip(replayed(logits, numbers, made), wanted, strict=True):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)  # sums of other shapes


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_gradients_are_those_of_a_cpu(family, packed):
    model = trainable(family)
    batch = make_batch(model)
    kept = random_mask(batch.valid)
    how = {"kept": kept, "denominator": float(kept.sum()), "packed": packed}
    here = policy_step(model, batch, **how).loss, take_gradients(model)
    model.cuda()
    there = policy_step(model, batch, **how).loss, take_gradients(model)
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    assert furthest({k: v.cpu() for k, v in there[1].items()}, here[1]) < 1e-4


def test_what_passes_is_recorded():
    model = tiny_model().cuda()
    ids = torch.randint(3, 97, (4, 11), generator=torch.Generator().manual_seed(2)).cuda()
    with Recorder(model, layers=[1], residual_positions="all") as recorder, torch.no_grad():
        model.generate(ids, max_new_tokens=6, do_sample=True, pad_token_id=0, eos_token_id=None)
    found = recorder.rollouts()
    wanted = score(
        model.cpu(), tiny_tokenizer(), found.tokens, found.valid, residual_layers=[1],
        prompt_lengths=found.prompt_lengths, residual_positions="all",
    )  # fmt: skip
    torch.testing.assert_close(found.entropy, wanted.entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.residuals[1].cpu(), wanted.residuals[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate", "replace"])
def test_a_dictionary_may_stay_on_the_cpu(mode):
    sae, tokenizer, texts = tiny_dictionary(), tiny_tokenizer(), {}
    how = {"max_new_tokens": 8, "temperature": 0.0}
    for device in ("cpu", "cuda"):
        with steer(tiny_model().to(device), sae, {3: 2.0, 7: 1.0}, mode=mode) as steered:
            texts[device] = sample(steered, tokenizer, ["w5 w6 "], **how)
    assert torch.equal(texts["cpu"].tokens, texts["cuda"].tokens)
    torch.testing.assert_close(texts["cuda"].entropy, texts["cpu"].entropy, rtol=0, atol=1e-3)


def test_a_dictionary_is_measured_where_the_model_is(tmp_path):
    told("capture", *TASK, *GREEDY, "--activations", "all", "-o", tmp_path / "run")
    write_dictionary(tmp_path / "sae", 64, 40, layer=1, model_name=ORGANISM)
    words = ("sae", "eval", tmp_path / "sae", tmp_path / "run", "--model", ORGANISM, "--json")
    there, here = (told(*words, *more).json["losses"] for more in ((), ("--device", "cpu")))
    for place, losses in here.items():
        for name in ("clean", "spliced", "ablated"):
            wanted = losses[name]["value"]
            assert there[place][name]["value"] == pytest.approx(wanted, abs=1e-3)


def test_the_verbs_of_dictionaries_run(tmp_path):
    pytest.importorskip("sae_lens")
    told("capture", *TASK, *GREEDY, "--activations", "all", "-o", tmp_path / "run")
    words = ("--samples", 4000, "--k", 4, "--features", 80, "--device", "cuda")
    told("sae", "train", tmp_path / "run", "-o", tmp_path / "sae", *words)
    held = ("--sae", tmp_path / "sae", "--model", ORGANISM)
    told("features", tmp_path / "run", *held, "--top", 2, "-o", tmp_path / "cards.html")
    for where in ("all", "forks"):
        told("steer", *held, "--task", "arithmetic", "--limit", 3, "--max-new-tokens", 12,
             "--feature", 3, "--strength", 5, "--where", where,
             "-o", tmp_path / f"{where}.html")  # fmt: skip
    small = ("--limit", 6, "--choose-on", 6, "--n", 2, "--max-new-tokens", 24, "--randoms", 1,
             "--latents", 1, "--feature", 3, "--strength", 20)  # fmt: skip
    told("evidence", "--base", ORGANISM, "--trained", ORGANISM, "--task", "arithmetic",
         "--sae", tmp_path / "sae", "-o", tmp_path / "out", *small)  # fmt: skip
