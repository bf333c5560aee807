"""What the tiny encoder scores on held-out pictures: zero-shot shape, colour and digit, and retrieval of long captions.

A class is described by a handful of captions; every text embedding has unit length, their mean is the class. Retrieval
finds a scene among 128 by its long caption and the other way round.
Dims: C classes, B pictures, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from mm.data.words import COLOURS, DIGITS, GROUNDS, SHAPES
from mm.encoders.flame.model import FlameImageEncoder
from mm.encoders.flame.pairs import DIGIT_RAW, DIGIT_SHORT, SCENES, Pairs, digit_pairs, scene_pairs
from mm.encoders.flame.text import TextTower
from mm.encoders.flame.tower import load_text_tower
from mm.metrics.scores import accuracy, recall_at_k

PAIRS = 128
"""Pairs of one retrieval."""
Facets = slice
EVERY = slice(None)
ONE_THING = replace(SCENES, max_things=1)
SHORT = ("a {thing} on a {ground} background.", "a picture of a {thing} on a {ground} background.")


def shape_prompts(shape: str) -> list[str]:
    """Captions of a shape in all colours, on all backgrounds."""
    return [SHORT[i % 2].format(thing=f"{c} {shape}", ground=g) for i, c in enumerate(COLOURS) for g in GROUNDS]


def colour_prompts(colour: str) -> list[str]:
    """Captions of a colour in all shapes, on all backgrounds."""
    return [SHORT[i % 2].format(thing=f"{colour} {s}", ground=g) for i, s in enumerate(SHAPES) for g in GROUNDS]


def digit_prompts(word: str) -> list[str]:
    """Captions of a digit."""
    return [form.format(word=word) for form in (*DIGIT_RAW, *DIGIT_SHORT)]


def class_vectors(tower: TextTower, prompts: Mapping[str, Sequence[str]], facets: Facets = EVERY) -> Tensor:
    """One unit vector per class, (C, D) float32: normalised embeddings of its captions, averaged, normalised."""
    texts = [text for group in prompts.values() for text in group]
    rows = tower.encode(texts, "short", normalize=True)[:, facets].float().cpu().mean(dim=1)
    groups = rows.split([len(group) for group in prompts.values()])
    return F.normalize(torch.stack([group.mean(dim=0) for group in groups]), dim=-1)


@torch.no_grad()
def embed_pictures(model: FlameImageEncoder, images: np.ndarray, batch_size: int = 128) -> Tensor:
    """Unit vectors of pictures (N, H, W, 3) uint8 of the right size, (N, D) float32 on the CPU."""
    values = model.tower.preprocessing
    mean, std = torch.tensor(values.mean).view(3, 1, 1), torch.tensor(values.std).view(3, 1, 1)
    parameter, found = next(model.parameters()), []
    for part in torch.from_numpy(images).split(batch_size):
        pixels = (rearrange(part, "b h w c -> b c h w").float() / 255 - mean) / std
        found.append(model(pixels.to(parameter)).float().cpu())
    return torch.cat(found)


def zero_shot(pictures: Tensor, labels: Sequence[str], classes: Tensor, names: Sequence[str]) -> float:
    """Share of pictures (B, D) whose nearest class vector (C, D) is their label."""
    return accuracy(pictures @ classes.T, torch.tensor([list(names).index(label) for label in labels]))


def retrieval(pictures: Tensor, texts: Tensor) -> tuple[float, float]:
    """R@1 of picture to text and text to picture, mean over blocks of 128 pairs; both (N, D) unit vectors."""
    right = torch.eye(PAIRS, dtype=torch.bool)
    found = []
    for first in range(0, len(pictures) - PAIRS + 1, PAIRS):
        scores = pictures[first : first + PAIRS] @ texts[first : first + PAIRS].T
        found.append((recall_at_k(scores, right, 1), recall_at_k(scores.T, right, 1)))
    to_text, to_picture = zip(*found, strict=True)
    return sum(to_text) / len(found), sum(to_picture) / len(found)


def facet_mean(tower: TextTower, captions: Sequence[str], facets: Facets = EVERY) -> Tensor:
    """One unit vector per long caption: mean of its un-normalised facets, (B, D) float32."""
    return F.normalize(tower.encode(captions, "long")[:, facets].float().mean(dim=1), dim=-1).cpu()


def scores(
    model: FlameImageEncoder,
    tower: TextTower,
    *,
    seed: int = 0,
    count: int = 512,
    digits: bool = True,
    facets: Facets = EVERY,
) -> dict[str, float]:
    """All scores on test pictures.

    Args:
        model: Trained image encoder.
        tower: Its text tower.
        seed: Which test scenes.
        count: Scenes per score, a multiple of 128.
        digits: Score the held-out half of the scanned digits too.
        facets: Which facets of a text are used; `slice(0, 1)` is the first alone.
    """
    size, first = model.tower.image_size[0], seed * count
    found: dict[str, float] = {}
    single = scene_pairs("test", count, scenes=ONE_THING, size=size, first=first)
    pictures = embed_pictures(model, single.images)
    for name, words, prompts, part in (
        ("shape", SHAPES, shape_prompts, -1),
        ("colour", tuple(COLOURS), colour_prompts, 0),
    ):
        classes = class_vectors(tower, {word: prompts(word) for word in words}, facets)
        found[f"{name}_zero_shot"] = zero_shot(pictures, [x.split()[part] for x in single.labels], classes, words)
    if digits:
        found["digit_zero_shot"] = digit_score(model, tower, digit_pairs(held_out=True, size=size), facets)
    scenes = scene_pairs("test", count, scenes=SCENES, size=size, first=first)
    texts = facet_mean(tower, [caption.long for caption in scenes.captions], facets)
    to_text, to_picture = retrieval(embed_pictures(model, scenes.images), texts)
    return found | {"image_to_text_r1": to_text, "text_to_image_r1": to_picture}


def digit_score(model: FlameImageEncoder, tower: TextTower, pairs: Pairs, facets: Facets = EVERY) -> float:
    """Zero-shot accuracy on scanned digits."""
    classes = class_vectors(tower, {word: digit_prompts(word) for word in DIGITS}, facets)
    return zero_shot(embed_pictures(model, pairs.images), pairs.labels, classes, DIGITS)


def evaluate(model: Any, *, seed: int) -> dict[str, float]:
    """What `mm zoo verify` asks of the shipped encoder."""
    return scores(model, load_text_tower(model.config.text), seed=seed)
