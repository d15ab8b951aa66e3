"""Which completions ended by themselves, on rows whose ends are known."""

import pytest
from tiny import tiny_model, tiny_tokenizer

from entropy_probe import sample
from entropy_probe.training.truncation import finished

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def drawn(model, limit, **options):
    prompts = [f"w{i} w{i + 1} " for i in range(6)]
    return sample(model, TOKENIZER, prompts, n=8, max_new_tokens=limit, seed=1, **options)


def last_tokens(rows):
    return [int(rows.tokens[i, end - 1]) for i, end in enumerate(rows.lengths.tolist())]


def test_rows_end_by_the_end_token_or_are_cut(model):
    rows = drawn(model, 40)
    found = finished(model, TOKENIZER, rows, 40)
    assert found == [token == TOKENIZER.eos_token_id for token in last_tokens(rows)]
    assert 0 < sum(found) < len(found)


def test_an_end_at_the_very_limit_is_no_cut(model):
    rows = drawn(model, 40)
    lengths = (rows.lengths - rows.prompt_lengths).tolist()
    ended = [i for i, token in enumerate(last_tokens(rows)) if token == TOKENIZER.eos_token_id]
    tight = lengths[ended[0]]
    assert finished(model, TOKENIZER, rows, tight)[ended[0]]


def test_a_text_or_a_token_of_yours_ends_a_row(model):
    stop = ("w5 ", 77)
    rows = drawn(model, 40, stop=stop)
    found = finished(model, TOKENIZER, rows, 40, stop)
    by_text = ["w5 " in rows.completion(row) for row in range(len(rows))]
    for row, token in enumerate(last_tokens(rows)):
        assert found[row] == (token in (TOKENIZER.eos_token_id, 77) or by_text[row])
    assert any(by_text)
    # At the very limit only the text says that it was no cut.
    row = by_text.index(True)
    tight = int(rows.lengths[row] - rows.prompt_lengths[row])
    assert finished(model, TOKENIZER, rows, tight, stop)[row]
    assert not finished(model, TOKENIZER, rows, tight)[row]


def test_the_end_of_the_context_cuts(model):
    rows = drawn(model, 40)
    short = tiny_model()
    longest = int(rows.lengths.max())
    short.config.max_position_embeddings = longest
    at_end = [length == longest for length in rows.lengths.tolist()]
    cut = [not done for done in finished(short, TOKENIZER, rows, 99)]
    by_token = [token == TOKENIZER.eos_token_id for token in last_tokens(rows)]
    assert cut == [at and not by for at, by in zip(at_end, by_token, strict=True)]
    assert any(cut)
