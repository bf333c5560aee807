"""A word-level tokenizer with BERT's special tokens over the closed vocabulary of the procedural world."""

from __future__ import annotations

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mm.data.words import VOCABULARY

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def tiny_text_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, splits at blanks and punctuation, `[CLS] words [SEP]`; built in memory.

    Example:
        >>> tokenizer = tiny_text_tokenizer()
        >>> tokenizer.convert_ids_to_tokens(tokenizer("A red [MASK].").input_ids)
        ['[CLS]', 'a', 'red', '[MASK]', '.', '[SEP]']
    """
    words = [word for word in VOCABULARY if not word.startswith("<")]
    ids = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    ends = [(SPECIAL[name], ids[SPECIAL[name]]) for name in ("cls_token", "sep_token")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
