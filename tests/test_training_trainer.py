"""The loop as a whole: it learns, where it should, and says what it did."""

import copy
import inspect
import json
import math

import pytest
import torch
from odd_heads import Sharpened
from tiny import CONFIGS, tiny_model, tiny_tokenizer
from words import Words, quick

from entropy_probe import open_run, sample
from entropy_probe.advantages import group_advantages
from entropy_probe.forking import forking_mask
from entropy_probe.storage.errors import RunConflict
from entropy_probe.training.collecting import NothingToLearn, problem_at, seed_of
from entropy_probe.training.folder import read_about
from entropy_probe.training.journal import read_log
from entropy_probe.training.options import Selection
from entropy_probe.training.rewards import RewardError
from entropy_probe.training.trainer import train

TOKENIZER = tiny_tokenizer()
SURE = Selection(select="all")


def even(completions):
    """Reward the share of words of even number: something that every token has a part in."""
    found = []
    for completion in completions:
        words = [word for word in completion.text.split(" ") if word.startswith("w")]
        found.append(sum(int(w[1:]) % 2 == 0 for w in words) / max(len(words), 1))
    return found


def run(model=None, **options):
    """Train a tiny model; give it, and what came of it."""
    model = tiny_model() if model is None else model
    outer = {
        k: options.pop(k) for k in ("out", "resume", "log", "should_stop", "task") if k in options
    }
    reward = options.pop("reward", "correct")
    task = outer.pop("task", Words())
    result = train(model, TOKENIZER, task, config=quick(**options), reward=reward, **outer)
    return model, result


def steps(result):
    return [line for line in result.log if line["kind"] == "step"]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def distance(one, other):
    one, other = weights(one), weights(other)
    return float(sum(((one[name] - other[name]) ** 2).sum() for name in one).sqrt())


def assert_close(one, other, *, rtol=1e-4):
    """Two models have moved alike from where they began."""
    assert distance(other, tiny_model()) > 0
    assert distance(one, other) < rtol * distance(other, tiny_model())


# What it learns


def test_it_learns_what_is_rewarded():
    model = tiny_model(spread=2.0)
    options = {"prompts": 8, "steps": 9, "optimizer": "adamw", "lr": 0.03, "max_new_tokens": 4}
    _, result = run(model, reward=even, **options)
    rewards = [line["reward_mean"] for line in steps(result)]
    assert sum(rewards[:3]) / 3 < 0.6
    assert sum(rewards[-3:]) / 3 > 0.75


def test_at_rate_0_it_changes_nothing():
    for optimizer in ("sgd", "adamw"):
        model, result = run(lr=0.0, optimizer=optimizer)
        assert_same(model, tiny_model())
        assert steps(result)[0]["gradient_norm"] > 0
    assert not torch.equal(run(lr=0.01)[0].lm_head.weight, tiny_model().lm_head.weight)


def by_hand(selection, *, rate=0.01):
    """Do a step of plain policy gradient, with every logit there is."""
    config, model = quick(steps=1), tiny_model()
    problems = Words().problems(config.problems, split="train", seed=config.seed)
    drawn = [problem_at(problems, i, config.seed) for i in range(config.prompts)]
    rows = sample(
        model, TOKENIZER, [p.prompt for p in drawn], n=config.n, max_new_tokens=8,
        seed=seed_of("rollouts", config.seed, 0),
    )  # fmt: skip
    right = [Words().verify(drawn[i // 4], rows.completion(i)) for i in range(len(rows))]
    advantages = group_advantages(torch.tensor(right), rows.groups)
    kept = rows.valid
    if selection.select == "forks":
        kept = forking_mask(rows.entropy, rows.valid, fraction=selection.fraction)
    count = rows.valid if selection.normalizer == "valid" else kept
    logprobs = model(input_ids=rows.tokens).logits[:, :-1].log_softmax(dim=-1)
    chosen = logprobs.gather(2, rows.tokens[:, 1:, None]).squeeze(2)
    loss = -(advantages[:, None] * chosen * kept[:, 1:]).sum() / count.sum()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    return model, float(norm), kept, rows


@pytest.mark.parametrize(
    "selection", [SURE, Selection(), Selection(fraction=0.4, normalizer="valid")]
)
def test_a_step_is_the_one_that_is_written_down_here(selection):
    expected, norm, kept, rows = by_hand(selection)
    model, result = run(steps=1, selection=selection)
    (line,) = steps(result)
    assert_close(model, expected)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert line["kept_share"] == pytest.approx(int(kept.sum()) / int(rows.valid.sum()))
    assert line["entropy_kept"] == pytest.approx(float(rows.entropy[kept].mean()), rel=1e-4)
    assert line["entropy_all"] == pytest.approx(float(rows.entropy[rows.valid].mean()), rel=1e-4)
    assert line["length"] == pytest.approx(int(rows.valid.sum()) / len(rows))
    if selection.select == "forks":
        assert line["threshold"] == pytest.approx(float(rows.entropy[kept].min()), rel=1e-5)


def test_a_share_of_1_is_the_plain_objective_bit_by_bit():
    plain, every = run(selection=SURE), run(selection=Selection(fraction=1.0))
    assert_same(every[0], plain[0])
    assert distance(plain[0], tiny_model()) > 0
    assert steps(every[1])[0]["kept_share"] == 1.0


def test_micro_batches_change_nothing():
    whole, _ = run(steps=2)
    parts, _ = run(steps=2, micro_batch_tokens=12)
    assert_close(parts, whole)


@pytest.mark.parametrize("source", ["old", "current"])
def test_one_update_a_batch_has_one_policy(source):
    """Entropies of the rollout, of the old and of the current policy are then the same."""
    rollout, _ = run(steps=1)
    other, _ = run(steps=1, selection=Selection(entropy_source=source))
    assert_close(other, rollout)


def test_a_batch_is_gone_through_in_parts_and_again():
    once, _ = run(steps=1, lr=0.05)
    model, result = run(steps=1, lr=0.05, updates=2, epochs=2, optimizer="sgd")
    (line,) = steps(result)
    assert line["ratio_gap_kept"] > 0  # the later updates are of a policy that has moved
    assert line["ratio_gap_first"] > 0
    assert 0 <= line["clip_first"] <= 1
    assert steps(run(steps=1)[1])[0]["ratio_gap_kept"] < 1e-4
    assert steps(run(steps=1)[1])[0]["clip_first"] == 0.0
    assert distance(model, once) > 0


def test_the_gradient_can_be_brought_to_a_length():
    matched, result = run(steps=1, gradient_rule="match", gradient_norm=2.0, momentum=0.0, lr=0.01)
    assert distance(matched, tiny_model()) == pytest.approx(0.02, rel=1e-3)
    assert steps(result)[0]["gradient_norm"] != pytest.approx(2.0, rel=1e-3)


def test_at_the_beginning_there_is_no_kl():
    model, result = run(steps=1, beta=1.0)
    assert_close(model, run(steps=1)[0])
    assert steps(result)[0]["kl_kept"] == pytest.approx(0, abs=1e-6)


def test_the_kl_is_logged_as_the_policy_moves_away():
    options = {"steps": 2, "lr": 0.5, "selection": Selection(mask_kl=False)}
    _, result = run(**options, beta=0.01)
    last = steps(result)[-1]
    assert last["kl_kept"] > 1e-3
    assert last["kl_valid"] > 1e-3
    assert not any(name.startswith("kl") for name in steps(run(**options)[1])[-1])


def test_bfloat16_is_for_products_alone():
    plain, _ = run(steps=2)
    rough, result = run(steps=2, bf16=True)
    assert {p.dtype for p in rough.parameters()} == {torch.float32}
    assert all(math.isfinite(line["loss"]) for line in steps(result))
    assert distance(plain, rough) > 0


# What is drawn


def rewards_by_group(completions, equal):
    """Reward by turns, but give the groups that ``equal`` names one reward."""
    return [0.5 if c.group in equal else float(c.row % 2) for c in completions]


def test_groups_without_a_difference_are_drawn_again():
    def reward(completions):
        return rewards_by_group(completions, {0, 2, 4})

    _, kept = run(steps=1, reward=reward)
    _, drawn = run(steps=1, reward=reward, resample=3)
    (line,) = steps(kept)
    assert (line["groups"], line["prompts"], line["groups_equal"]) == (4, 4, 2)
    (line,) = steps(drawn)  # 0 to 3, then 4 and 5, then 6
    assert (line["groups"], line["prompts"], line["groups_equal"]) == (4, 7, 3)
    (line,) = steps(run(steps=1, reward=reward, resample=1)[1])
    assert (line["groups"], line["prompts"], line["groups_equal"]) == (3, 6, 3)


def test_where_nothing_differs_what_was_trained_is_saved(tmp_path):
    def reward(completions):
        return rewards_by_group(completions, set(range(99)) if completions[0].step == 2 else ())

    with pytest.raises(NothingToLearn, match="equal within each of 8 groups of 4, drawn 2 times"):
        run(steps=5, reward=reward, resample=1, out=tmp_path / "run", checkpoint_every=9)
    model, result = run(steps=2, reward=reward, resample=1, out=tmp_path / "two")
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert saved.name == "step-00002"
    assert_same(type(model).from_pretrained(saved), model)


def test_where_nothing_differed_it_goes_on_with_more_draws(tmp_path):
    def reward(completions):
        return rewards_by_group(completions, set(range(9)) if completions[0].step == 2 else ())

    options = {"steps": 4, "reward": reward, "checkpoint_every": 9}
    unbroken, whole = run(**options, resample=3)
    with pytest.raises(NothingToLearn, match="go on with a larger resample"):
        run(**options, resample=1, out=tmp_path / "run")
    model, _ = run(**options, resample=3, out=tmp_path / "run", resume=True)
    assert_same(model, unbroken)
    lines = read_log(tmp_path / "run")
    assert [line["kind"] for line in lines] == ["header", "step", "step", "header", "step", "step"]
    assert [line["config"]["resample"] for line in lines if line["kind"] == "header"] == [1, 3]
    logged = untimed([line for line in lines if line["kind"] == "step"])
    assert logged == untimed(steps(whole))
    assert read_about(tmp_path / "run").config["resample"] == 3
    run(**options, resample=3, out=tmp_path / "run", resume=True)
    assert read_log(tmp_path / "run") == lines


def test_without_a_difference_and_without_resampling_nothing_moves():
    model, result = run(steps=2, reward=lambda completions: [1.0] * len(completions))
    assert_same(model, tiny_model())
    assert [line["gradient_norm"] for line in steps(result)] == [0.0, 0.0]


def test_prompts_go_through_all_problems_before_any_comes_again():
    problems = Words().problems(10)
    drawn = [problem_at(problems, i, 5).id for i in range(30)]
    assert all(len(set(drawn[i : i + 10])) == 10 for i in (0, 10, 20))
    assert drawn[:10] != drawn[10:20]
    assert drawn != [problem_at(problems, i, 6).id for i in range(30)]


# Cut completions


def test_cut_completions_can_be_left_out_or_punished():
    """Nearly all of the tiny model's completions are cut; a few end by themselves."""
    cut = {"steps": 1, "max_new_tokens": 8, "prompts": 8, "seed": 1}
    kept = steps(run(**cut)[1])[0]
    assert 0.5 < kept["truncated"] < 1
    dropped = steps(run(overlong="drop", **cut)[1])[0]
    assert dropped["tokens"] == kept["tokens"]
    assert dropped["entropy_all"] != kept["entropy_all"]
    assert dropped["threshold"] != kept["threshold"]
    punished = steps(run(overlong="punish", overlong_cache=4, **cut)[1])[0]
    assert punished["accuracy"] == kept["accuracy"]
    # Whole rows of 8 tokens lose 1; those shorter than 8 lose less.
    loss = kept["reward_mean"] - punished["reward_mean"]
    assert kept["truncated"] <= loss < 1


def test_a_text_can_end_completions():
    line = steps(run(steps=1, stop=("w5 ", "w77 "), max_new_tokens=32)[1])[0]
    assert line["truncated"] < steps(run(steps=1, max_new_tokens=32)[1])[0]["truncated"]


# What it says


def test_the_log_says_every_choice(tmp_path):
    heard = []
    chosen = Selection(fraction=0.3, normalizer="valid")
    _, result = run(
        out=tmp_path / "run", log=heard.append, selection=chosen, evaluate_every=2,
        evaluate_problems=6, evaluate_temperatures=(1.0, 0.0), evaluate_n=2, pass_at=(1, 2),
        overlap_every=2,
    )  # fmt: skip
    assert result.log == heard == read_log(tmp_path / "run")
    header = heard[0]
    assert header["config"]["selection"] == chosen.to_dict()
    assert header["config"] == quick(**header["config"] | {"selection": chosen}).to_dict()
    assert {"model", "weights", "task", "reward", "libraries", "hardware", "created"} <= set(header)
    assert header["parameters"] == sum(p.numel() for p in tiny_model().parameters())
    assert [line["step"] for line in steps(result)] == [1, 2, 3]
    assert ["overlap" in line for line in steps(result)] == [False, True, False]
    assert 0 < steps(result)[1]["overlap"] <= 1
    evaluations = [line for line in heard if line["kind"] == "evaluation"]
    asked = [(line["step"], line["temperature"], line["n"]) for line in evaluations]
    assert asked == [(s, t, n) for s in (0, 2, 3) for t, n in ((1.0, 2), (0.0, 1))]
    assert "pass@2" in evaluations[0]
    assert "pass@2" not in evaluations[1]
    line = steps(result)[0]
    for name in (
        "rate", "reward_mean", "reward_std", "accuracy", "length", "truncated", "prompts",
        "groups", "groups_equal", "kept_share", "threshold", "entropy_kept", "entropy_all",
        "clip_kept", "ratio_gap_kept", "loss", "gradient_norm", "tokens_per_second",
        "seconds_rollout", "seconds_update",
    ):  # fmt: skip
        assert isinstance(line[name], int | float), name


def test_rollouts_are_saved_as_runs(tmp_path):
    out = tmp_path / "run"
    run(out=out, rollouts_every=2, rollouts_prompts=3)
    assert [path.name for path in sorted((out / "rollouts").iterdir())] == [
        "step-00001", "step-00002",
    ]  # fmt: skip
    saved = open_run(out / "rollouts" / "step-00002")
    assert (len(saved), saved.complete) == (12, True)
    rollouts = saved.rollouts()
    assert rollouts.alternatives.ids.shape[2] == 5
    assert rollouts.provenance.origin == "step 2 of 'run'"
    samples = saved.samples().to_pylist()
    for line in samples:
        assert line["reward"] == Words().verify(None, line["completion"])
        assert line["problem"].startswith("train ")


def test_what_is_saved_is_the_model(tmp_path):
    model, result = run(out=tmp_path / "run", steps=3, checkpoint_every=1, keep_checkpoints=2)
    assert result.done
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-00002", "step-00003",
    ]  # fmt: skip
    assert result.checkpoint.name == "step-00003"
    assert_same(type(model).from_pretrained(result.checkpoint), model)
    assert read_about(tmp_path / "run").config == quick(**json.loads(
        json.dumps({"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 2})
    )).to_dict()  # fmt: skip


# Going on


def untimed(lines):
    return [
        {k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "created"))}
        for line in lines
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr": 0.003, "warmup": 2, "decay": "linear", "resample": 1},
        pytest.param(
            {"updates": 2, "beta": 0.5, "evaluate_every": 2, "evaluate_problems": 4},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["adamw", "kl"],
)
def test_gone_on_with_it_is_the_unbroken_run(tmp_path, options):
    options = {"steps": 4, "checkpoint_every": 2} | options
    unbroken, whole = run(out=tmp_path / "whole", **options)
    seen = []
    _, part = run(
        out=tmp_path / "part", log=seen.append, **options,
        should_stop=lambda: sum(line["kind"] == "step" for line in seen) == 3,
    )  # fmt: skip
    assert (part.done, part.steps) == (False, 3)
    model, rest = run(out=tmp_path / "part", resume=True, **options)
    assert (rest.done, rest.steps) == (True, 4)
    assert_same(model, unbroken)
    assert untimed(read_log(tmp_path / "part")) == untimed(read_log(tmp_path / "whole"))


def test_what_was_done_after_the_last_checkpoint_is_done_again(tmp_path):
    """As after a kill: a step's line is in the log, and its checkpoint is not there."""
    unbroken, _ = run(out=tmp_path / "whole", steps=4)

    def axe(line):
        if line.get("step") == 3:
            raise SystemExit

    with pytest.raises(SystemExit):
        run(out=tmp_path / "part", steps=4, log=axe)
    assert read_log(tmp_path / "part")[-1]["step"] == 3
    model, _ = run(out=tmp_path / "part", steps=4, resume=True)
    assert_same(model, unbroken)
    assert untimed(read_log(tmp_path / "part")) == untimed(read_log(tmp_path / "whole"))


def test_the_same_model_may_go_on(tmp_path):
    unbroken, _ = run(steps=3)
    model, _ = run(out=tmp_path / "run", steps=3, should_stop=iter([False, True]).__next__)
    run(model, out=tmp_path / "run", steps=3, resume=True)
    assert_same(model, unbroken)


def test_a_run_that_is_done_is_left_as_it_is(tmp_path):
    trained, _ = run(out=tmp_path / "run")
    lines = read_log(tmp_path / "run")
    model, result = run(out=tmp_path / "run", resume=True)
    assert (result.done, result.steps, result.log) == (True, 3, [])
    assert read_log(tmp_path / "run") == lines
    assert_same(model, trained)


def test_only_the_same_run_is_gone_on_with(tmp_path):
    run(out=tmp_path / "run", steps=1)
    with pytest.raises(RunConflict, match="already holds a training run"):
        run(out=tmp_path / "run", steps=1)
    with pytest.raises(RunConflict, match="lr was 0.01, now 0.5"):
        run(out=tmp_path / "run", steps=1, lr=0.5, resume=True)
    with pytest.raises(RunConflict, match="the weights before training was '.*', now '"):
        run(tiny_model(seed=1), out=tmp_path / "run", steps=1, resume=True)
    with pytest.raises(RunConflict, match="the reward was 'correct', now 'even'"):
        run(out=tmp_path / "run", steps=1, reward=even, resume=True)
    with pytest.raises(RunConflict, match="something that is no training run"):
        run(out=tmp_path, steps=1)
    with pytest.raises(ValueError, match="resume goes on with the run in a folder: pass out"):
        run(steps=1, resume=True)


# What cannot be trained


@pytest.mark.parametrize("value", [math.nan, pytest.param("boom", marks=pytest.mark.slow)])
def test_a_reward_that_fails_loses_nothing(tmp_path, value):
    def reward(completions):
        if completions[0].step == 3 and value == "boom":
            raise KeyError("boom")
        return [value if completions[0].step == 3 else float(c.row % 2) for c in completions]

    options = {"steps": 4, "prompts": 2, "n": 2}
    with pytest.raises(RewardError, match="reward 'reward' (raised KeyError|gave nan)"):
        run(out=tmp_path / "run", checkpoint_every=2, reward=reward, **options)
    names = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00002", "step-00003"]

    def healed(completions):
        return [float(c.row % 2) for c in completions]

    healed.__name__ = "reward"
    options |= {"reward": healed, "checkpoint_every": 2}
    model, _ = run(out=tmp_path / "run", resume=True, **options)
    assert_same(model, run(**options)[0])


def test_a_task_without_a_verifier_is_refused():
    class Silent:
        name = "silent"
        problems = Words().problems

    with pytest.raises(ValueError, match="task 'silent' has no verifier: give it a method"):
        # Without the tests' own check of types, which sees it too.
        inspect.unwrap(train)(tiny_model(), TOKENIZER, Silent(), config=quick())


def test_a_tokenizer_without_an_end_is_refused():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="no completion could end: set tokenizer.eos_token"):
        train(model, tokenizer, Words(), config=quick())
    done = train(model, tokenizer, Words(), config=quick(steps=1, stop=("w5 ",)))
    assert done.done


def test_a_tokenizer_needs_no_pad_token():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.pad_token = None
    train(model, tokenizer, Words(), config=quick())
    assert_same(model, run()[0])


def test_few_problems_are_refused():
    with pytest.raises(ValueError, match="gave 46 problems to train on, fewer than the 50"):
        run(prompts=50, problems=60)


def test_a_prompt_without_room_is_refused():
    class Long(Words):
        def problems(self, limit, *, split="test", seed=0):
            from dataclasses import replace

            return [replace(p, prompt="w1 " * 128) for p in Words().problems(limit)]

    with pytest.raises(ValueError, match="has 128 tokens, but the model's context is 128"):
        run(task=Long())


def test_only_a_hugging_face_model_is_trained():
    with pytest.raises(ValueError, match="expected a Hugging Face model to train, got Linear"):
        train(torch.nn.Linear(1, 1), TOKENIZER, Words(), config=quick())


def test_a_model_that_changes_its_logits_is_refused():
    """The update computes logits from the unembedding: they would not be the model's."""
    model = Sharpened(copy.deepcopy(CONFIGS["llama"])).eval()
    with pytest.raises(ValueError, match="changes its logits after the unembedding"):
        train(model, TOKENIZER, Words(), config=quick())


def test_dropout_is_off():
    """An update with dropout would take its ratios against another distribution."""
    once = {"steps": 1, "updates": 2, "selection": SURE}
    expected, _ = run(tiny_model("gpt2").eval(), **once)
    model = tiny_model("gpt2").train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert_same(run(model, **once)[0], expected)


def test_layers_may_be_computed_again_to_save_memory():
    passes = {}
    for again in (False, True):
        model, passes[again] = tiny_model().train(), 0
        if again:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()  # older transformers

        def count(*_, again=again):
            passes[again] += 1

        model.model.layers[0].mlp.register_forward_pre_hook(count)
        run(model, steps=1)
        assert_same(model, run(steps=1)[0])
    assert passes[True] == passes[False] + 1


def test_one_process_has_nobody_to_shard_with():
    with pytest.raises(ValueError, match="shards a model over processes, and there is one"):
        run(shard=True)


def test_the_caller_keeps_the_model_trainable():
    model = tiny_model().train()
    before = {name: copy.copy(module.training) for name, module in model.named_modules()}
    run(model, steps=1)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters())
