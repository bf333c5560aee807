"""VelvetModel: a 3-D Swin Transformer and TriBERT, tied at three levels and fused by cross-attention.

Dims: B samples, N tokens, D text width, E contrastive width, S regions, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoint import Pretrained
from mm.medical.tasks.methods import TaskMethods
from mm.medical.velvet.config import Level, VelvetConfig
from mm.medical.velvet.heads import LevelHead, MaskedWordHead, Temperature, VisionHeads, VisualAdapter
from mm.medical.velvet.loss import LevelEmbeddings, level_similarity
from mm.medical.velvet.pooling import combine_layers, pool_levels
from mm.medical.velvet.text import TriBert
from mm.medical.velvet.tokenizer import VOCABULARY_FILE, Report, SentenceTokenizer, TokenBatch
from mm.medical.velvet.vision import VisionEncoder, VolumeFeatures

MATCHES = 1
"""Class of the match head that means "belongs together"."""


@dataclass(frozen=True)
class VelvetOutput:
    """What one volume and its report give."""

    volume: LevelEmbeddings
    """Report vector (B, E), sentence and word regions (B, S, E)."""
    text: LevelEmbeddings
    """Report vector (B, E), sentences (B, K, E), words (B, N, E) and their masks."""
    fused: Tensor | None = None
    """Token states after cross-attention to the volume, (B, N, D)."""
    word_logits: Tensor | None = None
    """Masked-word logits of the fused states, (B, N, vocabulary)."""
    match_logits: Tensor | None = None
    """Does the report belong to the volume? (B, 2), class 1 = yes."""


@dataclass(frozen=True)
class EncodedText:
    """A batch of reports after the text layers; reused for contrast and match."""

    states: Tensor
    """Output of the last text layer, (B, N, D)."""
    visible: Tensor
    """Attention mask of all layers, (B, N, N) bool."""
    embeddings: LevelEmbeddings
    """The three levels in their shared spaces."""

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """States and mask of some reports, for `VelvetModel.fuse`."""
        return self.states[index], self.visible[index]


class VelvetModel(TaskMethods, Pretrained, nn.Module):
    """Vision-language model for CT volumes and their reports.

    Args:
        config: All sizes.
        tokenizer: Needed for text; without it only tensors go in and out. Its vocabulary must be that of the config.

    Example:
        >>> import mm
        >>> model = mm.create_model("velvet_tiny")
        >>> batch = model.tokenize(["The liver is normal. No lesion is seen."])
        >>> model.encode_text(**batch).embeddings.report.shape
        torch.Size([1, 64])

    Source: VELVET-Med (Zhang et al. 2025, arXiv:2508.12108); the text of the paper's body was not at hand, sizes and
        order of the parts follow its published code.
    """

    config_class = VelvetConfig
    config: VelvetConfig

    def __init__(self, config: VelvetConfig, *, tokenizer: SentenceTokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        text, widths = config.text, config.vision.level_widths
        self.vision = VisionEncoder(config.vision)
        self.text = TriBert(text)
        self.levels = nn.ModuleDict(
            {level: LevelHead(widths[level], text.width, config.contrastive_width) for level in config.levels}
        )
        self.temperature = Temperature(config.temperature, config.initial_temperature)
        self.text_words = MaskedWordHead(text) if config.text_heads else None
        self.vision_heads = VisionHeads(config) if config.vision_heads else None
        fusion = text.fusion_layers > 0
        self.adapter = VisualAdapter(widths["report"], text.width) if fusion else None
        self.fused_words = MaskedWordHead(text) if fusion else None
        self.match = nn.Linear(text.width, 2) if fusion else None
        self._tokenizer = tokenizer
        if tokenizer is not None:
            SentenceTokenizer.for_config(tokenizer.vocabulary, text, lowercase=tokenizer.lowercase)

    # --- volumes -----------------------------------------------------------------------------------------------------

    def encode_volume(self, volume: Tensor) -> VolumeFeatures:
        """Features of the three levels.

        Args:
            volume: (B, channels, H, W, D), intensities brought to 0 .. 1; any size, trained on cubes of
                `config.vision.volume_size`.
        """
        return self.vision.features(volume)

    def volume_embeddings(self, features: VolumeFeatures) -> LevelEmbeddings:
        """Region vectors of the levels in their shared spaces; the report vector pools the last output."""
        found: dict[str, Any] = {}
        for level in self.config.levels:
            head = self.level_head(level)
            regions = features.regions(level)
            found[level] = head.vision(regions.mean(1) if level == "report" else regions)
        grids = {level: tuple(getattr(features, level).shape[2:]) for level in ("sentence", "word")}
        return LevelEmbeddings(**found, grids=grids)

    def visual_memory(self, features: VolumeFeatures) -> Tensor:
        """Visual tokens that the fusion layers attend to, (B, V, D); 27 for a 96-voxel cube."""
        return self._fusion(self.adapter)(features.report)  # type: ignore[no-any-return]

    def level_head(self, level: Level) -> LevelHead:
        """The two linear maps of a level."""
        head = self.levels[level]
        assert isinstance(head, LevelHead)
        return head

    # --- text --------------------------------------------------------------------------------------------------------

    def encode_text(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, unit_starts: Tensor
    ) -> EncodedText:
        """Text layers and level vectors; the arguments are the fields of `TokenBatch`."""
        config = self.config
        visible = self.text.visible(input_ids, token_type_ids, attention_mask)
        states = self.text(input_ids, token_type_ids, attention_mask, visible=visible)
        combined = combine_layers(states, config.last_layers, config.layer_reduction)
        units = pool_levels(
            combined, input_ids, token_type_ids, attention_mask, unit_starts, config.text, config.sentence_vector
        )
        found: dict[str, Any] = {level: self.level_head(level).text(getattr(units, level)) for level in config.levels}
        embeddings = LevelEmbeddings(**found, sentence_keep=units.sentence_keep, word_keep=units.word_keep)
        return EncodedText(states[-1], visible, embeddings)

    # --- both --------------------------------------------------------------------------------------------------------

    def fuse(self, states: Tensor, visible: Tensor, memory: Tensor | None) -> Tensor:
        """Fusion layers on the states of the text layers, (B, N, D); "match" mode of the published code."""
        self._fusion(self.adapter)
        return self.text.fuse(states, visible, memory)

    def match_logits(self, states: Tensor, visible: Tensor, memory: Tensor) -> Tensor:
        """Does report b belong to volume b? (B, 2), class 1 = yes."""
        return self._fusion(self.match)(self.fuse(states, visible, memory)[:, 0])  # type: ignore[no-any-return]

    def similarity(self, volume: LevelEmbeddings, text: LevelEmbeddings, level: Level = "report") -> Tensor:
        """Every volume against every text at one level, (B, J), float32."""
        return level_similarity(volume, text, level, self.config.local)

    def forward(
        self,
        volume: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        unit_starts: Tensor,
    ) -> VelvetOutput:
        """Level vectors of both sides, and what the fusion layers make of the pairs.

        Args:
            volume: (B, channels, H, W, D) in 0 .. 1.
            input_ids, token_type_ids, attention_mask, unit_starts: `TokenBatch` of the B reports, (B, N).
        """
        features = self.encode_volume(volume)
        text = self.encode_text(input_ids, token_type_ids, attention_mask, unit_starts)
        embeddings = self.volume_embeddings(features)
        if self.fused_words is None or self.match is None:
            return VelvetOutput(embeddings, text.embeddings)
        fused = self.fuse(text.states, text.visible, self.visual_memory(features))
        return VelvetOutput(embeddings, text.embeddings, fused, self.fused_words(fused), self.match(fused[:, 0]))

    def word_logits(self, fused: Tensor) -> Tensor:
        """Masked-word logits of fused states, (..., D) -> (..., vocabulary)."""
        return self._fusion(self.fused_words)(fused)  # type: ignore[no-any-return]

    def _fusion(self, part: nn.Module | None) -> nn.Module:
        if part is None:
            raise ValueError("this model has no fusion layers (text.fusion_layers=0): it only embeds")
        return part

    # --- tokens and files --------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> SentenceTokenizer:
        """Text to tokens.

        Raises:
            ValueError: the model was built without one.
        """
        if self._tokenizer is None:
            raise ValueError("this model has no tokenizer: build it with VelvetModel(config, tokenizer=...)")
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tokenize(self, reports: Sequence[Report]) -> dict[str, Tensor]:
        """Reports -> the text arguments of `forward`, on the model's device."""
        tokens: TokenBatch = self.tokenizer(reports)
        return tokens.to(self.device).to_dict()

    def preprocessing(self) -> dict[str, Any]:
        return {"volume_size": self.config.vision.volume_size, "intensity": "window to 0..1, clipped"}

    def save_extras(self, folder: Path) -> None:
        if self._tokenizer is not None:
            self._tokenizer.save(folder)

    @classmethod
    def from_saved(cls, config: VelvetConfig, folder: Path) -> VelvetModel:  # type: ignore[override]
        path = folder / VOCABULARY_FILE
        tokenizer = None
        if path.is_file():
            vocabulary = path.read_text(encoding="utf-8").splitlines()
            tokenizer = SentenceTokenizer.for_config(vocabulary, config.text)
        model = cls(config, tokenizer=tokenizer)
        model.source_folder = folder  # a segmenter and a writer lie beside it
        return model
