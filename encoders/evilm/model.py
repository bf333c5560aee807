"""E-ViLM: a small video trunk, a small text side and a few fusion layers, with heads for matching, words and codes.

    frames -> video tokens (B, T (1 + h w), D) \
                                                fusion -> matching, words, codes, answers
    words  -> text tokens  (B, X, D)           /

Source: "E-ViLM: Efficient Video-Language Model via Masked Video Modeling with Semantic Vector-Quantized Tokenizer"
(arXiv:2311.17267).
Deviation: the sizes and the layout of the network are those of VIOLETv2 (arXiv:2209.01540), made smaller.
Dims: B batch, T frames, h w cells of 32 x 32 pixels (smaller with fewer stages), N = T (1 + h w) video tokens,
X text tokens, D width, V words, K codes, r codes per side of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from mm.checkpoint import Pretrained
from mm.encoders.evilm.bert import TextEmbeddings, TransformerStack, fusion_mask
from mm.encoders.evilm.config import EViLMConfig
from mm.encoders.evilm.heads import CodeHead, ContrastiveHead, MlpHead, WordHead
from mm.encoders.evilm.video import VideoEncoder
from mm.vision import ImagePreprocessing


class VideoFeatures(NamedTuple):
    """What a clip gives before it meets a text; can be cached."""

    tokens: Tensor
    """(B, N, D)."""
    mask: Tensor
    """True where a token is real, (B, N) bool."""
    grid: tuple[int, int, int]
    """(T, h, w)."""
    embedding: Tensor | None
    """Unit rows (B, E) with contrastive heads."""

    def rows(self, index: Tensor) -> VideoFeatures:
        """The features of some clips, in the order of `index` (M,)."""
        embedding = None if self.embedding is None else self.embedding[index]
        return VideoFeatures(self.tokens[index], self.mask[index], self.grid, embedding)


class TextFeatures(NamedTuple):
    """What a text gives before it meets a clip; can be cached."""

    tokens: Tensor
    """(B, X, D)."""
    mask: Tensor
    """True where a token is real, (B, X) bool."""
    embedding: Tensor | None
    """Unit rows (B, E) with contrastive heads."""

    def rows(self, index: Tensor) -> TextFeatures:
        """The features of some texts, in the order of `index` (M,)."""
        embedding = None if self.embedding is None else self.embedding[index]
        return TextFeatures(self.tokens[index], self.mask[index], embedding)


class Fused(NamedTuple):
    """Tokens behind fusion."""

    frames: Tensor
    """Class token of each frame, (B, T, D)."""
    cells: Tensor
    """(B, T, h, w, D)."""
    text: Tensor
    """(B, X, D); the first is the text's class token."""


class EViLMOutput(NamedTuple):
    """Every logit of one pass over pairs."""

    matching: Tensor
    """Does the text fit the clip, (B)."""
    words: Tensor
    """(B, X, V)."""
    codes: Tensor | None
    """(B, T, r h, r w, K); None without that head."""
    similarity: Tensor | None
    """Contrastive logits of all clips (rows) and texts, (B, B); None without these heads."""


class EViLM(Pretrained, nn.Module):
    """The video-language model.

    Example:
        >>> from mm.encoders.evilm import evilm_tiny
        >>> model = evilm_tiny()
        >>> video = model.encode_video(torch.rand(1, 4, 3, 64, 64))
        >>> video.tokens.shape, video.grid
        (torch.Size([1, 20, 64]), (4, 2, 2))
    """

    config_class = EViLMConfig

    def __init__(self, config: EViLMConfig, tokenizer: Any = None) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        width, dropout = config.width, config.dropout
        self.text = TextEmbeddings(config.vocab_size, config.max_text_len, width, dropout)
        self.text_layers = TransformerStack(config.text_layers, width, config.num_heads, dropout)
        self.fusion = TransformerStack(config.fusion_layers, width, config.num_heads, dropout)
        self.matching = MlpHead(width, 1, dropout)
        self.words = WordHead(width, config.vocab_size, config.tie_words)
        sizes = (width, config.codebook_size, config.codes_per_cell, dropout)
        self.codes = CodeHead(*sizes) if config.codebook_size else None
        self.contrast = ContrastiveHead(width, config.contrastive_width) if config.contrastive_width else None
        classified = config.answer_head == "classifier"
        self.answers = MlpHead(width, len(config.answers), dropout) if classified else None
        self.video = VideoEncoder(config)
        for module in self.modules():
            _initialise(module, config.init_std)

    # --- encoders ------------------------------------------------------------------------------------------------

    def encode_video(self, frames: Tensor, mask: Tensor | None = None) -> VideoFeatures:
        """Video tokens of clips.

        Args:
            frames: uint8, or values in [0, 1], (B, T, 3, H, W); any T, H, W.
            mask: True where a cell of `config.video.cell` pixels is visible, (B, T, h, w) bool; None shows everything.

        Raises:
            ValueError: frames or mask of another shape.
        """
        tokens, grid = self.video(frames, mask)
        embedding = None
        if self.contrast is not None:  # the class tokens have seen nothing before fusion, so the places are averaged
            places = rearrange(tokens, "b (t n) d -> b t n d", t=grid[0])[:, :, 1:]
            embedding = self.contrast.embed_video(places.mean((1, 2)))
        return VideoFeatures(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), grid, embedding
        )

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextFeatures:
        """Text tokens.

        Args:
            input_ids: (B, X) int64, the class token first; `tokenize` makes them.
            attention_mask: True (or 1) where a token is real, (B, X); None means everywhere.

        Raises:
            ValueError: more tokens than the position table has rows.
        """
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        tokens = self.text_layers(self.text(input_ids), keep[:, None, None])
        embedding = None if self.contrast is None else self.contrast.embed_text(tokens[:, 0])
        return TextFeatures(tokens, keep, embedding)

    def tokenize(self, texts: list[str], *, truncate: bool = False) -> dict[str, Tensor]:
        """Texts -> `input_ids` and `attention_mask`, both (B, X).

        Raises:
            ValueError: no tokenizer, or a text longer than the position table unless `truncate`.
        """
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; build it as EViLM(config, tokenizer=...)")
        limit = self.config.max_text_len
        cut = {"truncation": True, "max_length": limit} if truncate else {}
        batch = self.tokenizer(texts, padding=True, return_tensors="pt", **cut)
        if batch["input_ids"].shape[1] > limit:
            longest = int(batch["attention_mask"].sum(1).max())
            raise ValueError(f"a text has {longest} tokens, the limit is {limit}; shorten it or pass truncate=True")
        device = self.text.words.weight.device
        return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}

    # --- fusion and what stands on it ----------------------------------------------------------------------------

    def fuse(self, video: VideoFeatures, text: TextFeatures) -> Fused:
        """Let each clip and the text of the same row see each other."""
        tokens, mask = self._joined(video, text)
        out = self.fusion(tokens, mask)
        count, height, width = video.grid
        split = video.tokens.shape[1]
        frames = rearrange(out[:, :split], "b (t n) d -> b t n d", t=count)
        cells = rearrange(frames[:, :, 1:], "b t (h w) d -> b t h w d", h=height, w=width)
        return Fused(frames[:, :, 0], cells, out[:, split:])

    def received_attention(self, video: VideoFeatures, text: TextFeatures) -> Tensor:
        """Attention that every place receives in fusion, over layers and queries, (B, N + X) float32, video first."""
        return self.fusion.received(*self._joined(video, text))

    def _joined(self, video: VideoFeatures, text: TextFeatures) -> tuple[Tensor, Tensor]:
        if len(video.tokens) != len(text.tokens):
            raise ValueError(f"{len(video.tokens)} clips and {len(text.tokens)} texts; fusion takes pairs")
        mask = fusion_mask(self.config.fusion_mask, video.mask, text.mask)
        return torch.cat([video.tokens, text.tokens], 1), mask

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Fused text tokens (..., D) -> (..., V)."""
        return self.words(hidden, self.text.words.weight)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, mask: Tensor | None = None
    ) -> EViLMOutput:
        """All logits of pairs; arguments as in `encode_video` (`pixel_values` are its frames) and `encode_text`."""
        video, text = self.encode_video(pixel_values, mask), self.encode_text(input_ids, attention_mask)
        fused = self.fuse(video, text)
        return EViLMOutput(
            matching=self.matching(fused.text[:, 0])[:, 0],
            words=self.word_logits(fused.text),
            codes=None if self.codes is None else self.codes(fused.cells),
            similarity=None if self.contrast is None else self.contrast(video.embedding, text.embedding),
        )

    def score(self, video: VideoFeatures, text: TextFeatures) -> Tensor:
        """Matching logit of each clip with the text of the same row, (B)."""
        return self.matching(self.fuse(video, text).text[:, 0])[:, 0]

    def score_all(self, video: VideoFeatures, text: TextFeatures, *, chunk_size: int = 32) -> Tensor:
        """Matching logits of all clips with all texts, `chunk_size` pairs at a time, (clips, texts)."""
        clips, texts = len(video.tokens), len(text.tokens)
        pairs = torch.cartesian_prod(torch.arange(clips), torch.arange(texts)).view(-1, 2)
        return self.score_pairs(video, text, pairs, chunk_size=chunk_size).view(clips, texts)

    def score_pairs(self, video: VideoFeatures, text: TextFeatures, pairs: Tensor, *, chunk_size: int = 32) -> Tensor:
        """Matching logits of some pairs (clip, text), (M, 2) int -> (M,); only a chunk is copied at a time."""
        pairs = pairs.to(video.tokens.device)
        parts = [self.score(video.rows(part[:, 0]), text.rows(part[:, 1])) for part in pairs.split(chunk_size)]
        return torch.cat(parts)

    @torch.no_grad()
    def answer(
        self, frames: Tensor, question: str, top_k: int = 1, *, answers: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """Answer a question about a clip.

        The probabilities are those among the allowed answers.

        Args:
            frames: uint8, or values in [0, 1], (T, 3, H, W).
            question: Plain text.
            top_k: How many answers, best first.
            answers: What may be answered; None takes `config.answers`, and without these every word.

        Raises:
            ValueError: no tokenizer, `top_k` beyond the number of answers, or answers that this model cannot give (all
                are named).
        """
        names = self.answer_names(answers)
        logits = self.answer_logits(self.encode_video(frames[None]), [question], answers=answers)[0]
        if not 1 <= top_k <= len(names):
            raise ValueError(f"top_k must lie between 1 and {len(names)}, the number of answers, got {top_k}")
        best = logits.float().softmax(-1).topk(top_k)
        said = [names[index] for index in best.indices.tolist()]
        return list(zip(said, best.values.tolist(), strict=True))

    def answer_names(self, answers: Sequence[str] | None = None) -> tuple[str, ...]:
        """What may be answered: those given, else `config.answers`, else every word of the tokenizer but its marks."""
        names = self.config.answers if answers is None else tuple(answers)
        if names:
            return names
        special = set(self.tokenizer.all_special_ids)
        words = [index for index in range(self.config.vocab_size) if index not in special]
        return tuple(self.tokenizer.convert_ids_to_tokens(words))

    def answer_logits(
        self, video: VideoFeatures, questions: list[str], *, answers: Sequence[str] | None = None
    ) -> Tensor:
        """Logits of the allowed answers (`answer_names`) to one question per clip, (B, A).

        The words head reads `question answer: [MASK]` and predicts one word; the classifier reads the question.

        Raises:
            ValueError: as `answer`.
        """
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; build it as EViLM(config, tokenizer=...)")
        ids = self._answer_ids(self.config.answers if answers is None else answers)
        mask = self.tokenizer.mask_token
        asked = questions if self.answers is not None else [f"{question} answer: {mask}" for question in questions]
        batch = self.tokenize(asked)
        fused = self.fuse(video, self.encode_text(**batch))
        if self.answers is not None:
            return self.answers(fused.text[:, 0])[:, ids]
        logits = self.word_logits(answer_places(fused.text, batch["input_ids"], self.tokenizer.mask_token_id))
        if not ids:
            special = set(self.tokenizer.all_special_ids)
            ids = [index for index in range(logits.shape[1]) if index not in special]
        return logits[:, ids]

    def unanswerable(self, answers: Sequence[str]) -> list[str]:
        """Those of some answers that this model can never give: not in the classifier's list, or not one word."""
        if self.answers is not None:
            known = set(self.config.answers)
            return [answer for answer in answers if answer not in known]
        pieces = [self.tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
        unknown = self.tokenizer.unk_token_id
        return [answer for answer, ids in zip(answers, pieces, strict=True) if len(ids) != 1 or ids[0] == unknown]

    def _answer_ids(self, answers: Sequence[str]) -> list[int]:
        bad = self.unanswerable(answers)
        if bad and self.answers is not None:
            listed = ", ".join(map(repr, bad[:8]))
            raise ValueError(f"answers that are not in this model's list: {listed}; it has {len(self.config.answers)}")
        if bad:
            raise ValueError(
                f"answers that are not one word of the tokenizer: {', '.join(map(repr, bad[:8]))}; leave them out or "
                "use answer_head='classifier'"
            )
        if self.answers is not None:
            return [self.config.answers.index(answer) for answer in answers]
        return [self.tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in answers]

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text that the tokenizer does not know and the model therefore cannot tell apart."""
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; build it as EViLM(config, tokenizer=...)")
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pieces = zip(found.input_ids, found.offset_mapping, strict=True)
        return [text[first:last] for piece, (first, last) in pieces if piece == self.tokenizer.unk_token_id]

    # --- files ---------------------------------------------------------------------------------------------------

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """Of frames: short side to `config.image_size`, centre crop, values in [0, 1]; normalisation happens inside."""
        return ImagePreprocessing(size=self.config.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="crop")

    def preprocessing(self) -> dict[str, Any]:
        """Frames are values in [0, 1]; normalisation happens inside."""
        return self.image_preprocessing.to_dict()

    def save_extras(self, folder: Path) -> None:
        """The tokenizer travels with the weights."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "tokenizer")

    @classmethod
    def from_saved(cls, config: EViLMConfig, folder: Path) -> Self:
        """Read the tokenizer back, if one was saved."""
        from transformers import PreTrainedTokenizerFast

        found = folder / "tokenizer"
        return cls(config, PreTrainedTokenizerFast.from_pretrained(found) if found.is_dir() else None)


def answer_places(hidden: Tensor, input_ids: Tensor, mask_id: int) -> Tensor:
    """Fused text tokens (B, X, D) at the last mask token of every row -> (B, D)."""
    last = (input_ids == mask_id).int().flip(-1).argmax(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), hidden.shape[1] - 1 - last]


def _initialise(module: nn.Module, std: float) -> None:
    """Normal weights of this spread and zero biases; norms start as identities."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and module.bias is not None:
        nn.init.zeros_(module.bias)
