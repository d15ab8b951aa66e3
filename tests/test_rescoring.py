"""Scores into a run directory: the model's own numbers on tokens of any origin."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contents import contents
from records import assert_equal
from tiny import VOCAB, tiny_model, tiny_tokenizer

from entropy_probe import capture, capture_scores, open_run, sample, score
from entropy_probe.importing import import_file
from entropy_probe.retokenizing import KEPT, rows_to_score
from entropy_probe.storage.errors import RunConflict
from entropy_probe.storage.parts import parts
from entropy_probe.tasks import Problem

FIXTURES = Path(__file__).parent / "fixtures" / "importing"
PROMPTS = ["w1 w2 ", "w3 ", "w4 w5 w6 w7 "]
OPTIONS = {"n": 2, "max_new_tokens": 8, "residual_layers": [0, 2], "residual_positions": "all"}
KEEP = {"residual_layers": [0, 2], "residual_positions": "all"}
TEMPLATE = (
    "{% for m in messages %}{{ {'user': 'w80 ', 'assistant': 'w81 ', 'tool': 'w83 '}[m['role']] }}"
    "{{ m['content'] }} w82 {% endfor %}{% if add_generation_prompt %}w81 {% endif %}"
)


class Long:
    """A task that likes long completions."""

    name = "long"

    def problems(self, limit, *, split="test", seed=0):
        return [Problem(prompt, str(i), f"p{i}", {"i": i}) for i, prompt in enumerate(PROMPTS)]

    def verify(self, problem, completion):
        return len(completion) / 7


@pytest.fixture(scope="module")
def made():
    return tiny_model(), tiny_tokenizer()


@pytest.fixture(scope="module")
def source(made, tmp_path_factory):
    """Give a sampled run with rewards and problems."""
    path = tmp_path_factory.mktemp("runs") / "source"
    problems = Long().problems(3)
    return capture(*made, problems, path, task=Long(), chunk_prompts=2, temperature=0.7, **OPTIONS)


def test_a_run_scored_by_its_own_model_says_what_sampling_said(made, source, tmp_path):
    run = capture_scores(*made, source, tmp_path / "scores", **KEEP)
    mine, theirs = run.rollouts(), source.rollouts()
    for name in ("tokens", "valid", "prompt_lengths", "groups", "rewards", "captured"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert torch.allclose(mine.entropy, theirs.entropy, atol=1e-4)
    assert torch.allclose(mine.logprobs, theirs.logprobs, atol=1e-4)
    for layer, states in theirs.residuals.items():
        scale = states.norm(dim=1).mean()
        assert float((mine.residuals[layer] - states).norm(dim=1).max() / scale) < 1e-4
    assert run.provenance.entropy_temperature == 0.7
    assert run.provenance.source == "score"
    assert f"{source.path}" in run.provenance.origin
    assert KEPT in run.provenance.origin


def test_rewards_groups_and_problems_stay(made, source, tmp_path):
    run = capture_scores(*made, source, tmp_path / "scores")
    names = ("sample", "group", "prompt", "completion", "reward", "problem", "answer", "facts")
    mine, theirs = (r.samples().select(names).to_pylist() for r in (run, source))
    assert mine == theirs
    assert {line["problem"] for line in mine} == {"p0", "p1", "p2"}
    assert run.plan.task == "long"


def test_a_record_and_a_run_are_scored_alike(made, source, tmp_path):
    by_run = capture_scores(*made, source, tmp_path / "run", **KEEP)
    by_record = capture_scores(*made, source.rollouts(), tmp_path / "record", **KEEP)
    mine, theirs = by_record.rollouts(), by_run.rollouts()
    assert_equal(replace(mine, provenance=theirs.provenance), theirs)


def test_it_is_score_chunk_by_chunk_and_resumes_bit_for_bit(made, source, tmp_path):
    options = KEEP | {"chunk_rows": 4, "batch_size": 3}
    run = capture_scores(*made, source, tmp_path / "scores", **options)
    assert run.chunks == [0, 1]
    record = source.rollouts()[4:]
    width = int(record.lengths.max())
    expected = score(
        *made, record.tokens[:, :width], record.valid[:, :width], temperature=0.7, batch_size=3,
        prompt_lengths=record.prompt_lengths, groups=record.groups, **KEEP,
    )  # fmt: skip
    mine = run.rollouts([4, 5])
    assert torch.equal(mine.entropy[:, :width], expected.entropy)
    assert torch.equal(mine.residuals[2], expected.residuals[2])
    before = contents(run.path)
    parts(run.path, 0)["samples"].unlink()
    del options["chunk_rows"]
    capture_scores(*made, source, run.path, resume=True, **options)
    assert contents(run.path) == before
    with pytest.raises(RunConflict, match="already holds a run"):
        capture_scores(*made, source, run.path, **options)


def test_texts_are_scored_from_their_second_token_on(made, tmp_path):
    run = capture_scores(*made, ["w1 w2 w3 ", "w4 w5 "], tmp_path / "run", alternatives=2)
    record = run.rollouts()
    tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    valid = torch.tensor([[False, True, True], [False, True, False]])
    expected = score(*made, tokens, valid, alternatives=2)
    assert torch.equal(record.tokens, tokens)
    assert torch.equal(record.entropy, expected.entropy)
    assert record.prompt_lengths.tolist() == [1, 1]
    assert record.groups.tolist() == [0, 1]
    assert record.rewards is None
    assert run.provenance.origin == "given text"


@pytest.mark.parametrize(
    ("texts", "match"),
    [(["w1 "], "text 0 has no token to score"), ([], "no prompts"), ([""], "prompt 0 is empty"),
     (["w1 " * 129], "row 0 has 129 tokens"), ([[1, VOCAB]], "row 0 has token ids outside")],
)  # fmt: skip
def test_what_cannot_be_scored_leaves_nothing(made, tmp_path, texts, match):
    with pytest.raises(ValueError, match=match):
        capture_scores(*made, texts, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_scored_too_when_asked_for(made, source, tmp_path):
    run = capture_scores(*made, source, tmp_path / "run", include_prompts=True)
    record = run.rollouts()
    steps = torch.arange(record.tokens.shape[1])
    assert torch.equal(record.valid, (steps >= 1) & (steps < record.lengths[:, None]))
    assert torch.equal(record.prompt_lengths, source.rollouts().prompt_lengths)


def test_another_vocabulary_gets_the_text(made, source, tmp_path):
    """The words are the same, and their ids are not: each is one further on."""
    shifted = tiny_tokenizer()
    state = json.loads(shifted.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    state["model"]["vocab"] = {w: i if i < 4 else 4 + (i - 3) % 93 for w, i in words.items()}
    shifted._tokenizer = type(shifted.backend_tokenizer).from_str(json.dumps(state))
    given = rows_to_score(shifted, source)
    mine = source.rollouts()
    for i, row in enumerate(given.rows):
        assert row["tokens"] != mine.tokens[i, : len(row["tokens"])].tolist()
        texts = (mine.text(i, prompt=True), shifted.decode(row["tokens"]))
        assert texts[0].replace("<eos>", "") == texts[1]
        assert row["prompt_length"] == int(mine.prompt_lengths[i])
    assert "tokenized anew" in given.origin
    run = capture_scores(made[0], shifted, source, tmp_path / "run")
    assert torch.equal(run.rollouts().rewards, mine.rewards)


def test_imported_ids_are_kept_and_imported_texts_are_tokenized(made, tmp_path):
    exported = tmp_path / "ids.jsonl"
    line = json.loads((FIXTURES / "prime_tokens.jsonl").read_text())
    for token, i in zip(line["tokens"], (1, 17, 4, 50, 9, 2), strict=True):
        token["id"] = i
    exported.write_text(json.dumps(line))
    ids = capture_scores(*made, import_file(exported, tmp_path / "ids"), tmp_path / "a").rollouts()
    assert ids.tokens.tolist() == [[1, 17, 4, 50, 9, 2]]
    assert ids.valid.tolist() == [[False, False, True, True, False, True]]
    assert ids.rewards.tolist() == [1.0]
    assert KEPT in ids.provenance.origin

    run = import_file(FIXTURES / "openai_chat.json", tmp_path / "chat")
    texts = capture_scores(*made, run, tmp_path / "b").rollouts()
    # Words that the vocabulary lacks; the prompt, which the file does not have, is only its start.
    assert texts.prompt_lengths.tolist() == [1, 1]
    assert texts.tokens[:, 0].tolist() == [1, 1]
    assert texts.provenance.missing_mass is None


def answer_in_ids(path, *, prompt=None, messages=None):
    """Write what vLLM gives with return_tokens_as_token_ids: w1 w2 and the end, as 5, 6 and 2."""
    top = [{"token": f"token_id:{i}", "logprob": -0.5 - i} for i in (5, 6, 2)]
    content = [entry | {"top_logprobs": top} for entry in top]
    value = {"model": "theirs", "choices": [{"message": {"content": "w1 w2"},
                                             "logprobs": {"content": content}}]}  # fmt: skip
    asked = {"prompt": prompt, "messages": messages}
    asked = {name: said for name, said in asked.items() if said is not None}
    path.write_text(json.dumps({"request": asked, "response": value} if asked else value))
    return path


@pytest.mark.parametrize("named", [False, True], ids=["ids alone", "with their texts"])
@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({}, [1]),
        ({"prompt": "w7 w8 w9 "}, [11, 12, 13]),
        ({"messages": [{"role": "user", "content": "w7"}]}, [84, 11, 86, 85]),
    ],
    ids=["no prompt", "text", "messages"],
)
def test_ids_of_vllm_are_kept_and_their_prompt_is_tokenized(made, tmp_path, named, asked, prompt):
    model, tokenizer = made[0], tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    file = answer_in_ids(tmp_path / "ids.json", **asked)
    run = import_file(file, tmp_path / "run", tokenizer=tokenizer if named else None)
    record = capture_scores(model, tokenizer, run, tmp_path / "scored").rollouts()
    assert record.tokens.tolist() == [[*prompt, 5, 6, 2]]
    assert record.valid.tolist() == [[False] * len(prompt) + [True] * 3]
    assert record.prompt_lengths.tolist() == [len(prompt)]
    expected = score(model, tokenizer, record.tokens, record.valid)
    assert torch.equal(record.entropy, expected.entropy)
    assert KEPT in record.provenance.origin
    assert ("rows without theirs" in record.provenance.origin) is (not asked)


def test_ids_of_vllm_for_another_vocabulary_become_text_where_their_texts_are_known(made, tmp_path):
    file = answer_in_ids(tmp_path / "ids.json", prompt="w7 w8 ")
    run = import_file(file, tmp_path / "run", tokenizer=tiny_tokenizer())
    other = tiny_tokenizer()
    state = json.loads(other.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    state["model"]["vocab"] = {w: i if i < 4 else 4 + (i - 3) % 93 for w, i in words.items()}
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(state))
    (row,) = rows_to_score(other, run).rows
    assert (row["tokens"], row["prompt_length"]) == ([12, 13, 6, 7], 2)


def test_texts_alone_are_filled_in(made, tmp_path):
    run = import_file(FIXTURES / "trl_text", tmp_path / "texts")
    scored = capture_scores(*made, run, tmp_path / "scored")
    names = ("group", "reward", "facts")
    mine, theirs = (r.samples().select(names).to_pylist() for r in (scored, run))
    assert mine == theirs
    record = scored.rollouts()
    assert int(record.valid.sum()) > 0
    assert "completions logged by TRL" in record.provenance.origin


def test_conversations_go_through_the_chat_template(made, tmp_path):
    model, tokenizer = made[0], tiny_tokenizer()
    run = import_file(FIXTURES / "trl_chat", tmp_path / "chat")
    with pytest.raises(ValueError, match="has no chat template"):
        capture_scores(model, tokenizer, run, tmp_path / "scored")
    tokenizer.chat_template = TEMPLATE
    record = capture_scores(model, tokenizer, run, tmp_path / "scored").rollouts()
    opening, turn, closing = 84, 85, 86  # w80, w81, w82
    for i in range(len(record)):
        tokens = record.tokens[i, : int(record.lengths[i])].tolist()
        assert tokens[0] == opening
        assert tokens[int(record.prompt_lengths[i]) - 2 :][:2] == [closing, turn]
        assert tokens[-1] == closing
        assert record.valid[i].nonzero()[0] == record.prompt_lengths[i]


def test_only_what_the_assistant_wrote_is_scored(made):
    from entropy_probe.retokenizing import _row_of_messages

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompt = [{"role": "user", "content": "w1"}]
    said = [
        {"role": "assistant", "content": "w2"},
        {"role": "tool", "content": "w3 w4"},
        {"role": "assistant", "content": "w5"},
    ]
    line = {"group": 0, "reward": None}
    row = _row_of_messages(tokenizer, line, prompt, said)
    scored = [tokenizer.decode(row["tokens"][start:stop]) for start, stop in row["valid"]]
    assert scored == ["w2 w82 ", "w5 w82 "]
    whole = tokenizer.apply_chat_template(prompt + said, tokenize=False)
    assert tokenizer.decode(row["tokens"]) == whole
    tokenizer.chat_template = "{{ messages | length }} {{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        _row_of_messages(tokenizer, line, prompt, said)


def test_empty_completions_stay_rows(made, tmp_path):
    record = sample(*made, PROMPTS, n=2, max_new_tokens=4)
    record.valid[1] = False
    run = capture_scores(*made, record, tmp_path / "run", chunk_rows=2)
    assert (len(run), run.rollouts().valid[1].any()) == (6, False)
    record.valid[:2] = False
    run = capture_scores(*made, record, tmp_path / "again", chunk_rows=2)
    assert run.rollouts().valid.any(dim=1).tolist() == [False, False, True, True, True, True]


def test_what_is_there_of_an_unfinished_run_is_scored_and_said(made, source, tmp_path):
    path = tmp_path / "part"
    shutil.copytree(source.path, path)
    parts(path, 1)["samples"].unlink()
    given = rows_to_score(made[1], open_run(path))
    assert len(given.rows) == len(given.problems) == 4
    assert "the 4 of 6 samples that were there" in given.origin
