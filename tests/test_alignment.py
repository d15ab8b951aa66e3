"""One alignment: row t of everything belongs to the distribution that produced token t.

The model here is known by construction: its stream is the one-hot code of the token it stands at,
and its logits are a row of a table, so that every number of a record can be looked up.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import entropy_probe
from entropy_probe import Rollouts, forking_mask, sampling

VOCAB, BOS, STOP = 40, 1, 2
TOKENIZER = tiny_tokenizer()
PROMPTS = [[BOS, 7, 30, 12], [BOS], [BOS, 21], [BOS, 5, 5, 5, 9, 33, 18]]


def table(*, seed: int = 0) -> Tensor:
    """Give logits by (token, next token); every token leaves another entropy behind it."""
    random = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits = random * torch.linspace(0.3, 3.0, VOCAB)[:, None]
    logits[:, STOP] = logits.logsumexp(dim=1) - 2.0  # one row in eight stops at each token
    return logits.double()


def bigram_model(logits: Tensor) -> LlamaForCausalLM:
    """Give a Llama whose blocks add nothing, and whose logits after token i are logits[i]."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=VOCAB, intermediate_size=8, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, bos_token_id=BOS,
            eos_token_id=STOP, rms_norm_eps=1e-12,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCAB))
        model.lm_head.weight.copy_(logits.T / VOCAB**0.5)  # the norm scales a one-hot by sqrt(d)
    return model


def check_alignment(rollouts: Rollouts, logits: Tensor, temperature: float) -> None:
    """Raise unless every number stands at the token that its distribution produced."""
    valid, tokens = rollouts.valid, rollouts.tokens
    row, place = valid.nonzero(as_tuple=True)
    assert (place >= 1).all()
    before, drawn = tokens[row, place - 1], tokens[row, place]
    spread = torch.distributions.Categorical(logits=logits[before] / temperature)
    entropies = spread.entropy()
    assert entropies.std() > 0.3, "all alike: a shift would go unseen"
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(rollouts.entropy[valid].double(), entropies, **close)
    torch.testing.assert_close(rollouts.logprobs[valid].double(), spread.log_prob(drawn), **close)
    top = spread.logits.topk(3)
    assert torch.equal(rollouts.alternatives.ids[valid].long(), top.indices)
    torch.testing.assert_close(rollouts.alternatives.logprobs[valid].double(), top.values, **close)
    higher = spread.logits > spread.log_prob(drawn)[:, None]
    assert torch.equal(rollouts.ranks[valid].long(), higher.sum(dim=1))
    assert torch.equal(rollouts.captured, valid & bool(rollouts.residuals))
    for states in rollouts.residuals.values():
        assert torch.equal(states, torch.eye(VOCAB)[before])
    for name in ("entropy", "logprobs", "ranks"):
        assert not getattr(rollouts, name)[~valid].any()


LOGITS = table()
MODEL = bigram_model(LOGITS)
CAPTURE = {"residual_layers": [0, 1], "residual_positions": "all", "alternatives": 3}


def drawn(
    run=entropy_probe.sample, *, prompts=PROMPTS, temperature: float = 1.0, **options
) -> Rollouts:
    return run(
        MODEL, TOKENIZER, prompts, temperature=temperature, seed=3, batch_size=5,
        **({"n": 4, "max_new_tokens": 10} | CAPTURE | options),
    )  # fmt: skip


def rescored(rollouts: Rollouts, run=entropy_probe.score, **options) -> Rollouts:
    return run(MODEL, TOKENIZER, rollouts.tokens, rollouts.valid, **(CAPTURE | options))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_rows_belong_to_the_distributions_that_produced_their_tokens(temperature):
    rollouts = drawn(temperature=temperature)
    check_alignment(rollouts, LOGITS, temperature)
    check_alignment(rescored(rollouts, temperature=temperature), LOGITS, temperature)
    assert rollouts.valid.sum(dim=1).unique().numel() > 2


def test_greedy_rows_are_of_temperature_one_and_of_rank_zero():
    rollouts = drawn(temperature=0.0)
    check_alignment(rollouts, LOGITS, 1.0)
    assert not rollouts.ranks.any()
    assert rollouts.provenance.entropy_temperature == 1.0


def test_truncated_drawing_leaves_the_statistics_those_of_the_whole_distribution():
    """Entropies of what top-p and top-k leave would be lower, and the logarithm of 0 no number."""
    rollouts = drawn(top_p=0.5, top_k=4)
    check_alignment(rollouts, LOGITS, 1.0)
    assert (rollouts.ranks[rollouts.valid] < 4).all()


def test_the_stop_token_is_described_and_nothing_behind_it():
    rollouts = drawn()
    stopped = 0
    for i in range(len(rollouts)):
        start, end = int(rollouts.prompt_lengths[i]), int(rollouts.lengths[i])
        assert rollouts.valid[i].nonzero()[:, 0].tolist() == list(range(start, end))
        row = rollouts.tokens[i, start:end]
        assert STOP not in row[:-1]
        stopped += int(row[-1] == STOP)
        assert row[-1] == STOP or len(row) == 10
    assert stopped >= 3


def test_a_stop_token_that_also_pads_ends_rows_once():
    rollouts = drawn(stop=[0], prompts=[[BOS, 3], [BOS, 39, 4]], max_new_tokens=30)
    check_alignment(rollouts, LOGITS, 1.0)
    ended = rollouts.tokens[torch.arange(len(rollouts)), rollouts.lengths - 1] == 0
    assert ended.any()
    assert ((rollouts.tokens == 0) & rollouts.valid).sum() == ended.sum()
    check_alignment(rescored(rollouts), LOGITS, 1.0)


def test_a_new_token_has_a_state_and_the_last_one_leaves_none():
    """N new tokens are predicted by N states: the last of the prompt, and all but the last new."""
    rollouts = drawn()[0]
    length = int(rollouts.prompt_lengths[0])
    states = rollouts.residuals[1].argmax(dim=1)
    made = rollouts.tokens[0, length : int(rollouts.lengths[0])]
    assert states.tolist() == [int(rollouts.tokens[0, length - 1]), *made[:-1].tolist()]


def test_the_first_token_after_the_beginning_of_text_can_be_scored_and_the_beginning_cannot():
    tokens = torch.tensor([[BOS, 7, 30, 12, 3]])
    valid = torch.tensor([[False, True, True, True, True]])
    found = entropy_probe.score(MODEL, TOKENIZER, tokens, valid, **CAPTURE)
    check_alignment(found, LOGITS, 1.0)
    assert found.entropy[0, 0] == 0
    with pytest.raises(ValueError, match="position 0 is valid in some row"):
        entropy_probe.score(MODEL, TOKENIZER, tokens, valid | True, **CAPTURE)


def test_forks_are_the_tokens_drawn_where_the_table_is_flattest():
    rollouts = drawn()
    forks = forking_mask(rollouts.entropy, rollouts.valid)
    before = rollouts.tokens.roll(1, dims=1)
    spread = torch.distributions.Categorical(logits=LOGITS).entropy()[before]
    assert spread[forks].min() >= spread[rollouts.valid & ~forks].max() - 1e-6


def planted(module: str, right: str, wrong: str) -> ModuleType:
    """Give a module of the package with a fault written into its source."""
    path = Path(entropy_probe.__file__).parent / f"{module}.py"
    source = path.read_text()
    assert source.count(right) == 1, f"{right!r} is not written once in {module}.py"
    spec = importlib.util.spec_from_loader(f"entropy_probe.{module}", None, origin=str(path))
    faulty = importlib.util.module_from_spec(spec)
    exec(compile(source.replace(right, wrong), path, "exec"), faulty.__dict__)
    return faulty


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("hidden[:, :-1][produced]", "hidden[:, 1:][produced]"),
        ("state[:, :-1][produced]", "state[:, 1:][produced]"),
        ("ids[:, 1:][produced]", "ids[:, :-1][produced]"),
        ("produced = valid[rows, 1:width]", "produced = valid[rows, : width - 1]"),
    ],
)
def test_a_shift_planted_into_scoring_is_seen(right, wrong):
    rollouts = drawn()
    check_alignment(rescored(rollouts, planted("scoring", right, right).score), LOGITS, 1.0)
    with pytest.raises(AssertionError):
        check_alignment(rescored(rollouts, planted("scoring", right, wrong).score), LOGITS, 1.0)


@pytest.mark.parametrize("layers", [[], [0]])  # with layers, decoding and record disagree as well
def test_a_shift_planted_into_the_record_of_sampling_is_seen(layers):
    right, wrong = "places = starts[rows] + steps", "places = starts[rows] + steps - 1"
    options = {"prompts": [[BOS, *ids] for ids in PROMPTS], "residual_layers": layers}
    check_alignment(drawn(planted("sampling", right, right).sample, **options), LOGITS, 1.0)
    with pytest.raises(AssertionError):
        check_alignment(drawn(planted("sampling", right, wrong).sample, **options), LOGITS, 1.0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("[which] + step\n", "[which] + step - 1\n"),
        ("][filled] for layer", "].roll(1, dims=1)[filled] for layer"),
        ("rows[alive], made[alive])", "rows[alive], made[alive] + 1)"),
    ],
)
def test_a_shift_planted_into_decoding_is_seen(right, wrong, monkeypatch):
    monkeypatch.setattr(sampling, "Loop", planted("decoding_loop", right, right).Loop)
    check_alignment(drawn(), LOGITS, 1.0)
    monkeypatch.setattr(sampling, "Loop", planted("decoding_loop", right, wrong).Loop)
    with pytest.raises((AssertionError, IndexError)):
        check_alignment(drawn(), LOGITS, 1.0)
