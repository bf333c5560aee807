"""Pictures with captions for the embedded default: drawn scenes, and scikit-learn's scanned digits.

Every picture has three captions, as the authors' data has: a raw one (a few words), a short one, a long one. Of the
digits one half is for training; the captions are the only supervision.
Dims: N pairs, H = W picture side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context

import numpy as np
from einops import repeat

from mm.data.captions import long_caption, short_caption
from mm.data.phrasing import Phrasing, choose, with_article
from mm.data.scenes import SceneConfig, render, sample_scene
from mm.data.split import Split, SplitName, generator
from mm.data.symbols import scan_ids, symbol_set
from mm.data.words import DIGITS

SCENES = SceneConfig(max_things=2, sizes=("large",))
"""What the scenes of the tiny recipe contain."""
RAW = ("{things}.", "a picture of {things}.")
DIGIT_RAW = ("{word}.", "the digit {word}.", "a picture of {word}.")
DIGIT_SHORT = (
    "the picture shows the digit {word}.",
    "this is the digit {word}.",
    "we see the written digit {word}.",
    "here is the digit {word}.",
)
DIGIT_LONG = (
    "there is one thing in this picture. it is the digit {word}. the background is black and plain.",
    "you can see one large white digit here. the digit {word} is written in the centre. the background is black.",
    "the picture shows one digit. the digit is {word}. it is drawn on a plain black surface.",
)
"""The forms of each list are drawn at random."""


@dataclass(frozen=True)
class Captions:
    """What is said about one picture."""

    raw: str
    """A few words, as beside a picture in the web."""
    short: str
    """One sentence."""
    long: str
    """Several sentences that tell everything."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures and their captions."""

    images: np.ndarray
    """(N, H, W, 3) uint8."""
    captions: Sequence[Captions]
    """One per picture."""
    labels: Sequence[str] = field(default=())
    """What the picture shows, in a word, for zero-shot tests; empty where that is no one word."""

    def __len__(self) -> int:
        return len(self.captions)


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Several sets one behind the other; labels are left out."""
    return Pairs(np.concatenate([part.images for part in parts]), list(chain(*(part.captions for part in parts))))


def scene_pairs(
    split: SplitName,
    count: int,
    *,
    scenes: SceneConfig,
    size: int = 64,
    first: int = 0,
    phrasing: Phrasing = "all",
    workers: int = 0,
) -> Pairs:
    """Scenes of a split with their captions; pair i is the scene of seed number `first` + i.

    Args:
        split: Which seeds.
        count: How many (N).
        scenes: What scenes contain.
        size: Side of the pictures (H).
        first: Number of the first seed.
        phrasing: Which wordings.
        workers: Processes that draw; the result does not depend on it.
    """
    seeds = Split(split).seeds[first : first + count]
    draw = partial(_scene, scenes=scenes, size=size, phrasing=phrasing)
    if workers < 2:
        drawn = list(map(draw, seeds))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(draw, seeds, chunksize=256))
    images, captions, labels = zip(*drawn, strict=True)
    return Pairs(np.stack(images), captions, labels)


def _scene(seed: int, *, scenes: SceneConfig, size: int, phrasing: Phrasing) -> tuple[np.ndarray, Captions, str]:
    """One picture, what is said about it, and its thing if there is only one."""
    scene = sample_scene(seed, scenes)
    rng = generator(seed, "raw caption")
    things = " and ".join(with_article(thing.name) for thing in scene.things)
    raw = RAW[rng.integers(len(RAW))].format(things=things)
    short, long = (write(scene, seed, phrasing=phrasing) for write in (short_caption, long_caption))
    label = scene.things[0].name if len(scene.things) == 1 else ""
    return render(scene, size), Captions(raw, short, long), label


def digit_pairs(held_out: bool, *, size: int = 64, seed: int = 0) -> Pairs:
    """One half of the 1,797 scanned digits with captions; the other half is for the test.

    The training half lies inside the training part that boards are made of, so that no shipped model of this toolkit
    has ever seen a scan of the held-out test boards.
    """
    pictures, classes = digit_scans(size)
    train = np.isin(np.arange(len(classes)), training_half())
    chosen = np.flatnonzero(train != held_out)
    rng = np.random.default_rng([seed, int(held_out)])
    captions = []
    for index in chosen:
        word = DIGITS[classes[index]]
        raw, short, long = (choose(rng, forms, "all") for forms in (DIGIT_RAW, DIGIT_SHORT, DIGIT_LONG))
        captions.append(Captions(*(text.format(word=word) for text in (raw, short, long))))
    return Pairs(
        repeat(pictures[chosen], "n h w -> n h w c", c=3), captions, [DIGITS[classes[index]] for index in chosen]
    )


@cache
def digit_scans(size: int) -> tuple[np.ndarray, np.ndarray]:
    """All scans in the order of the collection, (1797, H, W) uint8, and their classes (1797,)."""
    parts = [symbol_set("digits", split, size) for split in ("train", "validation", "test")]
    order = np.argsort(np.concatenate([part.ids for part in parts]))
    classes = [np.repeat(np.arange(10), np.diff(part.starts)) for part in parts]
    return np.concatenate([part.pictures for part in parts])[order], np.concatenate(classes)[order]


@cache
def training_half() -> np.ndarray:
    """Numbers of the scans for training: half of every class, out of the training part."""
    counts = np.bincount(digit_scans(8)[1])
    return np.concatenate([ids[: count // 2] for ids, count in zip(scan_ids("train"), counts, strict=True)])
