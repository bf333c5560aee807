"""What the tiny encoder scores on held-out pictures: zero-shot shape, colour and digit, and retrieval of long captions.

Retrieval finds a scene among 128 by its long caption and the other way round.
Dims: B pictures, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mm.data.words import COLOURS, DIGITS, GROUNDS, SHAPES
from mm.encoders.flame.evaluation import class_vectors, retrieval, text_scores, zero_shot
from mm.encoders.flame.model import FlameImageEncoder
from mm.encoders.flame.pairs import DIGIT_RAW, DIGIT_SHORT, SCENES, digit_pairs, scene_pairs
from mm.encoders.flame.readout import word_scores
from mm.encoders.flame.text import TextTower
from mm.encoders.flame.tower import load_text_tower
from mm.metrics.scores import accuracy

PAIRS = 128
"""Pairs of one retrieval."""
ONE_THING = replace(SCENES, max_things=1)
SHAPE_PHRASES = tuple(
    f"a picture of a {colour} {{}} on a {ground} background." for colour in COLOURS for ground in GROUNDS
)
COLOUR_PHRASES = tuple(
    f"a picture of a {{}} {shape} on a {ground} background." for shape in SHAPES for ground in GROUNDS
)
DIGIT_PHRASES = tuple(form.format(word="{}") for form in (*DIGIT_RAW, *DIGIT_SHORT))


@torch.no_grad()
def embed_pictures(model: FlameImageEncoder, images: np.ndarray, batch_size: int = 128) -> Tensor:
    """Unit vectors of pictures (B, H, W, 3) uint8 of the right size, (B, D) float32 on the CPU."""
    values = model.tower.preprocessing
    mean, std = torch.tensor(values.mean).view(3, 1, 1), torch.tensor(values.std).view(3, 1, 1)
    parameter, found = next(model.parameters()), []
    for part in torch.from_numpy(images).split(batch_size):
        pixels = (rearrange(part, "b h w c -> b c h w").float() / 255 - mean) / std
        found.append(model(pixels.to(parameter)).float().cpu())
    return torch.cat(found)


def named(
    pictures: Tensor, labels: Sequence[str], tower: TextTower, names: Sequence[str], phrases: Sequence[str], one: bool
) -> float:
    """Zero-shot accuracy of pictures (B, D); the classes are read through three facets, or through one."""
    classes = class_vectors(tower, names, phrases, template="single" if one else "short").cpu()
    return float(zero_shot(pictures, torch.tensor([list(names).index(label) for label in labels]), classes)["top1"])


def scores(
    model: FlameImageEncoder,
    tower: TextTower,
    *,
    seed: int = 0,
    count: int = 512,
    digits: bool = True,
    one_facet: bool = False,
) -> dict[str, float]:
    """All scores on test pictures.

    Args:
        model: Trained image encoder.
        tower: Its text tower.
        seed: Which test scenes.
        count: Scenes per score, a multiple of 128.
        digits: Score the held-out half of the scanned digits too.
        one_facet: Read every text through its first facet alone.
    """
    size, first = model.tower.image_size[0], seed * count
    single = scene_pairs("test", count, scenes=ONE_THING, size=size, first=first)
    pictures, words = embed_pictures(model, single.images), [label.split() for label in single.labels]
    shapes, colours = [shape for _, shape in words], [colour for colour, _ in words]
    found = {
        "shape_zero_shot": named(pictures, shapes, tower, SHAPES, SHAPE_PHRASES, one_facet),
        "colour_zero_shot": named(pictures, colours, tower, tuple(COLOURS), COLOUR_PHRASES, one_facet),
    }
    if digits:
        held_out = digit_pairs(held_out=True, size=size)
        pictures = embed_pictures(model, held_out.images)
        found["digit_zero_shot"] = named(pictures, held_out.labels, tower, DIGITS, DIGIT_PHRASES, one_facet)
    return found | retrieved(model, tower, first, count, one_facet)


def retrieved(model: FlameImageEncoder, tower: TextTower, first: int, count: int, one: bool) -> dict[str, float]:
    """R@1 both ways between scenes and their long captions, mean over blocks of 128 pairs."""
    scenes = scene_pairs("test", count, scenes=SCENES, size=model.tower.image_size[0], first=first)
    pictures = embed_pictures(model, scenes.images)
    texts = tower.encode([caption.long for caption in scenes.captions], "long").float().cpu()  # (B, K, D)
    blocks = []
    for start in range(0, count - PAIRS + 1, PAIRS):
        part = slice(start, start + PAIRS)
        similar = text_scores(pictures[part], texts[part], [0] if one else "mean")
        blocks.append(retrieval(similar, torch.arange(PAIRS), ks=(1,)))
    names = ("image_to_text_r1", "text_to_image_r1")
    return {name: sum(block[name] for block in blocks) / len(blocks) for name in names}


def read_out(model: FlameImageEncoder, tower: Any, *, seed: int = 0, count: int = 512) -> dict[str, float]:
    """How often the language model's own head, put on the image vector, prefers the right word among eight."""
    pairs = scene_pairs("test", count, scenes=ONE_THING, size=model.tower.image_size[0], first=seed * count)
    vectors, found = embed_pictures(model, pairs.images), {}
    for name, words, part in (("colour", tuple(COLOURS), 0), ("shape", SHAPES, 1)):
        ids = tower.tokenizer.convert_tokens_to_ids(list(words))
        labels = torch.tensor([words.index(label.split()[part]) for label in pairs.labels])
        found[f"{name}_read_out"] = accuracy(word_scores(tower.backbone, vectors, ids), labels)
    return found


def evaluate(model: Any, *, seed: int) -> dict[str, float]:
    """What `mm zoo verify` asks of the shipped encoder."""
    tower = load_text_tower(model.config.text)
    return scores(model, tower, seed=seed) | read_out(model, tower, seed=seed)
