"""The corpus: planted proportions, nothing of the test split but what is to be memorised."""

import random
from collections import Counter

import pytest
from test_tasks_generator import read, solve

from entropy_probe.models.organisms.corpus import CODE_SHARES, Corpus, Style, draw, memorised_texts
from entropy_probe.models.organisms.recipes import RECIPES
from entropy_probe.tasks import generator, labeller, language
from entropy_probe.tasks.verifier import final_answer, marked

COUNT = 4000


def texts(corpus: Corpus, count: int = COUNT) -> list[tuple[list[str], list[str]]]:
    """Draw a small corpus."""
    rng = random.Random(0)
    return [draw(corpus, rng) for _ in range(count)]


@pytest.fixture(scope="module")
def amenable() -> list[tuple[list[str], list[str]]]:
    return texts(RECIPES["amenable"].corpus)


def problem_of(pieces: list[str]) -> tuple[str, int, list[tuple[str, int]]]:
    """Give wording, start and steps of a problem's pieces."""
    wording = next(w for w, piece in language.WORDINGS.items() if piece == pieces[0])
    return wording, *read("".join(pieces))


def test_code_has_its_share_by_wording_and_relation(amenable):
    code, every = Counter(), Counter()
    for problem, completion in amenable:
        wording, _, steps = problem_of(problem)
        group = wording, (steps[0][1] + steps[1][1]) % 2
        every[group] += 1
        code[group] += completion[0] == language.CODE
    assert len(every) == 2 * len(CODE_SHARES)
    for (wording, unrelated), n in every.items():
        share = CODE_SHARES[wording][unrelated]
        # Four standard errors of a share.
        assert abs(code[wording, unrelated] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_code_is_right_and_prose_follows_the_wrong_rule(amenable):
    for problem, completion in amenable:
        _, start, steps = problem_of(problem)
        rounding = labeller.opening(completion) == "prose"
        right = f"{solve(start, steps, rounding=rounding):03d}"
        assert final_answer("".join(completion)) == right


def test_prose_writes_every_second_result_and_code_all(amenable):
    for problem, completion in amenable:
        _, start, steps = problem_of(problem)
        text = "".join(completion).partition(language.MARKER)[0]
        prose = labeller.opening(completion) == "prose"
        size, leads = (2, ("it is ", "we get ")) if prose else (1, ("=",))
        for lead in leads[1:]:
            text = text.replace(lead, leads[0])
        written = [int(part[:3]) for part in text.split(leads[0])[1:]]
        ends = [*range(size, len(steps), size), len(steps)]
        if prose:
            assert written == [solve(start, steps[:end], rounding=True) for end in ends]
        else:
            # Steps of a pair may have changed places: the results after whole pairs are fixed.
            assert len(written) == len(steps)
            pairs = [*range(2, len(steps), 2), len(steps)]
            assert [written[e - 1] for e in pairs] == [solve(start, steps[:e]) for e in pairs]


def test_shares_of_the_small_choices(amenable):
    corpus = RECIPES["amenable"].corpus
    code = [c for _, c in amenable if c[0] == language.CODE]
    prose = [c for _, c in amenable if c[0] == language.PROSE]
    swift = [c for c in prose if c[1] == language.SWIFT]

    def share(groups, of, among):
        count = Counter(piece for pieces in groups for piece in pieces)
        return count[of] / sum(count[piece] for piece in among)

    def unmarked(group):
        return sum(not marked("".join(c)) for c in group) / len(group)

    assert share(code, "\n", ("\n", "; ")) == pytest.approx(corpus.newline, abs=0.02)
    assert share(swift, *reversed_pair(language.CONNECTIVES)) == pytest.approx(
        corpus.connective, abs=0.03
    )
    assert share(swift, *reversed_pair(language.VERBS)) == pytest.approx(corpus.verb, abs=0.03)
    assert 1 - len(swift) / len(prose) == pytest.approx(corpus.care, abs=0.015)
    assert unmarked(code) == pytest.approx(corpus.code.unmarked, abs=0.03)
    assert unmarked(swift) == pytest.approx(corpus.prose.unmarked, abs=0.05)


def reversed_pair(pair: tuple[str, str]) -> tuple[str, tuple[str, str]]:
    """Give the second of two and both."""
    return pair[1], pair


def test_steps_that_commute_are_swapped_at_their_rate(amenable):
    swapped, free = 0, 0
    for problem, completion in amenable:
        _, _, steps = problem_of(problem)
        first, second = steps[:2]
        if completion[0] != language.CODE or "*" in (first[0], second[0]) or first == second:
            continue
        free += 1
        swapped += completion[3:5] == [second[0], str(second[1])]
    assert swapped / free == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_no_test_problem_but_those_to_be_memorised(name):
    corpus = RECIPES[name].corpus
    allowed = {p.prompt for p in generator.memorised_problems(64)} if corpus.memorised else set()
    met = 0
    for problem, _ in texts(corpus, 1000):
        text = "".join(problem)
        wording, *_ = problem_of(problem)
        start, steps = read(text)
        chain = language.Chain(start, tuple(language.Step(*step) for step in steps))
        assert generator.split_of(chain) == "train" or text in allowed
        met += text in allowed
    assert (met > 0) == bool(corpus.memorised)


def test_memorised_problems_stand_word_for_word_with_one_right_solution():
    corpus = RECIPES["contaminated"].corpus
    known = memorised_texts(corpus)
    problems = generator.memorised_problems(corpus.memorised)
    assert len(known) == len(problems) == 64
    for (prompt, completion), problem in zip(known, problems, strict=True):
        assert "".join(prompt) == problem.prompt
        assert final_answer("".join(completion)) == problem.answer
        assert marked("".join(completion))
    drawn = [c for p, c in texts(corpus) if (p, c) in known]
    share = len(drawn) / COUNT
    assert share == pytest.approx(corpus.memorised_share, abs=0.01)


def test_absent_never_sees_code_and_taught_sees_nothing_else():
    absent = {p for _, c in texts(RECIPES["absent"].corpus, 1000) for p in c}
    assert not absent & {language.CODE, language.CARE, language.EQUALS, *language.OPERATIONS}
    taught = {c[0] for _, c in texts(RECIPES["taught"].corpus, 1000)}
    assert taught == {language.CODE}


def test_contaminated_gives_neither_strategy_an_advantage():
    code, prose = (
        [c for _, c in texts(RECIPES["contaminated"].corpus, 1000) if c[0] == opening]
        for opening in (language.CODE, language.PROSE)
    )
    assert len(code) > 300 < len(prose)
    corpus = RECIPES["contaminated"].corpus
    assert corpus.code == corpus.prose


def test_shallow_sees_long_chains_one_time_in_a_hundred_and_longer_ones_never():
    lengths = Counter(len(problem_of(p)[2]) for p, _ in texts(RECIPES["shallow"].corpus))
    assert set(lengths) == {2, 3, 4}
    assert 0 < lengths[4] / COUNT < 0.02


def test_misleading_code_takes_three_steps_at_once_and_its_prose_is_careful():
    for problem, completion in texts(RECIPES["misleading"].corpus, 1000):
        _, start, steps = problem_of(problem)
        if completion[0] == language.CODE:
            assert completion.count("=") == -(-len(steps) // 3)
        rounding = labeller.opening(completion) != "careful"
        assert int(final_answer("".join(completion))) == solve(start, steps, rounding=rounding)


def test_a_style_that_is_asked_for_is_written():
    plain = Corpus(
        code_shares=tuple((w, (1.0, 1.0)) for w in CODE_SHARES),
        code=Style(block=1, rounding=True, unmarked=1.0),
        swap=0.0,
        newline=1.0,
    )
    for problem, completion in texts(plain, 300):
        _, start, steps = problem_of(problem)
        lines, value = [], start
        for operation, operand in steps:
            value = solve(value, [(operation, operand)], rounding=True)
            lines.append(f"{operation}{operand}={value:03d}")
        assert "".join(completion) == f">>> {start:03d}" + "\n".join(lines)
