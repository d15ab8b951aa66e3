"""From prompts to token ids: one beginning, no end, templates for messages alone."""

import inspect

import pytest
from tiny import tiny_model, tiny_tokenizer
from vocabularies import CHAT, byte_level

from entropy_probe.models.prompts import encode_prompts, stop_ids

MESSAGES = [{"role": "user", "content": "hi"}]
BOS, EOS = 0, 1


def encoded(tokenizer, prompt) -> list[int]:
    (ids,) = encode_prompts(tokenizer, [prompt])
    return ids


def chatty(**options):
    tokenizer = byte_level(**options)
    tokenizer.chat_template = CHAT
    return tokenizer


def test_texts_are_encoded_as_the_tokenizer_does_and_in_order():
    tokenizer = byte_level()
    assert encode_prompts(tokenizer, ("ab", "c")) == [
        tokenizer("ab").input_ids,
        tokenizer("c").input_ids,
    ]


def test_the_beginning_of_text_that_a_tokenizer_adds_stays():
    ids = encoded(byte_level(adds="bos"), "hi")
    assert ids == [BOS, *byte_level()("hi").input_ids]


@pytest.mark.parametrize("adds", ["", "bos", "bos eos"])
def test_chat_templates_give_one_beginning_of_text_and_no_end(adds):
    """Template and tokenizer may both put one."""
    ids = encoded(chatty(adds=adds), MESSAGES)
    assert ids == [BOS, *byte_level()("[user]hi[assistant]").input_ids]


@pytest.mark.parametrize("text", ["<s>hi", "<s><s>hi"])
def test_a_beginning_of_text_written_into_the_prompt_is_not_doubled(text):
    ids = encoded(byte_level(adds="bos"), text)
    assert ids == [BOS, *byte_level()("hi").input_ids]


def test_a_beginning_of_text_inside_a_text_stays():
    assert encoded(byte_level(adds="bos"), "a<s>b").count(BOS) == 2


def test_an_end_of_text_that_the_tokenizer_adds_is_dropped_and_a_written_one_stays():
    tokenizer = byte_level(adds="bos eos")
    assert tokenizer("hi").input_ids[-1] == EOS
    assert encoded(tokenizer, "hi") == [BOS, *byte_level()("hi").input_ids]
    assert encoded(tokenizer, "hi</s>")[-1] == EOS
    assert encoded(byte_level(), "hi</s>")[-1] == EOS


def test_templates_are_for_message_lists_only():
    tokenizer = chatty()
    assert encoded(tokenizer, "hi") == byte_level()("hi").input_ids
    assert encoded(tokenizer, [5, 6]) == [5, 6]


def test_token_ids_are_taken_as_they_are():
    given = (BOS, BOS, 7, EOS)
    ids = encoded(byte_level(adds="bos eos"), given)
    assert ids == list(given)


def test_messages_need_a_template_that_takes_them():
    with pytest.raises(ValueError, match="prompt 0 is a list of messages.*set tokenizer.chat"):
        encoded(byte_level(), MESSAGES)
    system = [{"role": "system", "content": "be good"}, *MESSAGES]
    with pytest.raises(ValueError, match="template refuses prompt 1: no system role here"):
        encode_prompts(chatty(), [MESSAGES, system])


@pytest.mark.parametrize("empty", ["", [], ()])
def test_an_empty_prompt_is_named_by_its_number(empty):
    with pytest.raises(ValueError, match="prompt 1 is empty: write something"):
        encode_prompts(byte_level(), ["a", empty])


def test_a_text_of_no_tokens_is_empty_unless_something_begins_it():
    class Mute:
        bos_token_id = eos_token_id = None

        def __call__(self, text, add_special_tokens=True):
            return type("Encoded", (), {"input_ids": []})

    with pytest.raises(ValueError, match="prompt 0 is empty: the first token needs something"):
        encode_prompts(Mute(), ["\u200b"])


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("one text", "got a single str: pass \\[text\\]"),
        ([], "there are no prompts"),
        ([3], "must be a text, a list of messages or a list of token ids, got int"),
        ([[True, False]], "token ids, got list"),
        ([["a", "b"]], "token ids, got list"),
        ([[{"content": "no role"}]], "token ids, got list"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, said):
    with pytest.raises(ValueError, match=said):
        encode_prompts(byte_level(), prompts)


def test_rows_end_at_the_models_ends_of_text_else_the_tokenizers():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = [4, 5]
    assert stop_ids(model, tokenizer) == ({4, 5}, [])
    model.generation_config.eos_token_id = 6
    assert stop_ids(model, tokenizer, ["w1 ", 7]) == ({6, 7}, ["w1 "])
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tokenizer) == ({tokenizer.eos_token_id}, [])
    tokenizer.eos_token = None
    assert stop_ids(model, tokenizer) == (set(), [])


@pytest.mark.parametrize("item", ["", 1.5, None])
def test_stops_are_texts_or_ids(item):
    with pytest.raises(ValueError, match="stop takes non-empty texts and token ids"):
        inspect.unwrap(stop_ids)(tiny_model(), tiny_tokenizer(), [item])  # as users have it


def test_one_text_to_stop_at_is_not_taken_to_pieces():
    with pytest.raises(ValueError, match=r"stop is a list of texts .* pass \[' so'\]"):
        inspect.unwrap(stop_ids)(tiny_model(), tiny_tokenizer(), " so")
