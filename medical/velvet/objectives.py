"""The pre-training objective: report, sentence and word contrast, match, masked words, self-supervised vision.

L = L_report + L_sentence + L_word + L_fused words + L_match + L_views + L_rotation + L_reconstruction + L_text words,
all weights 1 as published. Every part can be weighted or switched off.
Dims: B samples, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mm.medical.velvet.config import LEVELS
from mm.medical.velvet.loss import (
    hierarchical_contrastive_loss,
    masked_word_loss,
    match_loss,
    reconstruction_loss,
    report_similarity,
    rotation_loss,
    view_contrast_loss,
)
from mm.medical.velvet.masking import mask_words
from mm.medical.velvet.mining import mine_pairs
from mm.medical.velvet.model import EncodedText, VelvetModel
from mm.medical.velvet.vision import VolumeFeatures

Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the losses (0 = off) and their settings."""

    report: float = 1.0
    """Contrast of reports."""
    sentence: float = 1.0
    """Contrast of sentences."""
    word: float = 1.0
    """Contrast of words."""
    fused_words: float = 1.0
    """Masked words read with the volume."""
    match: float = 1.0
    """Does this report belong to this volume?"""
    views: float = 1.0
    """Contrast of two views of a crop."""
    rotation: float = 1.0
    """Quarter turns of the views."""
    reconstruction: float = 1.0
    """The uncorrupted view."""
    text_words: float = 1.0
    """Masked words read without the volume."""
    label_smoothing: float = 0.1
    """Of the report contrast."""
    word_pairs: int = 0
    """Pairs, from the first on, that the word contrast compares; 0 = all. Its memory grows with their square."""
    view_temperature: float = 0.5
    """Of the view contrast."""
    mask_share: float = 0.15
    """Words hidden for both masked-word losses."""
    reconstruction_kind: Literal["l1", "mse", "smooth_l1"] = "l1"
    """Distance of voxels."""
    same_text_is_positive: bool = True
    """Equal reports of a batch are positives of each other. Deviation: the authors count them as negatives."""

    def __post_init__(self) -> None:
        for name in WEIGHTS:
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is a weight and must not be negative, got {getattr(self, name)}")


WEIGHTS = ("report", "sentence", "word", "fused_words", "match", "views", "rotation", "reconstruction", "text_words")
"""Losses in the order of the formula."""


def pretraining_losses(
    model: VelvetModel,
    batch: Mapping[str, Tensor],
    config: ObjectiveConfig,
    generator: torch.Generator | None,
) -> tuple[Tensor, Losses]:
    """Total and single losses of one batch.

    Args:
        model: Its heads decide what can be computed; a weight above 0 without its head is an error.
        batch: `volume` (B, 1, N, N, N), the fields of `TokenBatch`, and for the vision losses `corrupted` and `target`
            (2 B, 1, N, N, N) and `turns` (2 B,), see `make_views`.
        config: Weights.
        generator: Hides words and draws negatives, on the CPU; None draws on the device, so that nothing waits for it.

    Raises:
        ValueError: a loss is switched on whose head or batch entry is missing.
    """
    _require_parts(model, batch, config)
    tokens = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask", "unit_starts")}
    losses: Losses = {}
    features = model.encode_volume(batch["volume"])
    text = model.encode_text(**tokens)
    positives = _same_text(batch["input_ids"]) if config.same_text_is_positive else None
    losses |= _contrast(model, features, text, config, positives)
    if config.match or config.fused_words:
        memory = model.visual_memory(features)
        if config.match:
            losses |= _match(model, memory, features, text, generator, positives)
        if config.fused_words:
            losses["fused_words"] = _masked(model, tokens, text.visible, config, generator, memory)
    if config.text_words:
        losses["text_words"] = _masked(model, tokens, text.visible, config, generator, None)
    if _vision_wanted(config):
        losses |= _self_supervised(model, batch, config)
    losses = {name: losses[name] for name in WEIGHTS if name in losses and getattr(config, name)}
    total = sum((getattr(config, name) * value for name, value in losses.items()), batch["volume"].new_zeros(()))
    return total, losses


def _contrast(
    model: VelvetModel, features: VolumeFeatures, text: EncodedText, config: ObjectiveConfig, positives: Tensor | None
) -> Losses:
    volume, reports = model.volume_embeddings(features), text.embeddings
    off: dict[str, None] = {level: None for level in LEVELS if not getattr(config, level)}
    if len(off) == len(LEVELS):
        return {}

    def contrast(left_out: tuple[str, ...], rows: slice) -> Losses:
        without: dict[str, None] = dict.fromkeys(left_out)
        return hierarchical_contrastive_loss(
            replace(volume[rows], **without),  # type: ignore[arg-type]
            reports[rows],
            temperature=model.temperature(),
            label_smoothing=config.label_smoothing,
            local=model.config.local,
            positives=None if positives is None else positives[rows, rows],
        )

    if not config.word or not config.word_pairs:
        return contrast(tuple(off), slice(None))
    some = tuple(level for level in LEVELS if level != "word")
    found = {} if set(some) <= set(off) else contrast((*off, "word"), slice(None))
    return found | contrast(some, slice(config.word_pairs))


def _match(
    model: VelvetModel,
    memory: Tensor,
    features: VolumeFeatures,
    text: EncodedText,
    generator: torch.Generator | None,
    positives: Tensor | None,
) -> Losses:
    volume = model.volume_embeddings(features)
    with torch.no_grad():
        similarity = report_similarity(volume.report, text.embeddings.report)  # type: ignore[arg-type]
    pairs = mine_pairs(similarity, model.temperature(), positives=positives, generator=generator)
    if pairs is None:
        return {}
    logits = model.match_logits(*text.rows(pairs.text), memory[pairs.volume])
    return {"match": match_loss(logits, pairs.labels)}


def _masked(
    model: VelvetModel,
    tokens: Mapping[str, Tensor],
    visible: Tensor,
    config: ObjectiveConfig,
    generator: torch.Generator | None,
    memory: Tensor | None,
) -> Tensor:
    """Masked words with the volume (all layers) or without (text layers)."""
    masked, labels = mask_words(tokens["input_ids"], model.config.text, generator, config.mask_share)
    head: Callable[[Tensor], Tensor] | None = model.text_words if memory is None else model.fused_words
    states = model.text(
        masked,
        tokens["token_type_ids"],
        tokens["attention_mask"],
        memory=memory,
        layers="text" if memory is None else "all",
        visible=visible,
    )
    return masked_word_loss(head(states[-1]), labels)  # type: ignore[misc]


def _self_supervised(model: VelvetModel, batch: Mapping[str, Tensor], config: ObjectiveConfig) -> Losses:
    last = model.vision(batch["corrupted"])[-1]
    embedding, rotation, reconstruction = model.vision_heads(last)  # type: ignore[misc]
    first, second = embedding.chunk(2)
    return {
        "views": view_contrast_loss(first, second, config.view_temperature),
        "rotation": rotation_loss(rotation, batch["turns"]),
        "reconstruction": reconstruction_loss(reconstruction, batch["target"], config.reconstruction_kind),
    }


def _same_text(input_ids: Tensor) -> Tensor:
    """True where two reports are the same text, (B, B) bool."""
    return (input_ids[:, None] == input_ids).all(-1)


def _vision_wanted(config: ObjectiveConfig) -> bool:
    return any((config.views, config.rotation, config.reconstruction))


def _require_parts(model: VelvetModel, batch: Mapping[str, Tensor], config: ObjectiveConfig) -> None:
    lacking = [
        (config.fused_words or config.match, model.adapter is None, "fused_words and match", "text.fusion_layers"),
        (config.text_words, model.text_words is None, "text_words", "text_heads"),
        (_vision_wanted(config), model.vision_heads is None, "views, rotation and reconstruction", "vision_heads"),
        *((getattr(config, level), level not in model.config.levels, level, "levels") for level in LEVELS),
        (config.match, "report" not in model.config.levels, "match (it mines by report similarity)", "levels"),
    ]
    for wanted, missing, names, switch in lacking:
        if wanted and missing:
            raise ValueError(f"objective {names} is on, but the model was built without it: see {switch} of its config")
    if _vision_wanted(config) and "corrupted" not in batch:
        raise ValueError("the vision losses need corrupted, target and turns in the batch: see make_views")
