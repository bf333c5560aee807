"""Held-out phantoms and what a model makes of them.

Dims: P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mm.data.split import Split
from mm.medical.phantom_reports import report
from mm.medical.phantoms import Case, draw_case, render
from mm.medical.velvet.config import LEVELS
from mm.medical.velvet.data import windowed
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.vision import VolumeFeatures


@dataclass(frozen=True)
class HeldOut:
    """Held-out patients with their volumes; no two reports are the same text."""

    cases: list[Case]
    volumes: Tensor
    """(P, 1, X, X, X) in 0 .. 1."""

    @property
    def reports(self) -> list[list[str]]:
        return [report(case) for case in self.cases]


def held_out(seed: int, count: int, size: int = 36) -> HeldOut:
    """Patients of the test split.

    Args:
        seed: Which part of the split; parts do not overlap.
        count: Patients (P).
        size: Voxels per edge.
    """
    cases: list[Case] = []
    texts: set[str] = set()
    number = seed * 2**24
    while len(cases) < count:
        case = draw_case(Split("test").seed(number))
        number += 2
        text = " ".join(report(case))
        if text not in texts:
            texts.add(text)
            cases.append(case)
    return HeldOut(cases, torch.stack([windowed(render(case, size).hu) for case in cases]))


@torch.no_grad()
def encode(model: VelvetModel, data: HeldOut) -> VolumeFeatures:
    """Features of all volumes."""
    parts = [model.encode_volume(part) for part in _parts(model, data.volumes)]
    levels = {level: torch.cat([getattr(part, level) for part in parts]) for level in LEVELS}
    return VolumeFeatures(**levels)


@torch.no_grad()
def embed(
    model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None
) -> tuple[LevelEmbeddings, LevelEmbeddings]:
    """Level vectors of all volumes and all reports."""
    volumes = model.volume_embeddings(features or encode(model, data))
    return volumes, model.encode_text(**model.tokenize(data.reports)).embeddings


def _parts(model: VelvetModel, volumes: Tensor, size: int = 32) -> Iterator[Tensor]:
    """Pieces of a batch on the model's device."""
    return (part.to(model.device) for part in volumes.split(size))
