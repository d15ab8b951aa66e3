"""Importing what other tools leave: their numbers, what is not known, and never half a run."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contents import contents
from tiny import tiny_tokenizer

from entropy_probe import heatmap, open_run
from entropy_probe.importing import import_file
from entropy_probe.storage.errors import RunConflict, RunError
from entropy_probe.viewing.facts import origin

FIXTURES = Path(__file__).parent / "fixtures" / "importing"
UNKNOWN = "<prompt not recorded>"
HALF = 1.5 * math.log(2) + 0.25 * math.log(2)  # of 1/2, 1/4, 1/8 and the rest as one


def test_a_chat_response_keeps_tokens_numbers_and_alternatives(tmp_path):
    run = import_file(FIXTURES / "openai_chat.json", tmp_path / "run")
    record = run.rollouts()
    assert (len(record), record.groups.tolist()) == (2, [0, 0])
    assert record.completion(0) == "Sure ✨ so"
    assert record.text(0) == f"{UNKNOWN}Sure ✨ so"
    assert record.valid.tolist() == [[False, True, True, True], [False, True, True, False]]
    expected = torch.tensor([0.5, 0.9, 1 / 64]).log()
    assert torch.allclose(record.logprobs[0, 1:], expected)
    assert record.ranks[0].tolist() == [0, 0, 0, -1]  # the third is not among those listed
    texts = [record.pieces[i].decode() for i in record.alternatives.ids[0, 3].tolist()]
    assert texts == [",", ".", "!"]
    # Known: the three alternatives and the drawn token, which is none of them.
    rest = 1 - 0.7 - 0.2 - 0.05 - 1 / 64
    third = -sum(p * math.log(p) for p in (0.7, 0.2, 0.05, 1 / 64, rest))
    assert record.entropy[0, 1].item() == pytest.approx(HALF, rel=1e-6)
    assert record.entropy[0, 3].item() == pytest.approx(third, rel=1e-6)


def test_the_provenance_says_that_the_entropy_is_a_bound_and_what_it_misses(tmp_path):
    about = import_file(FIXTURES / "openai_chat.json", tmp_path / "run").provenance
    rest = 1 - 0.7 - 0.2 - 0.05 - 1 / 64
    missing = (0.125 + 0.01 + rest + 0.125 + 0.01) / 5
    assert about.missing_mass == pytest.approx(missing)
    assert "lower bound" in about.entropy_basis
    assert (about.source, about.model, about.temperature) == ("import", "gpt-test", None)
    assert "openai_chat.json" in about.origin


def test_the_older_layout_echoed_prompts_and_tokens_that_are_bytes(tmp_path):
    record = import_file(FIXTURES / "openai_completions.jsonl", tmp_path / "run").rollouts()
    assert record.prompt_lengths.tolist() == [1, 2]
    assert record.groups.tolist() == [0, 1]
    assert record.text(1) == "Say yesSure ✨ so✨"
    # The second token of the echoed prompt has a distribution too.
    assert record.valid[1].tolist() == [False] + [True] * 6
    assert record.logprobs[1, 1] == -1.0
    assert record.pieces[int(record.tokens[1, 5])] == b"\xe2\x9c"


def test_a_line_of_a_batch_and_a_response_with_its_request(tmp_path):
    batch = import_file(FIXTURES / "openai_batch.jsonl", tmp_path / "batch").rollouts()
    assert batch.completion(0) == "Sure ✨ so"
    run = import_file(FIXTURES / "openai_with_request.json", tmp_path / "asked")
    assert run.rollouts().text(0) == "system: Be brief.\nuser: Yes?Sure ✨ so"
    facts = json.loads(run.samples()["facts"][0].as_py())
    assert facts["messages"][0][1] == {"role": "user", "content": "Yes?"}
    assert facts["messages"][1] == [{"role": "assistant", "content": "Sure ✨ so"}]


def test_ids_in_place_of_texts_are_the_ids(tmp_path):
    record = import_file(FIXTURES / "vllm_chat_ids.json", tmp_path / "run").rollouts()
    assert record.tokens[0, 1:].tolist() == [9906, 11, 128009]
    assert record.alternatives.ids[0, 1].tolist() == [13347, 9906, 19182]
    assert record.ranks[0, 1:].tolist() == [1, 0, 0]
    assert record.entropy[0, 2:].tolist() == pytest.approx([0.0, math.log(2)])
    # Two alternatives where others have three: the third is absent, not token 0.
    assert record.alternatives.ids[0, 3].tolist() == [128009, 1917, -1]
    assert record.alternatives.logprobs[0, 3, 2] == -math.inf


@pytest.mark.parametrize("layout", ["trl_text", "trl_chat"])
def test_completions_of_a_training_are_texts_rewards_and_groups(tmp_path, layout):
    run = import_file(FIXTURES / layout, tmp_path / "run")
    table = pa.concat_tables(
        [pq.read_table(f) for f in sorted((FIXTURES / layout).glob("*.parquet"))]
    ).to_pylist()
    lines = run.samples().to_pylist()
    assert len(lines) == len(table) == 8
    for line, row in zip(lines, table, strict=True):
        text = layout == "trl_text"
        assert line["prompt"] == (row["prompt"] if text else row["prompt"][0]["content"])
        assert line["completion"] == (
            row["completion"] if text else row["completion"][0]["content"]
        )
        parts = [row["length_reward"], row["sometimes_reward"]]
        known = [p for p in parts if p is not None]
        assert line["reward"] == pytest.approx(sum(known), rel=1e-6)
        facts = json.loads(line["facts"])
        assert facts["rewards"] == {"length_reward": parts[0], "sometimes_reward": parts[1]}
        assert (facts["step"], facts["advantage"]) == (row["step"], row["advantage"])
        assert facts["extra"] == {"note": "=1+1"}
    same = {(row["step"], str(row["prompt"])) for row in table}
    assert len({line["group"] for line in lines}) == len(same) == 4
    assert "sum of length_reward, sometimes_reward" in run.provenance.origin
    with pytest.raises(RunError, match="texts only") as caught:
        run.rollouts()
    assert "probe score" in caught.value.fix


def test_token_exports_keep_exact_entropies_of_trained_tokens(tmp_path):
    run = import_file(FIXTURES / "token_exports", tmp_path / "run")
    record = run.rollouts()
    assert len(record) == 3
    assert record.tokens[0].tolist() == [1, 17, 4, 250, 9, 2]
    assert record.valid[0].tolist() == [False, False, True, True, False, True]
    assert record.entropy[0].tolist() == [0.0, 0.0, 1.25, 3.5, 0.0, 0.25]
    assert record.logprobs[0].tolist() == [0.0, 0.0, -0.5, -1.5, 0.0, -0.125]
    assert record.ranks[0].tolist() == [0, 0, -1, -1, 0, -1]
    assert record.prompt_lengths.tolist() == [2, 5, 2]
    # Step 3 comes before step 10; the same prompt at another step is another group.
    steps = [json.loads(f)["step"] for f in run.samples()["facts"].to_pylist()]
    assert steps == [3, 3, 10]
    assert record.groups.tolist() == [0, 1, 2]
    assert record.rewards.isnan().tolist() == [True, True, False]
    assert record.rewards[2] == 0.75
    assert run.provenance.missing_mass is None
    # Step 3 is of the older schema, which has no temperatures.
    assert run.provenance.temperature is None
    assert "(0.5, not told for some tokens)" in run.provenance.entropy_basis
    newer = import_file(FIXTURES / "token_exports" / "step_10", tmp_path / "newer").provenance
    assert (newer.temperature, newer.entropy_temperature) == (0.5, 0.5)


def test_the_older_layout_of_token_exports_says_the_same(tmp_path):
    old = import_file(FIXTURES / "prime_tokens.jsonl", tmp_path / "old").rollouts()
    new = import_file(FIXTURES / "token_exports/step_3/rank_0.jsonl", tmp_path / "new").rollouts()
    for name in ("tokens", "valid", "entropy", "logprobs"):
        assert torch.equal(getattr(old, name)[0], getattr(new, name)[0])
    assert old.rewards.tolist() == [1.0]
    assert new.rewards is None


def test_a_tokenizer_gives_exported_ids_their_texts(tmp_path):
    file = tmp_path / "ids.jsonl"
    line = json.loads((FIXTURES / "prime_tokens.jsonl").read_text())
    for i, token in enumerate(line["tokens"]):
        token["id"] = i + 1
    file.write_text(json.dumps(line))
    bare = import_file(file, tmp_path / "bare")
    assert bare.rollouts().pieces == {}
    run = import_file(file, tmp_path / "run", tokenizer=tiny_tokenizer())
    assert run.rollouts().text(0) == "<bos><eos><unk>w0 w1 w2 "


def test_a_tokenizer_gives_vllms_ids_their_texts(tmp_path):
    """The prompt that the file does not have has a text of the import's own all along."""
    file = tmp_path / "ids.json"
    text = (FIXTURES / "vllm_chat_ids.json").read_text()
    for theirs, mine in ((9906, 5), (128009, 2), (13347, 7), (19182, 8), (1917, 96)):
        text = text.replace(f"token_id:{theirs}", f"token_id:{mine}")
    file.write_text(text)
    assert import_file(file, tmp_path / "bare").rollouts().completion(0) == ""
    record = import_file(file, tmp_path / "run", tokenizer=tiny_tokenizer()).rollouts()
    assert record.text(0) == f"{UNKNOWN}w1 w7 <eos>"
    assert record.completion(0) == "w1 w7 "  # the end of a turn is no text
    shown = [record.pieces[i].decode() for i in record.alternatives.ids[0, 1].tolist()]
    assert shown == ["w3 ", "w1 ", "w4 "]


def test_a_tokenizer_changes_no_text_that_the_file_has(tmp_path):
    run = import_file(FIXTURES / "openai_chat.json", tmp_path / "run", tokenizer=tiny_tokenizer())
    bare = import_file(FIXTURES / "openai_chat.json", tmp_path / "bare").rollouts()
    assert run.rollouts().text(0) == f"{UNKNOWN}Sure ✨ so"
    assert run.rollouts().pieces == bare.pieces
    assert run.rollouts().special_ids == bare.special_ids  # its ids are not the tokenizer's


def test_an_imported_run_is_a_run_like_any_other(tmp_path):
    run = import_file(FIXTURES / "openai_chat.json", tmp_path / "a" / "run")
    assert (run.plan, run.complete, run.manifest.status) == (None, True, "complete")
    assert run.manifest.provenance == run.provenance.to_dict()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
    assert repr(open_run(tmp_path / "a" / "run").rollouts()).startswith("Rollouts(2 rows")


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path):
    out = tmp_path / "run"
    import_file(FIXTURES / "openai_chat.json", out)
    before = contents(out)
    with pytest.raises(RunConflict, match="already holds a run"):
        import_file(FIXTURES / "trl_text", out)
    with pytest.raises(RunError, match="cannot be imported"):
        import_file(FIXTURES / "README.md", out, overwrite=True)
    assert contents(out) == before
    import_file(FIXTURES / "trl_text", out, overwrite=True)
    assert len(open_run(out)) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_many_rows_are_many_chunks_with_one_vocabulary(tmp_path):
    response = json.loads((FIXTURES / "openai_chat.json").read_text())
    (tmp_path / "many.jsonl").write_text((json.dumps(response) + "\n") * 150)
    run = import_file(tmp_path / "many.jsonl", tmp_path / "run")
    assert (len(run), run.chunks) == (300, [0, 1])
    record = run.rollouts()
    assert len(set(record.groups.tolist())) == 150
    assert {record.completion(i) for i in range(0, 300, 2)} == {"Sure ✨ so"}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.json", b"", "looks like none of|not JSON"),
        ("x.json", b"{", "not JSON"),
        ("x.json", b"[" * 10**5, "not JSON"),
        ("x.json", b"\xff\xfe", "utf-8"),
        ("x.json", b'{"hello": 1}', "looks like none of openai, trl, prime-rl"),
        ("x.json", b'{"choices": []}', "no token in it has a log-probability"),
        ("x.json", b'{"choices": [{"logprobs": null}]}', "no token in it has a log-probability"),
        ("x.json", b'{"choices": 3}', "choices should be a list, got int"),
        ("x.json", b'{"choices": [{"logprobs": {"content": [{"token": 1}]}}]}', "should be a text"),
        ("x.json", b'{"choices": [{"logprobs": {"content": [{"token": "a", "logprob": 1}]}}]}',
         "above 0"),
        ("x.json", b'{"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1e999}]}}]}',
         "finite"),
        ("x.json", b'{"logprobs": {"tokens": ["a"], "token_logprobs": []}}', "differ in length"),
        ("x.jsonl", b'{"choices": []}\nnot json', "line 2 is not JSON"),
        ("x.jsonl", b'{"choices": []}\n{"foo": 1}', "response 2: it is neither a respo"),
        ("x.jsonl", b'{"id": "a", "response": null, "error": {}}\n{"a": {}}', "response 2: it is "),
        ("x.jsonl", b'{"error": {"code": 500}}', "no token in it has a log-probability"),
        ("x.jsonl", b'{"schema_version": 3, "token_ids": []}', "schema version is 3"),
        ("x.jsonl", b'{"schema_version": 1, "token_ids": [1, 2]}', "there is no 'loss_mask'"),
        ("x.jsonl", b'{"schema_version": 1, "token_ids": [1], "loss_mask": [true], "entropy": [1],'
         b' "trainer_logprobs": [0]}', "no sequence in it has a token with an entropy"),
        ("x.jsonl", b'{"schema_version": 1, "token_ids": [-1], "loss_mask": [], "entropy": [],'
         b' "trainer_logprobs": []}', "entries for 1 tokens|whole number"),
        ("x.parquet", b"PAR1", "not a Parquet file"),
        ("x.parquet", b"PAR1" + bytes(100) + b"PAR1", "not a Parquet file"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_a_sentence_and_leaves_nothing(tmp_path, name, content, why):
    source, out = tmp_path / name, tmp_path / "out" / "run"
    source.write_bytes(content)
    with pytest.raises(RunError, match="cannot be imported") as caught:
        import_file(source, out)
    assert re.search(why, caught.value.why), caught.value.why
    assert str(source) in caught.value.what
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"prompt": ["a"]}, "no column 'completion'"),
        ({"prompt": [1], "completion": ["b"]}, "the prompt is neither text nor messages"),
        ({"prompt": ["a"], "completion": [None]}, "the completion is neither"),
        ({"prompt": ["a"], "completion": ["b"], "r": [math.inf]}, "r should be a finite number"),
        ({"prompt": pa.array([], pa.string()), "completion": pa.array([], pa.string())},
         "not a single row"),
    ],
)  # fmt: skip
def test_tables_that_are_no_completions_are_refused(tmp_path, columns, why):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(RunError) as caught:
        import_file(tmp_path / "t.parquet", tmp_path / "run")
    assert why in caught.value.why
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_paths_that_hold_nothing_to_import(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, why in (("none", "no such file"), ("empty", "holds no"), ("x" * 300, "too long")):
        with pytest.raises(RunError) as caught:
            import_file(tmp_path / path, tmp_path / "run")
        assert why in caught.value.why
    import_file(FIXTURES / "openai_chat.json", tmp_path / "run")
    with pytest.raises(RunError) as caught:
        import_file(tmp_path / "run", tmp_path / "again")
    assert "a run directory already" in caught.value.why
    with pytest.raises(ValueError, match="format must be one of"):
        import_file(FIXTURES / "openai_chat.json", tmp_path / "other", format="csv")


def test_a_full_disk_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(  # noqa: S603
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(RunError, match="the disk is full"):
            import_file(FIXTURES / "trl_text", disk / "run")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_a_killed_import_left_goes_with_the_next(tmp_path):
    (tmp_path / "run" / ".tmp-new").mkdir(parents=True)
    (tmp_path / "run" / ".tmp-new" / "run.json").touch()
    import_file(FIXTURES / "openai_chat.json", tmp_path / "run")
    names = {"run.json", "samples.parquet", "tokens.parquet"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names


def test_a_format_that_is_named_is_not_guessed(tmp_path):
    file = tmp_path / "logprobs"
    shutil.copy(FIXTURES / "openai_chat.json", file)
    assert len(import_file(file, tmp_path / "run", format="openai")) == 2
    with pytest.raises(RunError, match="cannot be imported"):
        import_file(file, tmp_path / "wrong", format="prime-rl")


@pytest.mark.parametrize("name", ["openai_chat.json", "vllm_chat_ids.json", "token_exports"])
def test_an_imported_run_can_be_looked_at(tmp_path, name):
    run = import_file(FIXTURES / name, tmp_path / "run")
    page = heatmap(run.rollouts())
    assert "imported" in page
    assert ("on average" in page) == (name != "token_exports")
    assert ("<td>unknown" in page) == (name == "token_exports")


def answer(logprob=-0.25, top=("a", "b"), token="a"):
    """Give a response of one token, whose alternatives are less and less probable."""
    listed = [{"token": t, "logprob": -0.25 - 2.0 * i} for i, t in enumerate(top)]
    entry = {"token": token, "logprob": logprob, "top_logprobs": listed}
    return {"model": "m", "choices": [{"logprobs": {"content": [entry]}}]}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


ERRORS = (
    {"custom_id": "a", "response": None, "error": None},
    {"custom_id": "a", "response": None, "error": {"code": "expired"}},
    {"custom_id": "a", "response": {"status_code": 400, "body": {"error": {"message": "no"}}}},
    {"error": {"message": "no"}},
    {"object": "error", "message": "no"},
    {"request": {"prompt": "x"}, "response": {"error": "no", "choices": None}},
)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("first", [False, True])
def test_errors_and_answers_without_logprobs_are_counted_not_lost(tmp_path, error, first):
    bare = {"choices": [{"message": {"content": "x"}, "logprobs": None}]}
    lines = [answer(), bare, error, answer()]
    file = write_lines(tmp_path / "p.jsonl", lines[2:] + lines[:2] if first else lines)
    counts = []
    run = import_file(file, tmp_path / "run", on_skipped=counts.append)
    assert (len(run), counts) == (2, [2])
    assert "2 of 4 left out" in run.provenance.origin
    whole = import_file(FIXTURES / "openai_chat.json", tmp_path / "w", on_skipped=counts.append)
    assert counts == [2, 0]
    assert "left out" not in whole.provenance.origin


def test_a_choice_without_logprobs_is_counted_among_its_response(tmp_path):
    response = answer()
    response["choices"] += [{"logprobs": None}, {"logprobs": {"content": []}}]
    counts = []
    run = import_file(
        write_lines(tmp_path / "p.jsonl", [response]), tmp_path / "run", on_skipped=counts.append
    )
    assert (len(run), counts) == (1, [2])


def test_logprobs_alone_are_a_response(tmp_path):
    inner = answer()["choices"][0]["logprobs"]
    file = write_lines(tmp_path / "p.jsonl", [answer(), inner, {"logprobs": inner}])
    assert len(import_file(file, tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("response", "rank"),
    [
        (answer(-2.0, ()), -1),  # nobody ranked it
        (answer(-2.0, ("x",)), -1),  # one is more probable, and perhaps others are
        (answer(-0.25, ("a", "b")), 0),
        (answer(-2.25, ("x", "a", "b")), 1),
        (answer(-0.25, ("a",)), 0),  # 78%: no other token can have more
        (answer(-2.25, ("x", "a")), -1),  # 11% of 89%: others may lie between
        (answer(-4.25, ("x", "y", "a")), -1),
    ],
)
def test_a_rank_is_known_only_where_the_list_settles_it(tmp_path, response, rank):
    run = import_file(write_lines(tmp_path / "p.jsonl", [response]), tmp_path / "run")
    assert run.rollouts().ranks[0].tolist()[1:] == [rank]
    basis = run.provenance.entropy_basis
    assert ("the drawn token alone" in basis) == (not run.rollouts().alternatives.ids.numel())
    assert " 0 most probable" not in basis


def exported(temperatures, **changes):
    """Give a token export of three tokens, two of them trained."""
    line = {"schema_version": 1, "step": 1, "token_ids": [5, 6, 7]}
    line |= {"loss_mask": [False, True, True], "entropy": [0.0, 0.5, 0.25]}
    line |= {"trainer_logprobs": [0.0, -1.0, -2.0]}
    return line | ({} if temperatures is None else {"temperatures": temperatures}) | changes


def test_sequences_without_an_entropy_are_counted(tmp_path):
    empty = exported([1.0] * 3, loss_mask=[False] * 3)
    counts = []
    run = import_file(
        write_lines(tmp_path / "p.jsonl", [exported([1.0] * 3), empty, empty]),
        tmp_path / "run",
        on_skipped=counts.append,
    )
    assert (len(run), counts) == (1, [2])
    assert "2 of 3 left out" in run.provenance.origin


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([[0.6] * 3, [0.8] * 3], " (0.6, 0.8, mixed)"),
        ([[0.6, 0.6, 0.8]], " (0.6, 0.8, mixed)"),
        ([None], " (not told)"),
        ([[0.6] * 3, None], " (0.6, not told for some tokens)"),
        ([[0.1 * i] * 3 for i in range(1, 8)], " (0.1 to 0.7, mixed)"),
        ([[0.6] * 3], ""),
    ],
)
def test_an_entropys_temperature_is_stated_only_where_it_is_known(tmp_path, lines, told):
    file = write_lines(tmp_path / "p.jsonl", [exported(values) for values in lines])
    run = import_file(file, tmp_path / "run")
    about, known = run.provenance, not told
    assert (
        about.entropy_basis == f"the trainer's logits / sampling temperature{told}, full vocabulary"
    )
    assert about.temperature == about.entropy_temperature == (0.6 if known else None)
    assert ("Entropy at temperature" in dict(origin(run.rollouts()))) is known
    assert ("Entropy at temperature" in heatmap(run.rollouts())) is known


@pytest.mark.parametrize("name", ["openai_chat.json", "trl_text"])
def test_imports_without_a_temperature_have_none_for_their_entropies(tmp_path, name):
    about = import_file(FIXTURES / name, tmp_path / "run").provenance
    assert (about.temperature, about.entropy_temperature) == (None, None)


@pytest.mark.parametrize("name", ["prime_tokens.jsonl", "trl_text/completions_00001.parquet"])
def test_a_file_of_the_folder_one_stands_in_is_named_with_it(tmp_path, monkeypatch, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    file = Path(shutil.copy(FIXTURES / name, folder)).name
    monkeypatch.chdir(folder)
    for path, out in ((file, "a"), (f"../mine/{file}", "b"), (".", "c")):
        assert import_file(path, tmp_path / out).provenance.origin.startswith(f"mine/{file}: ")
