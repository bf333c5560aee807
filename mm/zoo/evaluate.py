"""What the shipped demonstrations score on held-out data; `mm zoo verify` runs these again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mm.data.boards import BoardConfig, board_sample
from mm.data.dense import NOTHING, TARGETS, UNKNOWN
from mm.data.questions import scene_sample
from mm.data.sample import VisualSample
from mm.data.scene_patches import PATCH, PATCH_TARGETS, SIDE, WIDE, ScenePatchConfig, ScenePatchData
from mm.data.scenes import SceneConfig
from mm.data.seeded_module import DenseData, DenseDataConfig, TextDataConfig, text_rows
from mm.data.shorthand import SCENE_KINDS
from mm.data.split import Split
from mm.data.text import TextConfig
from mm.training.answers import accuracy
from mm.zoo.bases import LanguageBase, TowerBase
from mm.zoo.tower_module import TowerModule


def held_out_boards(seed: int, count: int) -> list[VisualSample]:
    """Lookups on full boards of held-out scans; the seed chooses which."""
    split = Split("test")
    return [board_sample(split.seed(seed * count + index), BoardConfig()) for index in range(count)]


def held_out_scenes(seed: int, count: int) -> list[VisualSample]:
    """Questions for colour, shape and place on held-out scenes of 64 pixels."""
    split, config = Split("test"), SceneConfig()
    return [
        scene_sample(split.seed(seed * count + index), config, size=64, kinds=SCENE_KINDS) for index in range(count)
    ]


def held_out_wide_scenes(seed: int, count: int) -> list[VisualSample]:
    """The same questions on held-out wide scenes of 128 pixels: small things, mostly background."""
    split, size = Split("test"), PATCH * SIDE
    return [
        scene_sample(split.seed(seed * count + index), WIDE, size=size, kinds=SCENE_KINDS) for index in range(count)
    ]


def with_images(samples: Sequence[VisualSample], images: Sequence[list[np.ndarray]]) -> list[VisualSample]:
    """The same questions under other pictures."""
    return [replace(sample, images=pictures) for sample, pictures in zip(samples, images, strict=True)]


def shuffled(samples: Sequence[VisualSample]) -> list[VisualSample]:
    """Every question under the picture of the next sample."""
    images = [sample.images for sample in samples]
    return with_images(samples, [*images[1:], images[0]])


def blanked(samples: Sequence[VisualSample]) -> list[VisualSample]:
    """Every question under black pictures."""
    return with_images(samples, [[np.zeros_like(image) for image in sample.images] for sample in samples])


def answering(model: Any, *, seed: int, count: int = 512) -> dict[str, float]:
    """Scores of a model that answers about boards and scenes, with the two picture controls."""
    boards = held_out_boards(seed, count)
    return {
        "cell_lookup_accuracy": accuracy(model, boards),
        "cell_lookup_shuffled_pictures": accuracy(model, shuffled(boards)),
        "cell_lookup_blank_pictures": accuracy(model, blanked(boards)),
        "scene_accuracy": accuracy(model, held_out_scenes(seed, count)),
    }


def answering_wide(model: Any, *, seed: int, count: int = 256) -> dict[str, float]:
    """Scores of a model that answers about wide scenes, with the two picture controls."""
    scenes = held_out_wide_scenes(seed, count)
    return {
        "wide_scene_accuracy": accuracy(model, scenes),
        "wide_scene_shuffled_pictures": accuracy(model, shuffled(scenes)),
        "wide_scene_blank_pictures": accuracy(model, blanked(scenes)),
    }


@torch.no_grad()
def language(model: LanguageBase, *, seed: int) -> dict[str, float]:
    """Answer accuracy of the language model on held-out text, lookups among 64 facts apart."""
    spots = TextConfig(kinds=("board_shorthand",), weights=(1.0,))
    mixed = TextConfig(kinds=("board_shorthand", "scene_shorthand", "described"), weights=(0.5, 0.3, 0.2))
    scores = {}
    for name, config in (("board_answer_accuracy", spots), ("mixed_answer_accuracy", mixed)):
        first = Split("test").seed(seed * 256)
        batch = text_rows(TextDataConfig(text=config, length=128), range(first, first + 256))
        found = model(batch["input_ids"]).logits[:, :-1].argmax(-1)
        answers = batch["answers"][:, 1:]
        scores[name] = float((found == batch["input_ids"][:, 1:])[answers].float().mean())
    return scores


@torch.no_grad()
def tower(model: TowerBase, *, seed: int) -> dict[str, float]:
    """How well a linear readout, fitted on validation pictures, names held-out patches."""
    data = DenseData(DenseDataConfig(batch_size=64, held_out_batches=8))
    prepared = TowerModule(seed=seed)  # only for its normalisation of pictures
    sets = []
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        tokens = [model.tower((batch["pictures"] - prepared.mean) / prepared.std).tokens for batch in batches]
        labels = {name: torch.cat([batch[name] for batch in batches]).flatten() for name in TARGETS}
        sets.append((torch.cat(tokens).flatten(0, 1).double(), labels))
    return {f"{name}_patch_accuracy": readout(sets[0], sets[1], name) for name in ("digit", "colour", "shape")}


@torch.no_grad()
def tower_wide(model: TowerBase, *, seed: int) -> dict[str, float]:
    """The same on the patches of things in wide scenes."""
    data = ScenePatchData(ScenePatchConfig(batch_size=64, held_out_batches=4))
    scale = model.tower.preprocessing
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (scale.mean, scale.std))
    sets = []
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        tokens = [model.tower((batch["pictures"] - mean) / std).tokens for batch in batches]
        labels = {name: torch.cat([batch[f"patch_{name}"] for batch in batches]).flatten() for name in PATCH_TARGETS}
        for name, classes in labels.items():
            classes[classes == TARGETS[name].index(NOTHING)] = UNKNOWN
        sets.append((torch.cat(tokens).flatten(0, 1).double(), labels))
    return {f"{name}_patch_accuracy": readout(sets[0], sets[1], name) for name in PATCH_TARGETS}


Readings = tuple[Tensor, dict[str, Tensor]]
"""Tokens (N, D) float64 and, per target, labels (N,) int64 with -100 where it does not apply."""


def readout(fit: Readings, test: Readings, name: str, ridge: float = 1e-3) -> float:
    """Accuracy of a linear readout on `test`, fitted by ridge regression on `fit`."""
    known, asked = fit[1][name] != UNKNOWN, test[1][name] != UNKNOWN
    x, queries = (F.pad(tokens[mask], (0, 1), value=1.0) for tokens, mask in ((fit[0], known), (test[0], asked)))
    target = F.one_hot(fit[1][name][known], len(TARGETS[name])).double()
    damping = ridge * len(x) * torch.eye(x.shape[1], dtype=torch.double)
    guess = queries @ torch.linalg.solve(x.T @ x + damping, x.T @ target)
    return float((guess.argmax(-1) == test[1][name][asked]).float().mean())
