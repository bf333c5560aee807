"""Cell lookup: a board of symbols and the question which one stands in a given row and column.

A board of 8 x 8 scanned digits holds 64 x log2(10) bits, far more than one pooled vector can carry, so a model that
answers must find the right patch for each question. The seed decides the split and with it the scans: test boards
are made of handwriting that training has never shown.

Dims: B boards, C cells per side, P pixels per cell, H = W = C * P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange, repeat

from mm.data.sample import VisualSample
from mm.data.split import generator, split_of
from mm.data.symbols import SymbolKind, symbol_set

QUESTION = "row {row} col {col}?"
BLANK = -1
"""Label of a cell without a symbol."""
TINT = 40
"""Ground of every other cell, like a chess board, so that people can count the cells; symbols go up to 255 on both."""
TINTED = np.rint(TINT + np.arange(256) * (255 - TINT) / 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class BoardConfig:
    """Size and content of the boards."""

    cells: int = 8
    """Cells per side (C), 1 to 8."""
    cell_pixels: int = 8
    """Side of a cell in pixels (P), at least 4; 8 shows the scans as they are."""
    symbols: SymbolKind = "digits"
    """Scanned digits (10 words) or drawn glyphs (16 words)."""
    turns: int = 1
    """Questions per sample; all but the last are earlier turns of its conversation."""
    filled: tuple[int, ...] = ()
    """How many cells hold a symbol, drawn from these numbers; the rest is blank and never asked for. () = all cells.
    Sparse boards among the full ones make the lookup much quicker to learn."""

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= 8:
            raise ValueError(f"cells per side must be 1 to 8, got {self.cells}")
        if self.cell_pixels < 4:
            raise ValueError(f"cell_pixels must be at least 4, got {self.cell_pixels}")
        if any(not 1 <= number <= self.cells**2 for number in self.filled):
            raise ValueError(f"filled must hold numbers from 1 to {self.cells**2}, got {self.filled}")
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, got {self.turns}")
        if self.symbols not in ("digits", "glyphs"):
            raise ValueError(f"symbols must be 'digits' or 'glyphs', got {self.symbols!r}")

    @property
    def image_size(self) -> int:
        """Side of the picture in pixels."""
        return self.cells * self.cell_pixels


@dataclass(frozen=True, eq=False)
class Board:
    """One board.

    Args:
        image: (H, W, 3) uint8.
        labels: Class of every cell, (C, C) int64; -1 on blank ones.
        scans: Which scan (or drawn variant) stands in every cell, (C, C) int64.
        words: The answer word of every class.
        seed: What the board was made from.
    """

    image: np.ndarray
    labels: np.ndarray
    scans: np.ndarray
    words: tuple[str, ...]
    seed: int

    def question(self, row: int, col: int) -> tuple[str, str]:
        """Question and answer about one cell; both indices count from 0, the words of the question from 1.

        Raises:
            ValueError: there is no such cell.
        """
        cells = len(self.labels)
        if not (0 <= row < cells and 0 <= col < cells):
            raise ValueError(f"row and col must be in 0..{cells - 1}, got row={row}, col={col}")
        if self.labels[row, col] == BLANK:
            raise ValueError(f"the cell at row={row}, col={col} is blank")
        return QUESTION.format(row=row + 1, col=col + 1), self.words[self.labels[row, col]]

    def sample(self, row: int, col: int) -> VisualSample:
        """The question about one cell with the picture."""
        question, answer = self.question(row, col)
        return VisualSample([self.image], question, answer, meta={"seed": self.seed, "row": row, "col": col})

    def samples(self) -> list[VisualSample]:
        """All questions about filled cells, row by row."""
        return [self.sample(int(row), int(col)) for row, col in np.argwhere(self.labels != BLANK)]


def _cells_of(seeds: Sequence[int], config: BoardConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell pictures (B, C * C, P, P), labels and scan numbers (B, C * C) of boards of any splits."""
    cells = config.cells**2
    pictures = np.empty((len(seeds), cells, config.cell_pixels, config.cell_pixels), np.uint8)
    labels, scans = np.empty((2, len(seeds), cells), np.int64)
    for index, seed in enumerate(seeds):
        symbols = symbol_set(config.symbols, split_of(seed), config.cell_pixels)
        rng = generator(seed, "board")
        labels[index] = rng.integers(len(symbols.words), size=cells)
        first, end = symbols.starts[labels[index]], symbols.starts[labels[index] + 1]
        chosen = (first + rng.random(cells) * (end - first)).astype(np.int64)
        scans[index] = symbols.ids[chosen]
        np.take(symbols.pictures, chosen, axis=0, out=pictures[index])
        if config.filled:
            blank = rng.permutation(cells) >= config.filled[rng.integers(len(config.filled))]
            pictures[index, blank], labels[index, blank], scans[index, blank] = 0, BLANK, BLANK
    row, col = np.divmod(np.arange(cells), config.cells)
    odd = (row + col) % 2 == 1
    pictures[:, odd] = TINTED[pictures[:, odd]]
    return pictures, labels, scans


def boards_batch(seeds: Sequence[int], config: BoardConfig | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Many boards at once, for pre-training a tower or measuring; row i equals `sample_board(seeds[i])`.

    Returns:
        Pictures (B, H, W, 3) uint8 and labels (B, C, C) int64.
    """
    config = config or BoardConfig()
    pictures, labels, _ = _cells_of(seeds, config)
    grey = rearrange(pictures, "b (r c) y x -> b (r y) (c x)", r=config.cells)
    return repeat(grey, "b h w -> b h w 3"), rearrange(labels, "b (r c) -> b r c", r=config.cells)


def sample_board(seed: int, config: BoardConfig | None = None) -> Board:
    """The board of one seed.

    Example:
        >>> board = sample_board(7)
        >>> board.image.shape, board.question(2, 4)[0]
        ((64, 64, 3), 'row 3 col 5?')
    """
    config = config or BoardConfig()
    pictures, labels, scans = _cells_of([seed], config)
    grey = rearrange(pictures[0], "(r c) y x -> (r y) (c x)", r=config.cells)
    square = {"r": config.cells}
    words = symbol_set(config.symbols, split_of(seed), config.cell_pixels).words
    return Board(
        image=repeat(grey, "h w -> h w 3"),
        labels=rearrange(labels[0], "(r c) -> r c", **square),
        scans=rearrange(scans[0], "(r c) -> r c", **square),
        words=words,
        seed=seed,
    )


def board_sample(seed: int, config: BoardConfig | None = None) -> VisualSample:
    """The board of one seed with `config.turns` questions about it, drawn from the same seed."""
    config = config or BoardConfig()
    board = sample_board(seed, config)
    filled = np.argwhere(board.labels != BLANK)
    asked = generator(seed, "board question").integers(len(filled), size=config.turns)
    *earlier, last = [(int(row), int(col)) for row, col in filled[asked]]
    sample = board.sample(*last)
    if earlier:
        sample.meta["history"] = [board.question(row, col) for row, col in earlier]
    return sample
