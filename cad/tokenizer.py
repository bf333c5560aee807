"""Program text in few tokens: the words between two numbers are one token, a small number is one token.

A vocabulary of pieces that the language repeats ("],end=[", ")\\nLine0_0_1=add_line(start=["), whole numbers up to 24,
and every printable character, so that any program can be written, only longer. The tokenizer picks the segmentation
with the fewest tokens (a unigram model whose pieces cost the same).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from mm.cad.emitter import emit
from mm.cad.manner import PROMPT
from mm.cad.procedural import TINY, sample_part
from mm.data.split import Split

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
"""A number that is no part of a name."""
PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"
EXAMPLES = 400
"""Parts whose text gives the pieces; every piece of the tiny family occurs in them."""
CHARACTERS = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n", "\t"]
PIECE_SCORE, CHARACTER_SCORE = -1.0, -1.01
"""Log-likelihoods: pieces and characters cost about the same, so that fewer tokens win; a piece wins a draw."""


def pieces(texts: Iterable[str]) -> list[str]:
    """The different texts between numbers, in order of first appearance."""
    return list(dict.fromkeys(piece for text in texts for piece in NUMBER.split(text) if len(piece) > 1))


@cache
def vocabulary() -> tuple[str, ...]:
    """Pieces and numbers of the tiny family."""
    seeds = Split("train").seeds[:EXAMPLES]
    texts = [emit(sample_part(seed).program, style="canonical") for seed in seeds]
    numbers = [str(number) for number in range(10, TINY.longest + 1)]
    negative = [f"-{number}" for number in range(1, TINY.longest + 1)]
    return (PROMPT, *numbers, *negative, *pieces(texts))


def program_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of `openecad_tiny`.

    Example:
        >>> tokenizer = program_tokenizer()
        >>> ids = tokenizer("Loops0=[]\\nanything else 3.25").input_ids
        >>> tokenizer.decode(ids)
        'Loops0=[]\\nanything else 3.25'
    """
    special = [(mark, 0.0) for mark in (PAD, BOS, EOS, UNKNOWN, IMAGE)]
    words = [(piece, PIECE_SCORE) for piece in vocabulary()] + [(mark, CHARACTER_SCORE) for mark in CHARACTERS]
    tokenizer = Tokenizer(Unigram([*special, *words], unk_id=3, byte_fallback=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark, _ in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
