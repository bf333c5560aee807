"""Reports to token ids with a token in front of every sentence: an offline WordPiece tokenizer and its builder.

Dims: B reports, N tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mm.checkpoint import write_aside
from mm.medical.velvet.config import TextConfig
from mm.medical.velvet.sentences import split_sentences
from mm.medical.velvet.wordpiece import CONTINUATION, learn_pieces

logger = logging.getLogger(__name__)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_FILE = "vocab.txt"

Report = str | Sequence[str]
"""A text, or its sentences."""


@dataclass(frozen=True)
class TokenBatch:
    """Token tensors of B reports, padded to one length N; `to_dict` gives the keywords of the model."""

    input_ids: Tensor
    """(B, N) int64."""
    token_type_ids: Tensor
    """Sentence number of each token, from 1; 0 in the padding, (B, N) int64."""
    attention_mask: Tensor
    """True = real, (B, N) bool."""
    unit_starts: Tensor
    """True where a word, a mark or a special token begins, False inside a word and in the padding, (B, N) bool."""

    def to_dict(self) -> dict[str, Tensor]:
        """Field name -> tensor."""
        return dict(self.__dict__)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same on another device."""
        return TokenBatch(**{name: value.to(device) for name, value in self.__dict__.items()})

    def __len__(self) -> int:
        return len(self.input_ids)


class SentenceTokenizer:
    """WordPiece with sentence tokens: `[CLS] [SEN_1] w ... [SEN_2] w ...`, no [SEP].

    Args:
        vocabulary: Word pieces in the order of their ids, special tokens included; sentence tokens are added behind.
        max_sentences: Sentence tokens that exist; longer reports lose sentences, see `encode`.
        max_sentence_tokens: Longest sentence, counted with the two special tokens of a plain BERT input.
        max_tokens: Longest report.
        sentence_modeling: False gives ordinary BERT input: sentences joined, [CLS] ... [SEP], one type.
        lowercase: Fold case and accents, as uncased vocabularies need.

    Raises:
        ValueError: a special token is missing, or a piece occurs twice.

    Example:
        >>> tokenizer = SentenceTokenizer([*SPECIAL, "no", "cyst", "##s", "."], max_sentences=2)
        >>> batch = tokenizer(["No cysts. No cyst."])
        >>> tokenizer.pieces(batch.input_ids[0])
        ['[CLS]', '[SEN_1]', 'no', 'cyst', '##s', '.', '[SEN_2]', 'no', 'cyst', '.']
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        max_sentences: int = 50,
        max_sentence_tokens: int = 200,
        max_tokens: int = 512,
        sentence_modeling: bool = True,
        lowercase: bool = True,
    ) -> None:
        self.vocabulary = list(vocabulary)
        ids = {piece: index for index, piece in enumerate(self.vocabulary)}
        missing = [piece for piece in SPECIAL if piece not in ids]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}; a BERT vocab.txt holds them")
        if len(ids) != len(self.vocabulary):
            raise ValueError("the vocabulary lists a piece twice; every line of vocab.txt must differ")
        self.ids = ids
        self.max_sentences, self.max_sentence_tokens, self.max_tokens = max_sentences, max_sentence_tokens, max_tokens
        self.sentence_modeling, self.lowercase = sentence_modeling, lowercase
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[piece] for piece in SPECIAL)
        self._pieces = _word_piece(ids, lowercase)
        self._starts = torch.tensor(
            [not piece.startswith(CONTINUATION) and piece != SPECIAL[0] for piece in self.vocabulary]
            + [True] * max_sentences
        )

    # --- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: str | Path, **options: object) -> SentenceTokenizer:
        """From a `vocab.txt`, one piece per line; `options` as for the class.

        Raises:
            FileNotFoundError: no such file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such vocabulary; build one with SentenceTokenizer.build(reports)")
        return cls(path.read_text(encoding="utf-8").splitlines(), **options)  # type: ignore[arg-type]

    @classmethod
    def build(cls, reports: Iterable[str], *, size: int = 8000, **options: object) -> SentenceTokenizer:
        """Learn a vocabulary from local reports; nothing is downloaded.

        Args:
            reports: Plain texts.
            size: Largest number of pieces, special tokens included.
            options: As for the class.
        """
        lowercase = bool(options.get("lowercase", True))
        splitter = _word_piece({piece: index for index, piece in enumerate(SPECIAL)}, lowercase)
        words: Counter[str] = Counter()
        for report in reports:
            text = splitter.normalizer.normalize_str(report)
            words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text))
        pieces = learn_pieces(words, size - len(SPECIAL))
        return cls([*SPECIAL, *pieces], **options)  # type: ignore[arg-type]

    @classmethod
    def for_config(cls, vocabulary: Sequence[str], config: TextConfig, *, lowercase: bool = True) -> SentenceTokenizer:
        """The tokenizer of a model; its vocabulary must have the ids that the config states.

        Raises:
            ValueError: sizes or special ids differ.
        """
        tokenizer = cls(
            vocabulary,
            max_sentences=config.max_sentences,
            max_sentence_tokens=config.max_sentence_tokens,
            max_tokens=config.max_tokens,
            sentence_modeling=config.sentence_modeling,
            lowercase=lowercase,
        )
        ours = (len(tokenizer), tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        theirs = (config.vocab_size, config.pad_id, config.cls_id, config.sep_id, config.mask_id)
        if ours != theirs:
            raise ValueError(
                f"the vocabulary has (size with sentence tokens, pad, cls, sep, mask) = {ours}, the model {theirs}"
            )
        return tokenizer

    def text_config(self, config: TextConfig) -> TextConfig:
        """`config` with the sizes and ids of this vocabulary."""
        return replace(
            config,
            vocab_size=len(self),
            max_sentences=self.max_sentences,
            max_sentence_tokens=self.max_sentence_tokens,
            max_tokens=self.max_tokens,
            sentence_modeling=self.sentence_modeling,
            pad_id=self.pad_id,
            cls_id=self.cls_id,
            sep_id=self.sep_id,
            mask_id=self.mask_id,
        )

    def save(self, folder: Path) -> Path:
        """Write `vocab.txt`."""
        with write_aside(folder / VOCABULARY_FILE) as path:
            path.write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")
        return folder / VOCABULARY_FILE

    # --- using it ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Ids in use, sentence tokens included."""
        return len(self.vocabulary) + self.max_sentences

    def __call__(
        self, reports: Sequence[Report], *, length: int | None = None, generator: torch.Generator | None = None
    ) -> TokenBatch:
        """Tokens of a batch.

        Args:
            reports: Texts, or lists of sentences.
            length: Pad to this length; default: the longest of the batch.
            generator: See `encode`.

        Raises:
            ValueError: a report has no sentence (its number is named), or one does not fit `length`.
        """
        if isinstance(reports, str):
            raise ValueError("pass a list of reports, not one string")
        rows = []
        for number, report in enumerate(reports):
            try:
                rows.append(self.encode(report, generator=generator))
            except ValueError as error:
                raise ValueError(f"report {number}: {error}") from error
        longest = max(len(ids) for ids, _ in rows)
        if length is not None and longest > length:
            raise ValueError(f"the longest report has {longest} tokens, length={length} is too short")
        return self._padded(rows, length or longest)

    def encode(self, report: Report, *, generator: torch.Generator | None = None) -> tuple[list[int], list[int]]:
        """Ids and sentence numbers of one report, cut at `max_tokens`.

        Args:
            report: A text, or its sentences.
            generator: Draws which sentences stay when there are more than `max_sentences`, as in published training.
                None keeps the first ones and logs it.

        Raises:
            ValueError: no sentence at all.
        """
        sentences = split_sentences(report) if isinstance(report, str) else list(report)
        if not any(sentence.strip() for sentence in sentences):
            raise ValueError("the report holds no sentence; a volume without text needs no tokens")
        if not self.sentence_modeling:
            return self._plain(sentences)
        ids, types = [self.cls_id], [1]
        for number, sentence in enumerate(self._kept(sentences, generator), 1):
            tokens = self._pieces.encode(sentence).ids[: self.max_sentence_tokens - 2]
            ids += [len(self.vocabulary) + number - 1, *tokens]
            types += [number] * (len(tokens) + 1)
        if len(ids) > self.max_tokens:
            logger.info("a report of %d tokens is cut at %d", len(ids), self.max_tokens)
        return ids[: self.max_tokens], types[: self.max_tokens]

    def pieces(self, ids: Tensor | Sequence[int]) -> list[str]:
        """Readable tokens of a row, padding left out."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return [self.piece(number) for number in numbers if number != self.pad_id]

    def piece(self, number: int) -> str:
        """Token of an id."""
        plain = len(self.vocabulary)
        return self.vocabulary[number] if number < plain else f"[SEN_{number - plain + 1}]"

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Text of a row without special tokens: pieces joined to words, words by blanks."""
        words: list[str] = []
        for piece in self.pieces(ids):
            if piece in SPECIAL or piece.startswith("[SEN_"):
                continue
            if piece.startswith(CONTINUATION) and words:
                words[-1] += piece.removeprefix(CONTINUATION)
            else:
                words.append(piece)
        return " ".join(words)

    def unit_starts(self, input_ids: Tensor) -> Tensor:
        """Where words, marks and special tokens begin, see `TokenBatch`."""
        return self._starts.to(input_ids.device)[input_ids]

    # --- parts -------------------------------------------------------------------------------------------------------

    def _kept(self, sentences: list[str], generator: torch.Generator | None) -> Iterator[str]:
        surplus = len(sentences) - self.max_sentences
        if surplus <= 0:
            return iter(sentences)
        if generator is None:
            logger.warning("a report of %d sentences keeps its first %d", len(sentences), self.max_sentences)
            return iter(sentences[: self.max_sentences])
        chosen = torch.randperm(len(sentences), generator=generator)[: self.max_sentences].sort().values
        return (sentences[index] for index in chosen.tolist())

    def _plain(self, sentences: list[str]) -> tuple[list[int], list[int]]:
        tokens = self._pieces.encode(" ".join(sentences)).ids[: self.max_tokens - 2]
        ids = [self.cls_id, *tokens, self.sep_id]
        return ids, [1] * len(ids)

    def _padded(self, rows: list[tuple[list[int], list[int]]], length: int) -> TokenBatch:
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        types = torch.zeros_like(ids)
        for row, (tokens, numbers) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            types[row, : len(numbers)] = torch.tensor(numbers)
        return TokenBatch(ids, types, types > 0, self.unit_starts(ids))


def _word_piece(ids: dict[str, int], lowercase: bool):  # type: ignore[no-untyped-def]
    """BERT's normalisation and word pieces without special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=SPECIAL[1], max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
