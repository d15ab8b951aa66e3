"""TRL's GRPOTrainer restricted to our selections: trains on CPU, and its loss is the one meant."""

import copy
import importlib
import importlib.metadata
import json
import math
import os
import socket

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import open_run, score
from entropy_probe.cli import main
from entropy_probe.training import Selection, preset
from entropy_probe.training.recorder import Recorder
from entropy_probe.training.trl import fork_grpo_trainer
from entropy_probe.training.trl_limits import costs

pytestmark = pytest.mark.slow

PROMPTS = [f"w{i} w{i + 3} w{i + 7} " for i in range(0, 24, 3)]


@pytest.fixture(scope="module", autouse=True)
def trl():
    if not os.environ.get("PROBE_REQUIRE_TRL"):
        pytest.importorskip("trl", reason="the trl extra is not installed")
    return importlib.import_module("trl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and its tokenizer, as files."""
    path = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(2, 12))  # rows end at different lengths
    model.save_pretrained(path)
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(path)
    return path


def reward(completions, **others):
    """The share of words with an even number, which differs between completions."""
    words = [[int(w[1:]) for w in text.split() if w[1:].isdigit()] for text in completions]
    return [sum(n % 2 == 0 for n in row) / max(len(row), 1) for row in words]


def trainer(kind, folder, out, **options):
    """Construct a trainer of TRL's or ours for a few steps on the CPU."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig

    given = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
        "max_completion_length": 10, "max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1,
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "seed": 3,
        "gradient_checkpointing": False, "disable_tqdm": True, "temperature": 1.3,
    }  # fmt: skip
    return kind(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=reward,
        args=GRPOConfig(str(out), **(given | options)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
    )


def trained(kind, folder, out, **options) -> dict[str, torch.Tensor]:
    """Train; constructing the trainer sets the seed of what it draws."""
    made = trainer(kind, folder, out, **options)
    made.train()
    return made.model.state_dict()


def chosen(**options) -> Selection:
    return Selection(**({"temperature": 1.3} | options))


def steps_of(made) -> list[dict]:
    return [line for line in made.state.log_history if "loss" in line]


@pytest.mark.parametrize("source", ["rollout", "old", "current"])
def test_a_run_trains_and_logs_a_fifth_kept(source, folder, tmp_path):
    made = trainer(fork_grpo_trainer(chosen(entropy_source=source)), folder, tmp_path)
    before = copy.deepcopy(made.model.state_dict())
    made.train()
    for line in steps_of(made):
        tokens = round(line["completions/mean_length"] * 16)
        assert line["forks/kept_share"] == pytest.approx(math.ceil(tokens / 5) / tokens)
        assert abs(line["forks/kept_share"] - 0.2) < 1 / tokens
        assert line["forks/entropy_kept"] > line["forks/entropy_all"] > 0
        assert line["forks/entropy_all"] == pytest.approx(line["entropy"], abs=0.02)
        assert line["forks/threshold"] > line["forks/entropy_all"]
    assert len(steps_of(made)) == 3
    assert any(not torch.equal(v, before[k]) for k, v in made.model.state_dict().items())


def spying(kind):
    """Keep each micro-batch of a trainer, the weights that its loss was computed with, and it."""

    class Spy(kind):
        def _compute_loss(self, model, inputs):
            weights = copy.deepcopy(self.model.state_dict())
            loss = super()._compute_loss(model, inputs)
            self.seen = [*getattr(self, "seen", []), (dict(inputs), weights, loss.detach().clone())]
            return loss

    return Spy


def by_hand(model, window, fraction: float, low: float = 0.2, high: float = 0.2):
    """Give each micro-batch's share of the loss, from dense logits, and check what was kept.

    Siblings begin with the same distribution, so entropies tie but for their last bits: the
    tokens must be the most uncertain ones to 1e-4 nats, and exactly as many as they should.
    """
    tokens = []
    for part, (batch, weights, _) in enumerate(window):
        model.load_state_dict(weights)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        start = batch["prompt_ids"].shape[1]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, start - 1 : -1].double()
        scores = (logits / 1.3).log_softmax(-1)
        own = scores.gather(-1, ids[:, start:, None])[..., 0]
        old = batch.get("old_per_token_logps", own)
        for row, t in batch["completion_mask"].nonzero().tolist():
            entropy = -(scores[row, t].exp() * scores[row, t]).sum().item()
            ratio = (own[row, t] - old[row, t]).exp().item()
            advantage = batch["advantages"][row].item()
            tokens.append((part, entropy, ratio, advantage, bool(batch["fork_kept"][row, t])))
    kept = [entropy for _, entropy, _, _, keep in tokens if keep]
    assert len(kept) == math.ceil(fraction * len(tokens))
    assert min(kept) > max(entropy for _, entropy, _, _, keep in tokens if not keep) - 1e-4
    losses = [0.0] * len(window)
    for part, _, ratio, advantage, keep in tokens:
        clipped = min(max(ratio, 1 - low), 1 + high)
        losses[part] -= keep * min(ratio * advantage, clipped * advantage) / len(kept)
    return losses


def test_the_loss_is_the_mean_over_the_forks_of_the_optimizer_step(folder, tmp_path):
    """Two optimizer steps a generation, each gone through twice: the ratio moves away from 1."""
    kind = spying(fork_grpo_trainer(chosen(entropy_source="current")))
    made = trainer(
        kind, folder, tmp_path, steps_per_generation=4, num_iterations=2, max_steps=4,
        learning_rate=3e-3,
    )  # fmt: skip
    made.train()
    assert len(made.seen) == 8
    ratios = [line["forks/ratio_gap_kept"] for line in steps_of(made)]
    assert ratios[0] == pytest.approx(0, abs=1e-5)
    assert ratios[-1] > 1e-3
    model = tiny_model()
    for first in range(0, 8, 2):
        window = made.seen[first : first + 2]
        expected = by_hand(model, window, 0.2)
        found = [float(loss) for _, _, loss in window]
        assert max(map(abs, expected)) > 1e-3
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("source", ["rollout", "old"])
def test_masks_of_the_rollout_are_fixed_before_the_update(source, folder, tmp_path):
    kind = spying(fork_grpo_trainer(chosen(entropy_source=source)))
    made = trainer(kind, folder, tmp_path, num_iterations=2, max_steps=4)
    made.train()
    first, again = made.seen[:2], made.seen[2:4]
    for (one, _, _), (other, weights, _) in zip(first, again, strict=True):
        assert torch.equal(one["completion_ids"], other["completion_ids"])
        assert torch.equal(one["fork_kept"], other["fork_kept"])
        assert not torch.equal(weights["lm_head.weight"], first[0][1]["lm_head.weight"])
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.load_state_dict(first[0][1])
    entropies, kept = [], []
    for batch, _, _ in first:
        for row, length in enumerate(batch["completion_mask"].sum(1).tolist()):
            prompt = batch["prompt_ids"][row, batch["prompt_mask"][row].bool()]
            tokens = torch.cat([prompt, batch["completion_ids"][row, :length]])[None]
            valid = (torch.arange(tokens.shape[1]) >= len(prompt))[None]
            entropies += score(model, tokenizer, tokens, valid, temperature=1.3).entropy[valid]
            kept += batch["fork_kept"][row, :length].tolist()
    least = min(e for e, k in zip(entropies, kept, strict=True) if k)
    most = max(e for e, k in zip(entropies, kept, strict=True) if not k)
    assert least > most - 1e-4
    assert sum(kept) == math.ceil(len(kept) / 5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps_per_generation": 4},
        {"loss_type": "bnpo"},
        {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.03},  # masks change in between
    ],
)
def test_the_preset_is_stock_trl_to_the_bit(options, folder, tmp_path):
    from trl import GRPOTrainer

    ours = fork_grpo_trainer(preset("trl", fraction=0.2, temperature=1.3))
    stock = trained(GRPOTrainer, folder, tmp_path, top_entropy_quantile=0.2, **options)
    mine = trained(ours, folder, tmp_path, **options)
    plain = trained(GRPOTrainer, folder, tmp_path, **options)
    assert all(torch.equal(v, mine[k]) for k, v in stock.items())
    assert any(not torch.equal(v, plain[k]) for k, v in stock.items())


@pytest.mark.parametrize(
    "options", [{}, {"importance_sampling_level": "sequence", "loss_type": "grpo"}]
)
def test_everything_kept_is_plain_trl_to_the_bit(options, folder, tmp_path):
    from trl import GRPOTrainer

    ours = fork_grpo_trainer(Selection(select="all", normalizer="valid"))
    mine, plain = (trained(kind, folder, tmp_path, **options) for kind in (ours, GRPOTrainer))
    assert all(torch.equal(v, plain[k]) for k, v in mine.items())


def test_the_kept_share_does_not_depend_on_the_micro_batches(folder, tmp_path):
    """The same generation, as 2 micro-batches of 8 rows and as 8 of 2: one mask."""
    masks = []
    for size in (8, 2):
        kind = spying(fork_grpo_trainer(chosen(entropy_source="old")))
        made = trainer(
            kind, folder, tmp_path, max_steps=1, per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
        )  # fmt: skip
        made.train()
        masks.append(
            {
                int(number): mask.tolist()
                for batch, _, _ in made.seen
                for number, mask in zip(batch["fork_rows"], batch["fork_kept"], strict=True)
            }
        )
    assert masks[0] == masks[1]
    assert len(masks[0]) == 16


@pytest.mark.parametrize(
    ("selection", "share"),
    [
        (Selection(select="random", fraction=0.5), 0.5),
        (chosen(select="surprise", fraction=0.1, entropy_source="old"), 0.1),
        (chosen(scope="sequence", average="sequence"), 0.25),
        (preset("paper", fraction=0.2, temperature=1.3), 0.2),
    ],
)
def test_other_selections_train_too(selection, share, folder, tmp_path):
    made = trainer(fork_grpo_trainer(selection), folder, tmp_path, max_steps=1)
    made.train()
    assert steps_of(made)[0]["forks/kept_share"] == pytest.approx(share, abs=0.06)


def test_rollouts_are_saved_as_runs_that_the_report_opens(folder, tmp_path, capsys):
    kind = fork_grpo_trainer(chosen(), out=tmp_path / "rollouts", every=2, rows=6)
    made = trainer(kind, folder, tmp_path / "trl", logging_steps=1, log_completions=True)
    made.train()
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == ["step-00000", "step-00002"]
    run = open_run(tmp_path / "rollouts" / "step-00000")
    rollouts = run.rollouts()
    assert len(rollouts) == 6
    assert rollouts.groups.tolist() == [0, 0, 0, 0, 1, 1]
    texts = [rollouts.completion(row) for row in range(6)]
    assert rollouts.rewards.tolist() == pytest.approx(reward(texts))
    assert (run.provenance.temperature, run.provenance.entropy_temperature) == (1.3, 1.3)
    fresh = score(
        tiny_model(), tiny_tokenizer(), rollouts.tokens, rollouts.valid, temperature=1.3,
        prompt_lengths=rollouts.prompt_lengths,
    )  # fmt: skip
    torch.testing.assert_close(rollouts.entropy, fresh.entropy, rtol=0, atol=1e-4)
    assert json.loads(run.samples()["facts"][0].as_py())["step"] == 0
    page = tmp_path / "page.html"
    assert main(["report", str(run.path), "-o", str(page)]) == 0
    assert "step 0 of TRL" in page.read_text()
    capsys.readouterr()


def test_completions_that_trl_logged_open_in_the_report_once_scored(folder, tmp_path, capsys):
    from trl import GRPOTrainer

    made = trainer(GRPOTrainer, folder, tmp_path / "trl", log_completions=True, max_steps=2)
    made.train()
    logged = tmp_path / "trl" / "completions"
    assert [path.name for path in sorted(logged.iterdir())] == [
        "completions_00001.parquet", "completions_00002.parquet",
    ]  # fmt: skip
    texts, scored, page = (str(tmp_path / name) for name in ("texts", "scored", "page.html"))
    assert main(["import", str(logged), "-o", texts]) == 0
    command = ["score", "--model", str(folder), texts, "-o", scored, "--temperature", "1.3"]
    assert main(command) == 0
    assert main(["report", scored, "-o", page]) == 0
    rollouts = open_run(scored).rollouts()
    assert len(rollouts) == 32
    assert len(set(rollouts.groups.tolist())) == 8
    expected = reward([rollouts.completion(row) for row in range(32)])
    assert rollouts.rewards.tolist() == pytest.approx(expected)
    assert float(rollouts.entropy[rollouts.valid].mean()) > 0.5
    assert "w" in (tmp_path / "page.html").read_text()
    capsys.readouterr()


def test_the_recorder_reads_trls_fused_head(folder, tmp_path):
    """Generation by its logits, the loss by the fused head's own entropies: nothing runs twice."""
    from trl import GRPOTrainer

    made = trainer(GRPOTrainer, folder, tmp_path, max_steps=1)
    with Recorder(made.model, temperature=1.3, tokenizer=tiny_tokenizer()) as recorder:
        made.train()
    rows = recorder.records()
    assert [row.training for row in rows] == [False] * 16 + [True] * 16
    trained = rows[16:]
    model = tiny_model()
    tokens = trained[0].tokens[None]
    with torch.no_grad():
        scores = (model(input_ids=tokens).logits[0, :-1].double() / 1.3).log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    valid = trained[0].valid
    assert int(valid.sum()) >= 1
    torch.testing.assert_close(
        trained[0].entropy[valid], entropy[valid[1:]].float(), rtol=0, atol=1e-4
    )
    by_tokens = {tuple(row.tokens.tolist()): row for row in rows[:16]}
    assert sum(tuple(row.tokens[:-1].tolist()) in by_tokens for row in trained) >= 1


def trained_by_a_process(rank, port, folder, out):
    """Train in one of two processes; keep what its losses were computed from."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    torch.set_num_threads(1)
    kind = spying(fork_grpo_trainer(chosen(entropy_source="old"), out=out / "rollouts"))
    made = trainer(kind, folder, out / "trl", per_device_train_batch_size=4, max_steps=2)
    with Recorder(made.model, temperature=1.3, tokenizer=tiny_tokenizer()) as recorder:
        made.train()
        written = recorder.save(out / "recorded")
    assert (written is None) == (rank == 1)
    assert sum(row.training for row in recorder.records()) == (0 if rank else 16)
    torch.save((made.seen, steps_of(made), made.model.state_dict()), out / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_choose_over_both_and_divide_by_both(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(trained_by_a_process, (port, folder, tmp_path), nprocs=2)
    (seen, logged, weights), (others, _, their_weights) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)
    )
    assert all(torch.equal(v, their_weights[k]) for k, v in weights.items())
    model = tiny_model()
    for step in range(2):
        window = [*seen[2 * step : 2 * step + 2], *others[2 * step : 2 * step + 2]]
        rows = torch.cat([batch["fork_rows"] for batch, _, _ in window])
        assert sorted(rows.tolist()) == list(range(16))
        kept = sum(int(batch["fork_kept"].sum()) for batch, _, _ in window)
        tokens = sum(int(batch["completion_mask"].sum()) for batch, _, _ in window)
        assert kept == math.ceil(tokens / 5)
        assert logged[step]["forks/kept_share"] == pytest.approx(kept / tokens)
        # Gradients are averaged over the two processes.
        expected = [2 * value for value in by_hand(model, window, 0.2)]
        assert [float(loss) for _, _, loss in window] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert len(open_run(tmp_path / "rollouts" / "step-00000")) == 8
    assert len(open_run(tmp_path / "recorded")) > 16


@pytest.mark.parametrize(
    ("selection", "options", "message"),
    [
        (chosen(), {"top_entropy_quantile": 0.2}, "are two masks"),
        (Selection(), {}, "at temperature 1.0, TRL's at that of its config, 1.3"),
        (chosen(), {"loss_type": "bnpo"}, "'bnpo' has a denominator of its own"),
        (
            preset("trl", temperature=1.3),
            {"importance_sampling_level": "sequence", "loss_type": "grpo"},
            "those off the mask would be trained through it: use 'token', or",
        ),
        (chosen(), {"steps_per_generation": 1}, "a multiple of gradient_accumulation_steps"),
        (chosen(), {"use_transformers_continuous_batching": True}, "entropy_source='old'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(selection, options, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(fork_grpo_trainer(selection), folder, tmp_path, **options)


def test_a_kl_at_all_tokens_is_refused_unless_asked_for(folder, tmp_path):
    with pytest.raises(ValueError, match=r"with beta=0.1 pass Selection\(mask_kl=False\)"):
        trainer(fork_grpo_trainer(chosen()), folder, tmp_path, beta=0.1)
    made = trainer(fork_grpo_trainer(chosen(mask_kl=False)), folder, tmp_path, beta=0.1)
    made.train()
    assert steps_of(made)[-1]["kl"] > 0


def test_another_version_of_trl_is_an_error_that_names_the_right_one(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.10.0")
    with pytest.raises(ImportError, match=r"TRL 1.10.0 is installed, and this works with 1.16"):
        fork_grpo_trainer(Selection())

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="TRL is not installed"):
        fork_grpo_trainer(Selection())


def test_counts_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="every must be a whole number"):
        fork_grpo_trainer(Selection(), every=0)


def test_costs_are_told_for_each_source():
    assert "no pass" in costs(Selection())[-1]
    assert "each generated batch" in costs(Selection(entropy_source="old"))[-1]
    assert "each update" in costs(Selection(entropy_source="current"))[-1]
    assert "pass of the loss itself" in costs(preset("trl"))[-1]
