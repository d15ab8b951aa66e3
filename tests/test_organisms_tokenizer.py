"""The tokenizer: one token a piece, texts come back exactly, one <bos> in front."""

import random

import pytest

from entropy_probe.models.organisms.corpus import Corpus, draw
from entropy_probe.models.organisms.tokenizer import (
    BOS,
    EOS,
    SPECIAL,
    UNKNOWN,
    VOCABULARY,
    build_tokenizer,
)
from entropy_probe.tasks import language


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_texts_become_their_pieces_and_come_back(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        problem, completion = draw(Corpus(care=0.3), rng)
        text = "".join((*problem, *completion))
        ids = tokenizer(text).input_ids
        assert ids == [BOS, *(VOCABULARY[piece] for piece in (*problem, *completion))]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.decode(ids) == "<bos>" + text


def test_each_piece_is_one_token(tokenizer):
    for piece in language.PIECES:
        assert tokenizer(piece, add_special_tokens=False).input_ids == [VOCABULARY[piece]]
    assert len(tokenizer) == len(SPECIAL) + len(language.PIECES)


def test_special_tokens(tokenizer):
    assert tokenizer("").input_ids == [BOS]
    assert tokenizer.eos_token_id == EOS
    assert tokenizer("Compute 473, plus 8.\n<eos>").input_ids[-1] == EOS
    assert UNKNOWN in tokenizer("Compute so").input_ids
    padded = tokenizer(["Find 473.\n", "Find 473, plus 8.\n"], padding=True)
    assert padded.input_ids[0][:2] == [0, 0]  # on the left, as generation needs it
    assert padded.attention_mask[0][:3] == [0, 0, 1]


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Compute 473, plus 8.\n>>> 473+8=481\n#### 481"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text
    assert loaded.padding_side == "left"
