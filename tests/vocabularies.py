"""Small vocabularies of the kinds that models come with, built from nothing."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_level(*, adds: str = "", merges: tuple[tuple[str, str], ...] = ()):
    """Give a GPT-2-like tokenizer, a token a byte but for merges.

    Args:
        adds: what it puts around a text: "bos", "bos eos" or "".
        merges: pairs of stand-in characters that become one token.
    """
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if adds:
        template = "<s> $A </s>" if "eos" in adds else "<s> $A"
        backend.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def sentencepiece_like(words: tuple[str, ...]):
    """Give a Llama-like tokenizer: words after a visible space, other bytes by their number."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    letters = sorted({c for word in words for c in word})
    names = ["<unk>", "<s>", "</s>", *bytes_, *letters]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)}, merges,
            unk_token="<unk>", byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def added(text: str, *, control: bool = False) -> AddedToken:
    """Give a token to add, text of its own or a control token."""
    return AddedToken(text, special=control, normalized=False)
