"""Bytes of tokens: joined they are the text, whatever the vocabulary splits."""

import pytest
from tiny import tiny_tokenizer
from vocabularies import added, byte_level, sentencepiece_like

from entropy_probe.models.vocabulary import special_ids, token_bytes

TEXT = "Aé\u00ad漢🙂\n\t x \u2581<0x41>"


def joined(tokenizer, text: str) -> bytes:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = token_bytes(tokenizer, ids)
    return b"".join(pieces[i] for i in ids)


def test_byte_level_tokens_join_to_the_text_where_single_ones_are_no_characters():
    tokenizer = byte_level()
    ids = tokenizer(TEXT).input_ids
    pieces = token_bytes(tokenizer, ids)
    assert len(ids) == len(TEXT.encode())
    assert [pieces[i] for i in ids] == [bytes([b]) for b in TEXT.encode()]
    assert "\ufffd" in tokenizer.decode(ids[1:2])


def test_byte_level_tokens_cover_every_byte_once():
    pieces = token_bytes(byte_level(), range(2, 258))
    assert sorted(pieces.values()) == [bytes([b]) for b in range(256)]


def test_a_byte_level_token_may_hold_the_end_of_one_character_and_the_start_of_another():
    tokenizer = byte_level(merges=(("©", "Ã"),))  # the second byte of é, the first of the next é
    ids = tokenizer("éé").input_ids
    assert [token_bytes(tokenizer, ids)[i] for i in ids] == [b"\xc3", b"\xa9\xc3", b"\xa9"]


def test_sentencepiece_like_tokens_join_to_the_text_behind_its_first_space():
    tokenizer = sentencepiece_like(("\u2581go", "\u2581gone", "x"))
    ids = tokenizer("go gone 漢x", add_special_tokens=False).input_ids
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names == ["\u2581go", "\u2581gone", "\u2581", "<0xE6>", "<0xBC>", "<0xA2>", "x"]
    pieces = token_bytes(tokenizer, ids)
    assert [pieces[i] for i in ids] == [b" go", b" gone", b" ", b"\xe6", b"\xbc", b"\xa2", b"x"]
    assert b"".join(pieces[i] for i in ids).decode() == " " + tokenizer.decode(ids)


def test_word_tokens_are_their_names_also_where_they_look_like_bytes():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<0x41>", "\u2581", "Ġ"])
    assert joined(tokenizer, "w0 w1 ") == b"w0 w1 "
    assert joined(tokenizer, "<0x41>\u2581Ġ") == "<0x41>\u2581Ġ".encode()


def test_added_tokens_of_byte_level_vocabularies_are_their_own_text():
    tokenizer = byte_level()
    tokenizer.add_tokens(["éa", "a b"])
    text = "x éa a b é"
    assert len(tokenizer(text).input_ids) < len(text)
    assert joined(tokenizer, text) == text.encode()


@pytest.mark.parametrize("make", [byte_level, lambda: sentencepiece_like(("\u2581a",))])
def test_control_tokens_keep_their_names_and_are_told_from_text(make):
    tokenizer = make()
    tokenizer.add_tokens([added("<|é \u2581|>", control=True), added("<plain>")])
    mark, plain = tokenizer.convert_tokens_to_ids(["<|é \u2581|>", "<plain>"])
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} - {None}
    assert special_ids(tokenizer) == ends | {mark}
    pieces = token_bytes(tokenizer, [mark, plain, tokenizer.eos_token_id])
    assert pieces == {
        mark: "<|é \u2581|>".encode(),
        plain: b"<plain>",
        tokenizer.eos_token_id: b"</s>",
    }


def test_ids_beyond_the_vocabulary_have_a_name():
    """Models often have more rows in their unembedding than their tokenizer has tokens."""
    pieces = token_bytes(byte_level(), iter([70, 70, 9_999]))
    assert pieces[9_999] == b"<unknown 9999>"
    assert set(pieces) == {70, 9_999}


def test_a_tokenizer_without_a_fast_backend_is_read_as_sentencepiece():
    class Slow:
        all_special_ids = (0,)
        names = ("<s>", "\u2581go", "<0xE6>", "plain")

        def convert_ids_to_tokens(self, ids):
            return [self.names[i] for i in ids]

    assert token_bytes(Slow(), range(4)) == {0: b"<s>", 1: b" go", 2: b"\xe6", 3: b"plain"}
