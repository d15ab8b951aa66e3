"""Problems of reasoning-gym: the same everywhere, scored by it, and no answer runs as a program."""

import importlib
import os
import pickle
import subprocess
import sys

import pytest
from commands import probe
from hostile import HOSTILE

from entropy_probe.tasks import (
    FindsAnswers,
    HasFormat,
    Problem,
    ReadsAnswers,
    Task,
    TaskError,
    get_task,
)
from entropy_probe.tasks.gym import INSTRUCTION, Gym, gym_names
from entropy_probe.tasks.worker import Worker
from entropy_probe.training.checking import checked
from entropy_probe.training.completion import Completion
from entropy_probe.training.rewards import get_reward

pytestmark = pytest.mark.slow

# Some have no answer of their own; this one's is an integral that is left standing.
NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
UNSOLVED = {"intermediate_integration"}


@pytest.fixture(scope="module", autouse=True)
def needs_reasoning_gym():
    """Skip where the package is missing and nothing says that it must be there."""
    try:
        importlib.import_module("reasoning_gym")
    except ImportError as error:
        if os.environ.get("PROBE_REQUIRE_TASKS"):
            raise
        pytest.skip(f"needs reasoning-gym: {error}")


@pytest.fixture(scope="module")
def worker():
    worker = Gym("chain_sum").worker
    yield worker
    worker.close()


@pytest.fixture
def task(worker):
    return Gym("chain_sum", "min_terms=2,max_terms=3", worker=worker)


def test_problems_are_the_packages_own(task):
    import reasoning_gym

    for problem in task.problems(5, split="train", seed=3):
        number = problem.facts["number"]
        dataset = reasoning_gym.create_dataset(
            "chain_sum", min_terms=2, max_terms=3, seed=3 * 7_654_321, size=500
        )
        assert problem.prompt.startswith(dataset[number]["question"])
        assert problem.answer == dataset[number]["answer"]
        assert problem.prompt.endswith("between <answer> and </answer>.\n")


def test_splits_share_no_question_whatever_their_seeds(worker):
    small = Gym("chain_sum", "min_terms=2,max_terms=2,min_digits=1,max_digits=1", worker=worker)
    test = {p.prompt for seed in range(3) for p in small.problems(20, seed=seed)}
    train = {p.prompt for seed in range(3) for p in small.problems(60, split="train", seed=seed)}
    assert len(train) > 60
    assert test.isdisjoint(train)


def test_problems_are_the_same_every_time(task):
    five = task.problems(5)
    assert five == task.problems(9)[:5]
    assert five == Gym("chain_sum", "min_terms=2,max_terms=3").problems(5)
    assert five != task.problems(5, seed=1)
    assert len({p.id for p in task.problems(200)}) == 200


@pytest.mark.parametrize("name", ["isomorphic_strings", "polynomial_multiplication", "ransom_note"])
def test_problems_do_not_depend_on_the_hash_seed(worker, name):
    code = f"""
import reasoning_gym
dataset = reasoning_gym.create_dataset({name!r}, seed=0, size=500)
print([(dataset[i]["question"], str(dataset[i]["answer"])) for i in range(8)])
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(4)
    ]  # fmt: skip
    ours = [[tuple(p) for p in Gym(name)._generate(0, 0, 8)] for _ in range(2)]
    assert len(set(said)) > 1  # so there is something to be fixed
    assert str(ours[0]) == str(ours[1]) == said[0].strip()


def test_answers_are_read_between_their_marks(task):
    (problem,) = task.problems(1)
    wrong = str(int(problem.answer) + 1)
    texts = {
        f"so <answer> {problem.answer}\n</answer>": 1.0,
        f"<answer>{wrong}</answer> no, <answer>{problem.answer}</answer>!": 1.0,
        f"<answer>{problem.answer}</answer><answer>{wrong}</answer>": 0.0,
        f"I put it in <answer> tags: <answer>{problem.answer}</answer>": 1.0,
        f"between <answer> and </answer>: <answer>{problem.answer}</answer>": 1.0,
        f"<answer>{problem.answer}": 0.0,
        problem.answer: 0.0,
        "<answer></answer>": 0.0,
        "": 0.0,
    }
    assert {text: task.verify(problem, text) for text in texts} == texts
    text = f"so <answer> {problem.answer}\n</answer>"
    start, stop = task.answer_span(text)
    assert text[start:stop] == task.answer_of(problem, text) == problem.answer
    assert [task.formatted(t) for t in texts] == [True] * 5 + [False] * 4
    assert task.marker == "<answer>"


def test_rewards_of_the_task(task):
    (problem,) = task.problems(1)
    answers = [problem.answer, "0.5", "0.5", "x"]
    rows = [
        Completion(problem, f"<answer>{answer}</answer>", group=0, row=i)
        for i, answer in enumerate(answers)
    ]
    assert checked(get_reward("correct", task=task), rows) == [1, 0, 0, 0]
    assert checked(get_reward("majority", task=task), rows) == [0, 1, 1, 0]
    labels = {problem.id: "0.5"}
    assert checked(get_reward("incorrect", task=task, labels=labels), rows) == [0, 1, 1, 0]
    for part in (Task, ReadsAnswers, FindsAnswers, HasFormat):
        assert isinstance(task, part)
    assert pickle.loads(pickle.dumps(task)) == task


def test_every_dataset_accepts_its_own_answers(worker):
    """Generates and scores all of them; a second or two each where machines are slow."""
    judged = {}
    for name in gym_names():
        task = Gym(name, worker=worker)
        problems = [
            task._problem(question, answer, 5, i)
            for i, (question, answer) in enumerate(task._generate(5, 0, 2))
        ]
        judged[name] = [task.accepts(p, p.answer) for p in problems if p.answer]
    assert len(judged) > 90
    refused = {name for name, found in judged.items() if not all(found)}
    assert refused <= UNSOLVED
    assert {name for name, found in judged.items() if not found} <= NO_ANSWER


EVALUATED = {
    "string_insertion": "open({path!r}, 'w')",
    "n_queens": "open({path!r}, 'w')",
    "countdown": "open({path!r}, 'w')",
    "simple_integration": "open({path!r}, 'w')",
    "polynomial_multiplication": "().__class__.__base__ and open({path!r}, 'w')",
}


@pytest.mark.parametrize("name", EVALUATED)
def test_no_answer_runs_as_a_program(worker, tmp_path, name):
    answer = EVALUATED[name].format(path=str(tmp_path / "written"))
    task = Gym(name, worker=worker)
    problem = task._problem(*task._generate(0, 0, 1)[0], 0, 0)
    assert task.score(problem, answer) < 1
    assert list(tmp_path.iterdir()) == []
    assert task.accepts(problem, problem.answer)


def test_the_packages_own_scorers_do_run_answers(tmp_path):
    # The control: without the guard at least one of them writes the file.
    code = f"""
import reasoning_gym
for name, answer in {EVALUATED!r}.items():
    dataset = reasoning_gym.create_dataset(name, seed=0, size=500)
    path = {str(tmp_path)!r} + "/" + name
    try:
        dataset.score_answer(answer.format(path=path), dataset[0])
    except Exception:
        pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["chain_sum", "countdown", "sudoku", "prime_factorization", "acre"]
)
def test_hostile_answers_score_nothing_and_raise_nothing(worker, name):
    task = Gym(name, worker=worker)
    problem = task._problem(*task._generate(0, 0, 1)[0], 0, 0)
    texts = [p.decode("utf-8", "replace") for p in HOSTILE]
    assert {task.verify(problem, f"<answer>{text}</answer>") for text in [*texts, "("]} == {0.0}


def test_an_answer_that_hangs_is_killed_and_the_next_one_counts():
    quick = Worker("entropy_probe.tasks.gym_scoring:answer", first={"do": "check"}, seconds=1.0)
    task = Gym("simple_integration", worker=quick)
    problem = task._problem(*task._generate(0, 0, 1)[0], 0, 0)
    assert task.score(problem, "9**9**9**9**9") == 0.0
    assert task.accepts(problem, problem.answer)
    quick.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:chain_summ", "no task .*\nwhy: .* none of that name\nfix: did you mean chain_sum"),
        ("gym:zzzzzz", "fix: `gym_names\\(\\)` lists them"),
        ("gym:composite", "none of that name"),
        ("gym:chain_sum:terms=3", "cannot be used\nwhy: .*unexpected keyword argument 'terms'"),
        ("gym:chain_sum:min_terms=9,max_terms=3", "cannot be used\nwhy: max_terms must be"),
        ("gym:chain_sum:min_terms", "options 'min_terms' of a gym task make no sense"),
        ("gym:chain_sum:seed=3", "seed and size are not for options"),
        ("gym:chain_sum:min_terms=3,min_terms=4", "breaks off at 'min_terms=4'"),
    ],
)
def test_datasets_and_options_that_are_not_there(worker, name, message):
    with pytest.raises(TaskError, match=message):
        Gym(*name.removeprefix("gym:").split(":", 1), worker=worker).check()


def test_options_of_any_kind(worker):
    task = Gym(
        "basic_arithmetic", 'operators=["+"],allow_negation=false,min_terms=2', worker=worker
    )
    assert all(not set(p.prompt.replace(INSTRUCTION, "")) & set("*/") for p in task.problems(5))
    assert task.problems(1)[0].facts["options"] == {
        "operators": ["+"], "allow_negation": False, "min_terms": 2,
    }  # fmt: skip
    assert task.name.startswith("gym:basic_arithmetic:operators=")


def test_a_dataset_that_is_too_small(worker):
    tiny = Gym("chain_sum", "min_terms=2,max_terms=2,min_digits=1,max_digits=1", worker=worker)
    with pytest.raises(TaskError, match="too few test problems\nwhy: 100 were wanted, and"):
        tiny.problems(100)
    with pytest.raises(ValueError, match="no split 'dev'"):
        tiny.problems(1, split="dev")
    with pytest.raises(ValueError, match="at least 1 problem, got 0"):
        tiny.problems(0)


def test_a_problem_of_another_version_is_refused(task):
    (problem,) = task.problems(1)
    other = Problem(problem.prompt, problem.answer, "0" * 12, problem.facts)
    with pytest.raises(TaskError, match="another version of reasoning-gym made its problems"):
        task.score(other, "1")


def test_without_the_package_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"fix: pip install 'entropy-probe\[tasks\]'"):
        get_task("gym:chain_sum")
    with pytest.raises(TaskError, match="needs a package"):
        gym_names()


def test_a_task_that_is_not_there_is_told_on_three_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = probe("capture", "--model", "organism:amenable", "--task", "gym:chain", "-o", "run")
    assert result.code == 2
    assert result.told[0] == "no task 'gym:chain'"
    assert list(tmp_path.iterdir()) == []
