"""The organisms' tokenizer: one token a piece of the language, texts joined without a gap."""

from typing import TYPE_CHECKING

from entropy_probe.tasks.language import PATTERN, PIECES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNKNOWN = range(4)

VOCABULARY = {piece: index for index, piece in enumerate((*SPECIAL, *PIECES))}
"""Piece -> token id; the special tokens come first."""

CONTEXT = 128
"""Longest sequence, prompt included, that an organism is configured for."""


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Give the tokenizer that all organisms share.

    A text gets exactly one <bos> in front; decoding joins the pieces as they are, so that any
    text of the language comes back exactly.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
