"""`probe capture`: what it writes is what `sample` gives, and what it refuses leaves nothing."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from commands import files_under, probe, tiny_folder
from tiny import tiny_model

from entropy_probe import load, open_run, sample
from entropy_probe.cli.running import default_out
from entropy_probe.tasks import get_task

PROMPTS = ["w1 w2 w3 ", "w4 "]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def capture(*words, stdin=b""):
    return probe("capture", "--model", tiny_folder(), *words, stdin=stdin)


def test_the_run_holds_what_sample_gives():
    result = capture(
        "-p", PROMPTS[0], "-p", PROMPTS[1], "--n", 3, "--max-new-tokens", 9, "--temperature", 0.7,
        "--top-p", 0.9, "--top-k", 50, "--layers", "0,-1", "--activations", "forks",
        "--alternatives", 2, "--seed", 5, "--batch-size", 4, "--stop", "w7 ", "--fraction", 0.5,
        "-o", "made/run",
    )  # fmt: skip
    assert (result.code, result.out) == (0, "made/run\n")
    assert "6 samples in made/run: at most" in result.err
    model, tokenizer = load(tiny_folder())
    wanted = sample(
        model, tokenizer, PROMPTS, n=3, max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=50,
        residual_layers=[0, -1], residual_positions="forks", alternatives=2, seed=5, batch_size=4,
        stop=["w7 "], fraction=0.5,
    )  # fmt: skip
    found = open_run("made/run").rollouts()
    for name in ("tokens", "valid", "entropy", "logprobs", "captured", "controls"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert list(found.residuals) == [0, 2]
    assert all(torch.equal(found.residuals[k], wanted.residuals[k]) for k in (0, 2))


def test_json_says_where_and_how_much():
    result = capture("-p", "w1 ", "--n", 2, "--max-new-tokens", 4, "-o", "run", "--json")
    tokens = int(open_run("run").rollouts().valid.sum())
    assert result.json == {
        "run": "run", "status": "complete", "samples": 2, "tokens": tokens, "mean_reward": None,
    }  # fmt: skip


def test_quiet_says_nothing_but_the_path():
    result = capture("-p", "w1 ", "--max-new-tokens", 2, "-o", "run", "-q")
    assert (result.code, result.out, result.err) == (0, "run\n", "")


def test_without_out_each_run_has_a_folder_of_its_own():
    first, second = (capture("-p", "w1 ", "--max-new-tokens", 2).last for _ in range(2))
    assert first != second
    for path in (first, second):
        assert path.startswith(f"runs/{Path(tiny_folder()).name}-")
        assert open_run(path).complete


def test_a_folder_that_is_there_is_not_taken_for_a_new_run():
    for _ in range(3):
        path = default_out("organism:m/../\x1b[31m n.gguf")
        assert re.fullmatch(r"runs/31m-n-[\d-]+", str(path))
        path.mkdir(parents=True)


@pytest.mark.parametrize(
    ("words", "content"),
    [
        (("--prompts", "prompts"), b"w1 w2 w3 \r\n\n  \nw4 \n"),
        (("--prompts", "-"), b"\xef\xbb\xbfw1 w2 w3 \nw4 "),
        (("--prompts", "prompts"), b'{"prompt": "w1 w2 w3 ", "id": 7}\n\n{"prompt": "w4 "}\n'),
    ],
)
def test_prompts_from_a_file_are_those_given_one_by_one(words, content):
    Path("prompts").write_bytes(content)
    assert capture(*words, "--max-new-tokens", 2, "-o", "run", stdin=content).code == 0
    assert open_run("run").plan.inputs == PROMPTS


def test_messages_go_through_the_chat_template():
    model, tokenizer = load(tiny_folder())
    tokenizer.chat_template = "{% for m in messages %}w9 {{ m['content'] }}{% endfor %}"
    model.save_pretrained("chat")
    tokenizer.save_pretrained("chat")
    line = json.dumps({"messages": [{"role": "user", "content": "w5 "}]})
    result = probe(
        "capture", "--model", "./chat", "--prompts", "-", "--max-new-tokens", 2, "-o", "run",
        stdin=line.encode(),
    )  # fmt: skip
    assert result.code == 0, result.err
    rollouts = open_run("run").rollouts()
    assert rollouts.text(0).startswith("w9 w5 ")


def test_limit_takes_the_first_prompts():
    assert capture(
        "--prompts", "-", "--limit", 1, "--max-new-tokens", 2, "-o", "run", stdin=b"w1 \nw2 \n"
    ).code == 0  # fmt: skip
    assert open_run("run").plan.inputs == ["w1 "]


def test_a_tasks_answers_are_verified():
    result = probe(
        "capture", "--model", "organism:amenable", "--task", "arithmetic:short", "--limit", 4,
        "--n", 2, "--max-new-tokens", 64, "-o", "run", "--json",
    )  # fmt: skip
    task, run = get_task("arithmetic:short"), open_run("run")
    rollouts, problems = run.rollouts(), task.problems(4)
    wanted = [task.verify(problems[i // 2], rollouts.completion(i)) for i in range(8)]
    assert rollouts.rewards.tolist() == wanted
    assert result.json["mean_reward"] == sum(wanted) / 8
    assert 0 < sum(wanted)


@pytest.mark.parametrize(
    ("given", "kept"), [("all", [0, 1, 2]), ("last", [2]), ("1, -3", [1, 0]), ("-1", [2])]
)
def test_layers(given, kept):
    assert capture("-p", "w1 ", "--max-new-tokens", 3, "--layers", given, "-o", "run").code == 0
    assert open_run("run").plan.arguments["residual_layers"] == kept


def test_a_run_that_is_there_is_kept_unless_told_otherwise():
    words = ("-p", "w1 ", "--max-new-tokens", 3, "-o", "run")
    capture(*words)
    before = files_under(Path("run"))
    refused = capture(*words, "--seed", 2, "--json")
    assert refused.code == 2
    assert refused.json["error"]["code"] == "usage"
    assert refused.told[2].startswith("go on with it with --resume, replace it with --overwrite")
    assert files_under(Path("run")) == before
    again = capture(*words, "--seed", 2, "--overwrite")
    assert (again.code, open_run("run").plan.arguments["seed"]) == (0, 2)


def test_resume_of_a_complete_run_is_done_already():
    capture("-p", "w1 ", "--max-new-tokens", 3, "-o", "run")
    before = files_under(Path("run"))
    result = probe("capture", "--resume", "-o", "run")
    assert (result.code, result.out) == (0, "run\n")
    assert "run is complete already" in result.err
    assert files_under(Path("run")) == before


def test_resume_with_the_same_words_keeps_the_chunks():
    words = ("-p", "w1 ", "-p", "w2 ", "--max-new-tokens", 3, "-o", "run")
    capture(*words, "--chunk-prompts", 1)
    Path("run/samples.parquet/chunk-00001.parquet").unlink()
    result = capture(*words, "--resume")
    assert result.code == 0, result.err
    assert open_run("run").chunks == [0, 1]


def test_resume_with_another_plan_is_refused():
    capture("-p", "w1 ", "--max-new-tokens", 3, "-o", "run")
    result = capture("-p", "w1 ", "--max-new-tokens", 4, "-o", "run", "--resume")
    assert result.code == 2
    assert "max_new_tokens was 3, now 4" in result.told[1]


def test_resume_with_retrained_weights_is_refused():
    """The folder's model is another one now, and the run does not say so: its plan is old."""
    shutil.copytree(tiny_folder(), "mine")
    words = ("-p", "w1 ", "-p", "w2 ", "--max-new-tokens", 3, "--chunk-prompts", 1, "-o", "run")
    assert probe("capture", "--model", "mine", *words).code == 0
    Path("run/samples.parquet/chunk-00001.parquet").unlink()
    before = files_under(Path("run"))
    tiny_model(seed=1).save_pretrained("mine")
    for more in ((), ("--model", tiny_folder(), "--dtype", "float64")):
        result = probe("capture", "--resume", "-o", "run", *more)
        assert result.code == 2, result.err
        assert "not the one that the run was planned with" in result.told[0]
        assert "that was mine in float32" in result.told[1]
    assert files_under(Path("run")) == before
    result = probe("capture", "--resume", "-o", "run", "--model", tiny_folder())
    assert result.code == 0, result.err
    assert open_run("run").complete


PLENTY = (
    "--prompts", "-", "--limit", 5, "--n", 2, "--max-new-tokens", 6, "--chunk-prompts", 1,
    "--layers", "last",
)  # fmt: skip
WORDS = b"".join(b"w%d \n" % i for i in range(9))


def assert_same_content(one, other):
    """Compare two runs' tables and tensors, byte by byte."""
    found, wanted = files_under(Path(one)), files_under(Path(other))
    assert found.keys() == wanted.keys()
    assert all(found[name] == wanted[name] for name in found if name != "run.json")


def test_shards_together_are_the_whole_run():
    whole = capture(*PLENTY, "-o", "whole", stdin=WORDS)
    assert whole.code == 0
    first = capture(*PLENTY, "-o", "parts", "--shard", "2/2", "--json", stdin=WORDS)
    assert (first.json["status"], first.json["samples"]) == ("running", 4)
    assert "2 of 5 chunks are there" in first.err
    second = capture(*PLENTY, "-o", "parts", "--shard", "1/2", "--json", stdin=WORDS)
    assert (second.json["status"], second.json["samples"]) == ("complete", 10)
    assert_same_content("parts", "whole")


@pytest.mark.slow
def test_on_ray_it_is_the_same_run():
    pytest.importorskip("ray", reason="the ray extra is not installed")
    capture(*PLENTY, "-o", "whole", "--layers", "all", stdin=WORDS)
    result = capture(*PLENTY, "-o", "rays", "--layers", "all", "--ray", "local", stdin=WORDS)
    assert result.code == 0, result.err
    assert_same_content("rays", "whole")
    Path("rays/samples.parquet/chunk-00003.parquet").unlink()
    resumed = probe("capture", "--resume", "-o", "rays", "--ray", "local")
    assert resumed.code == 0, resumed.err
    assert_same_content("rays", "whole")
    for out, more in (("here", ()), ("there", ("--ray", "local"))):
        words = ("score", "--model", tiny_folder(), "whole", "--layers", "all", "-o", out)
        assert probe(*words, *more).code == 0
    assert_same_content("there", "here")


def drain(screen, pieces):
    """Read a terminal until nobody writes to it any more."""
    with contextlib.suppress(OSError):
        while piece := os.read(screen, 4096):
            pieces.append(piece)


def test_interrupted_by_hand_it_keeps_whole_chunks_and_says_how_to_go_on():
    words = [
        "capture", "--model", tiny_folder(), "--prompts", "prompts", "--max-new-tokens", "100",
        "--chunk-prompts", "1", "--json",
    ]  # fmt: skip
    Path("prompts").write_text("".join(f"w{i} \n" for i in range(10)))
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 200))
    process = subprocess.Popen(
        [sys.executable, "-m", "entropy_probe", *words, "-o", "run"],
        stdout=subprocess.PIPE, stderr=terminal, env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell's background jobs, and what they start, ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(terminal)
    pieces = []
    reading = threading.Thread(target=drain, args=(screen, pieces))
    reading.start()
    while not Path("run/samples.parquet/chunk-00001.parquet").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    reading.join(timeout=60)
    seen = b"".join(pieces).decode()
    assert process.returncode == 130
    saved = len(open_run("run").chunks)
    assert 2 <= saved < 10
    assert not list(Path("run").rglob("*.tmp-*"))
    assert f"why:   {saved} of 10 chunks are saved and whole in 'run'" in seen
    assert json.loads(out)["error"]["hint"] == "go on with: probe capture --resume -o run"
    assert "%|" in seen, "no progress bar on a terminal"
    assert "Traceback" not in seen
    kept = files_under(Path("run/tokens.parquet"))
    resumed = probe("capture", "--resume", "-o", "run")
    assert resumed.code == 0, resumed.err
    assert "%|" not in resumed.err, "a progress bar without a terminal"
    assert open_run("run").complete
    assert files_under(Path("run/tokens.parquet")).items() >= kept.items()


def full_disk(size):
    """Mount a small file system here, or skip."""
    Path("small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "small"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")


@pytest.mark.parametrize("other", [0, 190_000])
def test_on_a_full_disk_what_was_saved_is_whole(other):
    full_disk("200k")
    try:
        Path("small/other").write_bytes(b"x" * other)
        result = capture(
            "--prompts", "-", "--max-new-tokens", 20, "--chunk-prompts", 1, "--layers", "all",
            "--activations", "all", "-o", "small/run", "--json",
            stdin=b"".join(b"w%d \n" % i for i in range(40)),
        )  # fmt: skip
        error, _, fix = result.told
        assert "disk is full" in error
        assert not list(Path("small").rglob("*.tmp-*"))
        assert (result.code, result.json["error"]["code"]) == (
            (1, "run") if other else (4, "partial")
        )
        if not other:
            assert fix == "go on with: probe capture --resume -o small/run"
            run = open_run("small/run")
            assert 0 < len(run.chunks) < 40
            assert len(run.rollouts()) == len(run)
    finally:
        subprocess.run(["umount", "small"], check=True)


@pytest.mark.parametrize(("good", "code"), [(1, 4), (0, 2)])
def test_what_cannot_go_on_says_what_is_saved(good, code, monkeypatch):
    calls = []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) > good:
            raise ValueError("the logits of row 0 are not finite")
        return sample(*arguments, **options)

    monkeypatch.setattr("entropy_probe.computing.sample", failing)
    words = ("-p", "w1 ", "-p", "w2 ", "--chunk-prompts", 1, "--max-new-tokens", 2, "-o", "run")
    result = capture(*words)
    assert result.code == code, result.err
    assert "not finite" in result.err
    assert ("1 of 2 chunks are saved" in result.err) == bool(good)
    if good:
        assert result.told[2] == "go on with: probe capture --resume -o run"
        assert len(open_run("run").rollouts()) == 1


MODEL = ("--model", tiny_folder())
BAD = {
    "no model": (("-p", "w1 "), 2, "missing option --model"),
    "missing folder": (("--model", "./nothing", "-p", "w1 "), 1, "no folder './nothing'"),
    "missing hub model": (("--model", "no/thing", "-p", "w1 "), 1, "'no/thing' is not on this"),
    "missing organism": (("--model", "organism:amenble", "-p", "w1 "), 1, "amenble"),
    "missing gguf": (("--model", "x.gguf", "-p", "w1 "), 1, "no file 'x.gguf'"),
    "not a model": (("--model", ".", "-p", "w1 "), 1, "'.' is not a model"),
    "no device": ((*MODEL, "-p", "w1 ", "--device", "cuda:99"), 1, "device 'cuda:99'"),
    "no prompts": (MODEL, 2, "there are no prompts"),
    "two sources": ((*MODEL, "-p", "w1 ", "--task", "arithmetic"), 2, "-p and --task exclude"),
    "empty prompt": ((*MODEL, "-p", ""), 2, "prompt 0 is empty"),
    "bytes": ((*MODEL, "-p", "w1 \udcff"), 2, "prompt 0 is not text"),
    "long prompt": ((*MODEL, "-p", "w1 " * 128), 2, "the model's context is 128"),
    "no tokens": ((*MODEL, "-p", "w1 ", "--max-new-tokens", 0), 2, "'--max-new-tokens'"),
    "no samples": ((*MODEL, "-p", "w1 ", "--n", 0), 2, "'--n'"),
    "fraction 0": ((*MODEL, "-p", "w1 ", "--fraction", 0), 2, "'--fraction'"),
    "fraction 2": ((*MODEL, "-p", "w1 ", "--fraction", 2), 2, "'--fraction'"),
    "fraction nan": (
        (*MODEL, "-p", "w1 ", "--layers", "last", "--fraction", "nan"),
        2,
        "fraction must be above 0",
    ),  # fmt: skip
    "cold": ((*MODEL, "-p", "w1 ", "--temperature", -1), 2, "'--temperature'"),
    "layer": ((*MODEL, "-p", "w1 ", "--layers", 3), 2, "layer 3 is out of range"),
    "layer twice": ((*MODEL, "-p", "w1 ", "--layers", "2,-1"), 2, "name a layer twice"),
    "no layers": ((*MODEL, "-p", "w1 ", "--layers", "x"), 2, "'x' names no layers"),
    "share of nothing": ((*MODEL, "-p", "w1 ", "--fraction", 0.1), 2, "no layer to keep"),
    "share of all": (
        (*MODEL, "-p", "w1 ", "--layers", "last", "--activations", "all", "--fraction", 0.1),
        2,
        "--fraction of what",
    ),
    "no layer kept": ((*MODEL, "-p", "w1 ", "--activations", "all"), 2, "no layer to keep"),
    "alternatives": ((*MODEL, "-p", "w1 ", "--alternatives", 98), 2, "at most 97"),
    "task": ((*MODEL, "--task", "arithmetics"), 2, "no such task: arithmetics"),
    "no file": ((*MODEL, "--prompts", "nothing"), 2, "cannot read the prompts 'nothing'"),
    "empty file": ((*MODEL, "--prompts", "empty"), 2, "no prompts in 'empty'"),
    "blank file": ((*MODEL, "--prompts", "blank"), 2, "nothing but blank lines"),
    "binary file": ((*MODEL, "--prompts", "binary"), 2, "'binary' is not text"),
    "bad line": ((*MODEL, "--prompts", "bad"), 2, "line 3 of bad is not JSON"),
    "bad keys": ((*MODEL, "--prompts", "keys"), 2, "got ['text']"),
    "bad messages": ((*MODEL, "--prompts", "messages"), 2, "messages must be a list"),
    "no template": ((*MODEL, "--prompts", "chat"), 2, "no chat template"),
    "unwritable": ((*MODEL, "-p", "w1 ", "-o", "/proc/run"), 1, "cannot write to '/proc/run'"),
    "file in the way": ((*MODEL, "-p", "w1 ", "-o", "bad/run"), 1, "cannot write to 'bad/run'"),
    "taken": ((*MODEL, "-p", "w1 ", "-o", "."), 2, "taken by something that is not a run"),
    "disk limit": ((*MODEL, "-p", "w1 ", "--max-disk", "1kB"), 2, "more than the 1.0 kB allowed"),
    "size": ((*MODEL, "-p", "w1 ", "--max-disk", "much"), 2, "'much' is no size"),
    "shard": ((*MODEL, "-p", "w1 ", "-o", "r", "--shard", "3/2"), 2, "'3/2' is no shard"),
    "shard of what": ((*MODEL, "-p", "w1 ", "--shard", "1/2"), 2, "a shard of which run?"),
    "shard on ray": (
        (*MODEL, "-p", "w1 ", "-o", "r", "--shard", "1/2", "--ray", "local"),
        2,
        "exclude each",
    ),
    "shard again": (
        (*MODEL, "-p", "w1 ", "-o", "r", "--shard", "1/2", "--overwrite"),
        2,
        "a shard joins",
    ),
    "both": (
        (*MODEL, "-p", "w1 ", "--resume", "--overwrite", "-o", "run"),
        2,
        "exclude each other",
    ),
    "which run": (("--resume",), 2, "there is no -o"),
    "no run": (("--resume", "-o", "nothing"), 2, "'nothing' is not a run directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_and_leaves_nothing(name):
    words, code, text = BAD[name]
    Path("empty").touch()
    Path("blank").write_text(" \n\n")
    Path("binary").write_bytes(b"\x80\x81")
    Path("bad").write_text('{"prompt": "w1"}\n\n{"prompt": \n')
    Path("keys").write_text('{"text": "w1"}\n')
    Path("messages").write_text('{"messages": ["w1"]}\n')
    Path("chat").write_text('{"messages": [{"role": "user", "content": "w1"}]}\n')
    before = files_under(Path())
    result = probe("capture", *words, "--json")
    assert result.code == code, result.err
    assert text in " ".join(result.told)
    error = result.json["error"]
    assert text in error["message"]
    assert error["hint"] == result.told[2]
    assert files_under(Path()) == before
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("damage", "code"), [(b"{", 1), (b"{}", 2), (b'{"schema_version": 99}', 1), (None, 2)]
)
def test_a_corrupt_run_is_told(damage, code):
    capture("-p", "w1 ", "--max-new-tokens", 2, "-o", "run")
    manifest = Path("run/run.json")
    manifest.unlink() if damage is None else manifest.write_bytes(damage)
    for verb in ("forks", "report", "show"):
        assert probe(verb, "run").code == code
    result = capture("-p", "w1 ", "--max-new-tokens", 2, "-o", "run", "--resume")
    assert result.code == code
    assert all(result.told)
    assert not Path("run/report.html").exists()


def test_a_damaged_table_is_told_and_computed_again():
    capture("-p", "w1 ", "--max-new-tokens", 5, "-o", "run")
    before = open_run("run").rollouts()
    table = Path("run/tokens.parquet/chunk-00000.parquet")
    table.write_bytes(table.read_bytes()[:100])
    result = probe("forks", "run")
    assert result.code == 1
    assert "cannot be read" in result.told[0]
    again = capture("-p", "w1 ", "--max-new-tokens", 5, "-o", "run", "--resume")
    assert again.code == 0, again.err
    assert torch.equal(open_run("run").rollouts().entropy, before.entropy)
