"""Recording inside somebody's loop: the numbers, their alignment, and a loop that is none the
wiser."""

import copy
import math

import pytest
import torch
from recurrent import CONFIGS as RECURRENT
from recurrent import recurrent_model
from test_hooks import hooks_on
from tiny import tiny_model, tiny_tokenizer
from torch import nn

from entropy_probe import open_run, sample, score
from entropy_probe.cli import main
from entropy_probe.hooks import HooksSkipped
from entropy_probe.storage.errors import RunConflict
from entropy_probe.training import passes
from entropy_probe.training.passes import Passing, Piece
from entropy_probe.training.recorder import Recorder
from entropy_probe.training.reservoir import Keeping, Reservoir

WIDTH = 11
IDS = torch.randint(3, 97, (4, WIDTH), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(IDS)
MASK[1, :3] = 0  # left-padded
MASK[2, 8:] = 0  # right-padded
MASK[3, :2] = MASK[3, 9:] = 0


def exact(model, row: int, temperature: float = 1.0):
    """Entropies and log-probabilities of a row without its padding, in float64."""
    ids = IDS[row, MASK[row].bool()]
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, :-1].double()
    scores = (logits / temperature).log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    return ids, entropy, scores.gather(1, ids[1:, None])[:, 0]


def train(model, steps: int = 3, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(input_ids=IDS, attention_mask=MASK, labels=IDS, **options).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def model():
    return tiny_model()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropies_are_those_of_what_produced_each_token(family, temperature):
    model = tiny_model(family)
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    with Recorder(model, temperature=temperature) as recorder:
        model(input_ids=IDS, attention_mask=MASK, position_ids=positions)
    rows = recorder.records()
    assert len(rows) == 4
    for i, row in enumerate(rows):
        ids, entropy, logprobs = exact(model, i, temperature)
        assert torch.equal(row.tokens, ids)
        assert row.valid.tolist() == [False] + [True] * (len(ids) - 1)
        torch.testing.assert_close(row.entropy[1:], entropy.float(), rtol=0, atol=2e-4)
        torch.testing.assert_close(row.logprobs[1:], logprobs.float(), rtol=0, atol=5e-4)
        assert (row.entropy[0], row.logprobs[0]) == (0, 0)


def test_labels_say_which_tokens_take_part(model):
    labels = IDS.where(torch.arange(WIDTH) >= 5, -100)
    with Recorder(model) as recorder:
        model(input_ids=IDS, attention_mask=MASK, labels=labels)
    first, second = recorder.records()[:2]
    assert first.valid.tolist() == [False] * 5 + [True] * 6
    assert second.valid.tolist() == [False] * 2 + [True] * 6  # three tokens of padding are gone
    assert bool((second.entropy[~second.valid] == 0).all())


def test_packed_texts_begin_anew(model):
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]])
    with Recorder(model) as recorder:
        model(input_ids=IDS[:1], position_ids=positions)
    (row,) = recorder.records()
    assert row.valid.tolist() == (positions[0] != 0).tolist()


def test_the_loop_does_not_notice(model):
    other = copy.deepcopy(model)
    train(other)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with Recorder(model, layers=[0, -1], residual_positions="all") as recorder:
        train(model)
        assert len(recorder.records()) == 12  # so there was something to notice
    assert torch.equal(torch.get_rng_state(), before)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_gradients_and_outputs_are_bit_identical(model):
    def run():
        model.zero_grad()
        out = model(input_ids=IDS, attention_mask=MASK, labels=IDS)
        out.loss.backward()
        return out.logits.detach(), [p.grad.clone() for p in model.parameters()]

    plain_logits, plain = run()
    with Recorder(model, layers=[1]):
        logits, gradients = run()
    assert torch.equal(logits, plain_logits)
    assert any(bool(g.any()) for g in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients, strict=True))


def test_an_exception_leaves_nothing_behind_and_loses_nothing(model, tmp_path):
    before = hooks_on(model)

    def broken_loop():
        with Recorder(model, layers=[0], tokenizer=tiny_tokenizer(), out=tmp_path / "run"):
            assert hooks_on(model) > before
            train(model)
            raise RuntimeError("the loop broke")

    with pytest.raises(RuntimeError, match="the loop broke"):
        broken_loop()
    assert hooks_on(model) == before
    assert len(open_run(tmp_path / "run")) == 12


def test_a_pass_that_fails_does_not_disturb_the_next(model):
    with Recorder(model, layers=[0]) as recorder:
        with pytest.raises(IndexError):
            model(input_ids=IDS + 1000)
        model(input_ids=IDS, attention_mask=MASK)
    assert len(recorder.records()) == 4


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_what_checkpointing_runs_again_is_not_read_twice(model, whole, reentrant):
    plain = copy.deepcopy(model)
    passes = []
    handle = model.model.layers[1].input_layernorm.register_forward_hook(
        lambda *_: passes.append(1)
    )
    options = {"use_reentrant": reentrant}
    if not whole:
        model.train().gradient_checkpointing_enable(options)
    inputs = {"inputs_embeds": model.get_input_embeddings()(IDS), "use_cache": False}

    def run(embeds):
        return model(inputs_embeds=embeds, use_cache=False).logits

    with Recorder(model, layers=[1], residual_positions="all") as recorder:
        if whole:
            logits = torch.utils.checkpoint.checkpoint(run, inputs["inputs_embeds"], **options)
        else:
            logits = model(**inputs).logits
        logits.sum().backward()
    handle.remove()
    assert len(passes) == 2  # it did run again
    rows = recorder.records()
    assert (len(rows), recorder.batches) == (4, 1)
    with Recorder(plain, layers=[1], residual_positions="all") as other:
        plain(inputs_embeds=plain.get_input_embeddings()(IDS))
    for mine, theirs in zip(rows, other.records(), strict=True):
        assert torch.equal(mine.entropy, theirs.entropy)
        torch.testing.assert_close(mine.residuals[1], theirs.residuals[1], rtol=0, atol=1e-5)


def stopping_model():
    """A model that has learnt nothing, and ends its texts with one of many tokens."""
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(40, 60))
    return model


def test_sampling_on_recurrent_states_is_put_together_padding_left_out():
    model, prompts = recurrent_model(RECURRENT["mamba2"]), [[1, 5, 6], [1, 9, 9, 9, 9, 4]]
    with Recorder(model, tokenizer=tiny_tokenizer()) as recorder:
        made = sample(model, tiny_tokenizer(), prompts, max_new_tokens=5, seed=1)
    rollouts = recorder.rollouts()
    assert rollouts.prompt_lengths.tolist() == [3, 6]
    for row, prompt in enumerate(prompts):
        seen = rollouts.tokens[row, : int(rollouts.lengths[row])].tolist()
        assert seen == made.tokens[row, : len(seen)].tolist()
        assert seen[: len(prompt)] == prompt
        valid = rollouts.valid[row]
        torch.testing.assert_close(
            rollouts.entropy[row][valid], made.entropy[row, : len(valid)][valid], rtol=0, atol=1e-4
        )


def test_generation_on_recurrent_states_is_put_together_too():
    model = recurrent_model(RECURRENT["mamba2"])
    mask = torch.ones_like(IDS)
    mask[1, :3] = mask[3, :6] = 0
    with Recorder(model, tokenizer=tiny_tokenizer()) as recorder:
        for _ in range(2):
            made = model.generate(
                input_ids=IDS, attention_mask=mask, max_new_tokens=9, do_sample=True, top_k=0,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
    rollouts = recorder.rollouts()
    assert len(rollouts) == 8
    for row in range(4):
        whole = torch.cat([IDS[row, mask[row].bool()], made[row, WIDTH:-1]]).tolist()
        assert rollouts.tokens[4 + row, : int(rollouts.lengths[4 + row])].tolist() == whole
    again = score(
        model, tiny_tokenizer(), rollouts.tokens, rollouts.valid,
        prompt_lengths=rollouts.prompt_lengths,
    )  # fmt: skip
    torch.testing.assert_close(rollouts.entropy, again.entropy, rtol=0, atol=2e-4)
    torch.testing.assert_close(rollouts.logprobs, again.logprobs, rtol=0, atol=5e-4)


@pytest.mark.parametrize("tile", [1, 1000, passes.TILE])
def test_generation_is_put_together_from_its_passes(tile, monkeypatch):
    monkeypatch.setattr(passes, "TILE", tile)  # how many logits wait to be read together
    model, tokenizer = stopping_model(), tiny_tokenizer()
    mask = torch.ones_like(IDS)
    mask[1, :3] = mask[3, :6] = 0
    with Recorder(model, layers=[1], residual_positions="all", tokenizer=tokenizer) as recorder:
        made = model.generate(
            input_ids=IDS, attention_mask=mask, max_new_tokens=14, do_sample=True,
            temperature=1.7, top_k=0, pad_token_id=0,
        )  # fmt: skip
    rollouts = recorder.rollouts()
    assert len(rollouts) == 4
    lengths = []
    for row in range(4):
        prompt = IDS[row, mask[row].bool()]
        whole = torch.cat([prompt, made[row, WIDTH:]]).tolist()
        stops = [i for i in range(len(prompt), len(whole)) if 40 <= whole[i] < 60]
        # The last token of the longest row was drawn, but never entered the model.
        end = min(stops[0] + 1 if stops else len(whole), len(whole) - 1)
        assert rollouts.tokens[row, : int(rollouts.lengths[row])].tolist() == whole[:end]
        assert int(rollouts.prompt_lengths[row]) == len(prompt)
        lengths.append(end - len(prompt))
    assert len(set(lengths)) > 1
    again = score(
        model, tokenizer, rollouts.tokens, rollouts.valid, prompt_lengths=rollouts.prompt_lengths,
        residual_layers=[1], residual_positions="all",
    )  # fmt: skip
    torch.testing.assert_close(rollouts.entropy, again.entropy, rtol=0, atol=2e-4)
    torch.testing.assert_close(rollouts.logprobs, again.logprobs, rtol=0, atol=5e-4)
    torch.testing.assert_close(rollouts.residuals[1], again.residuals[1], rtol=0, atol=1e-3)
    assert rollouts.groups.tolist() == again.groups.tolist()


def test_generations_and_training_alternate(model):
    with Recorder(model, tokenizer=tiny_tokenizer()) as recorder:
        for _ in range(2):
            model.generate(input_ids=IDS[:2], max_new_tokens=5, do_sample=True, pad_token_id=0,
                           eos_token_id=None)  # fmt: skip
            train(model, steps=1)
    assert [(r.batch, r.training) for r in recorder.records()] == (
        [(0, False)] * 2 + [(1, True)] * 4 + [(2, False)] * 2 + [(3, True)] * 4
    )
    assert recorder.records()[0].prompt_length == WIDTH
    assert int(recorder.records()[0].valid.sum()) == 4  # of five, the last of which never ran


def test_only_some_logits_are_enough(model):
    with torch.no_grad(), Recorder(model) as recorder:
        full = model(input_ids=IDS).logits
        model(input_ids=IDS, logits_to_keep=4, use_cache=False)
        model(input_ids=IDS, logits_to_keep=torch.tensor([2, 5]), use_cache=False)
        model(input_ids=IDS, return_dict=False, use_cache=False)
    rows = recorder.records()[::4]
    assert full.shape[1] == WIDTH
    valid = [row.valid.nonzero()[:, 0].tolist() for row in rows]
    assert valid == [list(range(1, 11)), [8, 9, 10], [3, 6], list(range(1, 11))]
    for row in rows[1:]:
        assert torch.equal(row.entropy[row.valid], rows[0].entropy[row.valid])
        assert torch.equal(row.logprobs[row.valid], rows[0].logprobs[row.valid])


@pytest.mark.parametrize("positions", ["all", "forks"])
def test_states_are_those_that_predicted_the_tokens(model, positions):
    with Recorder(model, layers=[0, -1], residual_positions=positions, fraction=0.25) as recorder:
        model(input_ids=IDS, attention_mask=MASK)
    told = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    rollouts = recorder.rollouts()
    count = int(rollouts.valid.sum())
    forks = math.ceil(0.25 * count)
    assert int(rollouts.captured.sum()) == (count if positions == "all" else 2 * forks)
    packed = iter(rollouts.residuals[0])
    for row, place in rollouts.captured.nonzero().tolist():
        at = int(MASK[row].nonzero()[place - 1, 0])
        torch.testing.assert_close(next(packed), told[1][row, at], rtol=0, atol=1e-5)
    assert sorted(rollouts.residuals) == [0, 2]


def test_texts_of_every_kth_batch_are_kept_and_never_more_than_asked(model):
    with torch.no_grad(), Recorder(model, every=3, keep=5, choose="latest") as recorder:
        for _ in range(10):
            model(input_ids=IDS)
    assert recorder.batches == 10
    assert [row.batch for row in recorder.records()] == [6, 9, 9, 9, 9]


@pytest.mark.parametrize(
    ("later", "wanted"),
    [(None, [[0, 1, 1, 1], [1, 1, 1, 1]]), ([[1], [0]], [[0, 1, 1, 1], [1, 1, 1, 0]])],
)
def test_a_mask_of_what_is_about_to_run_adds_to_the_one_before(later, wanted):
    def piece(width, mask):
        mask = None if mask is None else torch.tensor(mask).bool()
        return Piece(torch.ones(2, width).long(), *torch.zeros(2, 2, width), mask=mask)

    passing = Passing(0, False, piece(3, [[0, 1, 1], [1, 1, 1]]), temperature=1.0)
    passing.follow(piece(1, later))
    assert passing.pieces[-1].mask.long().tolist() == wanted


def test_a_sample_is_uniform_over_all_that_passed():
    count = 40
    piece = Piece(
        tokens=torch.arange(count)[:, None].repeat(1, 2),
        entropy=torch.ones(count, 2), logprobs=torch.zeros(count, 2),
    )  # fmt: skip
    seen = torch.zeros(count)
    for seed in range(60):
        reservoir = Reservoir(Keeping(8, "sample", [], "forks", 0.2, seed))
        reservoir.take(Passing(0, True, piece, temperature=1.0), stops=())
        assert len(reservoir.rows) == 8
        for row in reservoir.rows:
            seen[row.tokens[0]] += 1
    # 12 expected of each, binomially: a standard deviation of 3.1.
    assert 1 < float(seen.min()) < float(seen.max()) < 26
    assert abs(float(seen[:20].sum()) - 240) < 60


def test_bf16_and_autocast_change_the_model_not_the_arithmetic(model):
    model = model.to(torch.bfloat16)
    with Recorder(model) as recorder, torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=IDS).logits
    scores = logits.double().log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    for i, row in enumerate(recorder.records()):
        torch.testing.assert_close(row.entropy[1:], entropy[i, :-1].float(), rtol=0, atol=1e-4)


def test_the_model_inside_a_distributed_wrapper_is_read(model, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapper = nn.parallel.DistributedDataParallel(model)
        with Recorder(wrapper, layers=[0]) as recorder:
            train(wrapper, steps=1)
            model.generate(input_ids=IDS[:1], max_new_tokens=3, pad_token_id=0)
    finally:
        torch.distributed.destroy_process_group()
    assert [row.training for row in recorder.records()] == [True] * 4 + [False]


def test_a_saved_run_opens_in_the_report(model, tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    with Recorder(model, layers=[1], tokenizer=tokenizer) as recorder:
        train(model, steps=2)
    run = recorder.save(tmp_path / "run")
    assert "2 of 2 batches" in run.provenance.origin.replace("one in 1", "2")
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "w5" in page
    assert "recorded in a loop" in page
    capsys.readouterr()


def test_without_a_tokenizer_tokens_show_their_numbers(model, tmp_path):
    with Recorder(model, out=tmp_path / "run"):
        train(model, steps=1)
    assert open_run(tmp_path / "run").rollouts().pieces == {}


def test_nothing_that_passed_is_an_error_that_says_why(model):
    with Recorder(model) as recorder:
        model.model(input_ids=IDS)  # the body alone
    with pytest.raises(HooksSkipped, match="nothing has passed through this LlamaForCausalLM"):
        recorder.rollouts()


def test_embeddings_are_recorded_but_make_no_rollouts(model):
    with Recorder(model) as recorder:
        model(inputs_embeds=model.get_input_embeddings()(IDS))
    rows = recorder.records()
    assert rows[0].tokens is None
    torch.testing.assert_close(rows[0].entropy[1:], exact(model, 0)[1].float(), rtol=0, atol=2e-4)
    with pytest.raises(ValueError, match="the model was given embeddings"):
        recorder.rollouts()


def test_an_output_without_logits_is_an_error(model):
    model.lm_head.register_forward_hook(lambda *_: None)

    class Fused(type(model)):
        def forward(self, input_ids=None):
            return super().forward(input_ids=input_ids).loss

    model.__class__ = Fused
    with (
        pytest.raises(ValueError, match="neither logits nor the entropies of a fused head"),
        Recorder(model),
    ):
        model(input_ids=IDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number of 1 or more, got 0"),
        ({"keep": True}, "keep must be a whole number of 1 or more, got True"),
        ({"choose": "best"}, "choose must be one of .*, got 'best'"),
        ({"residual_positions": "none"}, "residual_positions must be one of .*, got 'none'"),
        ({"ranks": "some"}, "ranks must be one of .*, got 'some'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"layers": [3]}, "layer 3 is out of range"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        Recorder(model, **options)


def test_a_taken_folder_is_refused_before_the_loop(model, tmp_path):
    with Recorder(model, out=tmp_path / "run"):
        train(model, steps=1)
    with pytest.raises(RunConflict, match="already holds a run"):
        Recorder(model, out=tmp_path / "run")
    with Recorder(model, out=tmp_path / "run", overwrite=True):
        train(model, steps=2)
    assert len(open_run(tmp_path / "run")) == 8
