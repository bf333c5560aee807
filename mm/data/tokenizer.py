"""A word-level tokenizer over the closed vocabulary of the procedural world; built in memory, no file, no download."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mm.data.words import IMAGE_TOKEN, MARKS, PUNCTUATION, SPECIAL, TAGS, VOCABULARY

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}{% else %}"
    "{% set ns = namespace(text='') %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set ns.text = ns.text + '<image>' %}"
    "{% elif part['type'] == 'text' %}{% set ns.text = ns.text + ' ' + part['text'] %}{% endif %}{% endfor %}"
    "{% set text = ns.text %}{% endif %}"
    "{% set pictures = text.split('<image>') | length - 1 %}{{ '<image>' * pictures }}"
    "{% set words = text | replace('<image>', '') | trim %}"
    "{% if message['role'] == 'user' %}{{ ' question: ' + words + ' answer:' }}"
    "{% else %}{{ ' ' + words + eos_token }}{% endif %}{% endfor %}"
)
"""Pictures first, then `question: ... answer: ...<eos>` for every turn: the form of the text corpus."""


def _word_level() -> Tokenizer:
    """Lower-case, split at blanks and punctuation, one id per word."""
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    # Joins with blanks; the prefix occurs in no word, so nothing is ever glued. Then punctuation moves to its word.
    glue = [decoders.Replace(f" {mark}", mark) for mark in PUNCTUATION]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), *glue])
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
    )
    return tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the tiny language models.

    Lower-cases, splits off punctuation and puts `<bos>` in front; ids are the positions in `mm.data.words.VOCABULARY`.
    `decode` writes punctuation at its word again. `apply_chat_template` gives the prompt format of the text corpus.

    Returns:
        A new tokenizer; changing it changes no other.

    Example:
        >>> tokenizer = tiny_tokenizer()
        >>> tokenizer.decode(tokenizer("Row 3 col 5 ?").input_ids, skip_special_tokens=True)
        'row 3 col 5?'
    """
    named = {f"{mark.strip('<>')}_token": mark for mark in MARKS}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_word_level(), **SPECIAL, extra_special_tokens=named, model_max_length=4096
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def word_ids() -> dict[str, int]:
    """Word -> token id, without loading the tokenizer."""
    return {word: index for index, word in enumerate(VOCABULARY)}


IMAGE_TOKEN_ID = VOCABULARY.index(IMAGE_TOKEN)
