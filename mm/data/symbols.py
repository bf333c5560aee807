"""The small pictures that fill the cells of a board: real scanned digits, or drawn glyphs.

The 1,797 digits are scans of handwriting by 43 people that ship with scikit-learn. They are dealt out once to
training, validation and test, class by class, so that no test scan was ever seen in training.

Dims: N pictures, P picture side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from mm.data.split import SplitName
from mm.data.words import DIGITS, GLYPHS

SymbolKind = Literal["digits", "glyphs"]
SHARES = {"train": 0.70, "validation": 0.10, "test": 0.20}
"""Part of every digit class that each split gets."""
DEAL_SEED = 20

GLYPH_ROWS = {
    "plus": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
    "cross": ("#....#", ".#..#.", "..##..", "..##..", ".#..#.", "#....#"),
    "ring": (".####.", "#....#", "#....#", "#....#", "#....#", ".####."),
    "box": ("######", "######", "######", "######", "######", "######"),
    "dot": ("......", "......", "..##..", "..##..", "......", "......"),
    "bar": ("..##..", "..##..", "..##..", "..##..", "..##..", "..##.."),
    "dash": ("......", "......", "######", "######", "......", "......"),
    "slash": (".....#", "....#.", "...#..", "..#...", ".#....", "#....."),
    "arrow": ("...#..", "....#.", "######", "######", "....#.", "...#.."),
    "tee": ("######", "######", "..##..", "..##..", "..##..", "..##.."),
    "corner": ("##....", "##....", "##....", "##....", "######", "######"),
    "stairs": ("....##", "....##", "..####", "..####", "######", "######"),
    "cup": ("#....#", "#....#", "#....#", "#....#", "##..##", ".####."),
    "house": ("..##..", ".####.", "######", "#....#", "#....#", "######"),
    "heart": (".#..#.", "######", "######", ".####.", "..##..", "......"),
    "checker": ("#.#.#.", ".#.#.#", "#.#.#.", ".#.#.#", "#.#.#.", ".#.#.#"),
}
"""Six by six bitmaps; each is shown at nine offsets inside its eight by eight cell."""


@dataclass(frozen=True, eq=False)
class SymbolSet:
    """Pictures of symbols, sorted by class.

    Args:
        pictures: (N, P, P) uint8, bright on black.
        starts: First picture of each class, one more at the end, (classes + 1,) int64.
        ids: Where each picture comes from: number of the scan in the collection or of the drawn variant, (N,) int64.
        words: The answer word of each class.
    """

    pictures: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    words: tuple[str, ...]


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans (1797, 8, 8) uint8 and their digits (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


@cache
def scan_ids(split: SplitName) -> tuple[np.ndarray, ...]:
    """Numbers of the scans that belong to `split`, one array per digit 0..9; the three splits are disjoint."""
    rng = np.random.default_rng(DEAL_SEED)
    dealt = []
    for digit in range(10):
        ids = rng.permutation(np.flatnonzero(_scans()[1] == digit))
        first, second = np.rint(np.cumsum([SHARES["train"], SHARES["validation"]]) * len(ids)).astype(int)
        parts = dict(zip(SHARES, np.split(ids, [first, second]), strict=True))
        dealt.append(np.sort(parts[split]))
    return tuple(dealt)


def _drawn_glyphs() -> tuple[np.ndarray, np.ndarray]:
    """All glyphs at all offsets, (16 * 9, 8, 8) uint8, and their class (144,)."""
    pictures = np.zeros((len(GLYPHS), 9, 8, 8), np.uint8)
    for number, name in enumerate(GLYPHS):
        bitmap = np.array([[255 * (pixel == "#") for pixel in row] for row in GLYPH_ROWS[name]], np.uint8)
        for offset in range(9):
            row, column = divmod(offset, 3)
            pictures[number, offset, row : row + 6, column : column + 6] = bitmap
    return pictures.reshape(-1, 8, 8), np.repeat(np.arange(len(GLYPHS)), 9)


@cache
def symbol_set(kind: SymbolKind, split: SplitName, pixels: int = 8) -> SymbolSet:
    """The symbols of one split at one size.

    Args:
        kind: "digits" (scans, disjoint between splits) or "glyphs" (drawn, the same in all splits).
        split: Which part of the scans.
        pixels: Side of a picture (P); 8 is the size of the scans, others are resized
            bicubically and get a margin of a sixteenth.

    Raises:
        ValueError: unknown `kind`, or `pixels` below 4.
    """
    if kind not in ("digits", "glyphs"):
        raise ValueError(f"unknown kind of symbol {kind!r}; allowed: digits, glyphs")
    if pixels < 4:
        raise ValueError(f"a symbol needs at least 4 pixels per side, got {pixels}")
    words: tuple[str, ...]
    if kind == "digits":
        groups = scan_ids(split)
        ids, pictures, words = np.concatenate(groups), _scans()[0], DIGITS
        counts = [len(group) for group in groups]
    else:
        pictures, classes = _drawn_glyphs()
        ids, words = np.arange(len(pictures)), GLYPHS
        counts = np.bincount(classes).tolist()
    chosen = pictures[ids]
    if pixels != chosen.shape[-1]:
        margin = pixels // 16
        inner = pixels - 2 * margin
        resized = [Image.fromarray(picture).resize((inner, inner), Image.Resampling.BICUBIC) for picture in chosen]
        chosen = np.pad(np.stack([np.asarray(picture) for picture in resized]), ((0, 0), *[(margin, margin)] * 2))
    return SymbolSet(chosen, np.concatenate([[0], np.cumsum(counts)]), ids, words)
