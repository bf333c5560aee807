"""Procedural parts as training batches: a picture, the question, and the program as the answer.

Dims: B parts, N tokens, S = 64 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from mm.cad.drawing.picture import Picture, render
from mm.cad.emitter import emit
from mm.cad.kernel.evaluate import features
from mm.cad.kernel.manifold import build_mesh
from mm.cad.manner import PROMPT
from mm.cad.procedural import TINY, PartConfig, sample_part
from mm.cad.program import Program
from mm.cad.seeing import as_seen, grey
from mm.data.seeded_module import SeededBatches
from mm.data.split import Split
from mm.vlm.batch import pad_rows
from mm.vlm.processor import IGNORED, VLMProcessor

ANGLE = math.radians(10.0)
"""Tessellation of curves in training pictures."""
SIZE = 64
"""Side of the pictures, pixels."""
FINE = 128
"""Every fourth part is drawn at this size and shrunk like a user's picture: its lines are thin and pale."""


@dataclass(frozen=True, kw_only=True)
class PartDataConfig:
    """Pictures of procedural parts with their programs."""

    parts: PartConfig = TINY
    """Which parts."""
    pictures: str = ""
    """File of `draw_file` with the pictures of the first training parts; training then stays within them and goes
    round. Empty: every picture is drawn when it is needed."""
    noise: float = 4.0
    """Standard deviation of the noise on training pictures, grey levels."""
    shift: int = 1
    """Largest shift of training pictures, pixels."""
    batch_size: int = 64
    """Parts per batch and process (B)."""
    held_out_batches: int = 4
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""


class PartData(SeededBatches):
    """Batches of `mm.vlm` made whole from consecutive seeds: parts, pictures, programs."""

    def __init__(self, config: PartDataConfig | None = None) -> None:
        self.config = config or PartDataConfig()
        self.rows = PartRows(self.config)
        super().__init__(
            self.rows,
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )

    def setup(self, stage: str) -> None:
        """Take the tokenizer of the model that is trained."""
        self.rows.processor = self.find_processor()


class PartRows:
    """seeds -> batch; programs are written and split into tokens once per part.

    Args:
        config: Which parts and how they are drawn.
        processor: Of the model; may be set later.
    """

    def __init__(self, config: PartDataConfig, processor: VLMProcessor | None = None) -> None:
        self.config, self.processor = config, processor
        self.pictures = read_pictures(config.pictures) if config.pictures else None
        self._encoded: dict[int, tuple[list[int], list[int]]] = {}

    def __call__(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, N), `pixel_values` (B, 3, S, S), `visual_counts` (B,)."""
        if self.processor is None:
            raise ValueError("PartRows has no processor to make tokens with; give the model's `processor`")
        training = seeds[0] in Split("train").seeds
        if training and self.pictures is not None:
            seeds = [seed % len(self.pictures) for seed in seeds]  # the training seeds start at 0
            levels = self.pictures[seeds]
        else:
            levels = np.stack([draw_part(seed, self.config.parts) for seed in seeds])
        rows = [self.encoded(seed) for seed in seeds]
        ids = [row for row, _ in rows]
        return {
            "input_ids": pad_rows(ids, self.processor.pad_token_id, "right"),
            "attention_mask": pad_rows([[1] * len(row) for row in ids], 0, "right"),
            "labels": pad_rows([labels for _, labels in rows], IGNORED, "right"),
            "pixel_values": self._pixels(levels, seeds[0] if training else None),
            "visual_counts": torch.ones(len(rows), dtype=torch.long),
        }

    def encoded(self, seed: int) -> tuple[list[int], list[int]]:
        """Ids and labels of a part."""
        if seed not in self._encoded:
            assert self.processor is not None
            text = emit(sample_part(seed, self.config.parts).program, style="canonical")
            self._encoded[seed] = self.processor.encode(PROMPT, [1], answer=text)
        return self._encoded[seed]

    def _pixels(self, levels: Picture, seed: int | None) -> Tensor:
        """Grey levels (B, S, S) -> pixel values, with noise and shifts where a seed is given."""
        values = torch.from_numpy(np.ascontiguousarray(levels)).float()
        if seed is not None:
            random = torch.Generator().manual_seed(seed)
            reach = self.config.shift
            moves = torch.randint(-reach, reach + 1, (len(values), 2), generator=random)
            values = torch.stack([_moved(v, *move) for v, move in zip(values, moves.tolist(), strict=True)])
            values = values + self.config.noise * torch.randn(values.shape, generator=random)
        return repeat((values.clamp(0, 255) / 255 - 0.5) / 0.5, "b h w -> b c h w", c=3)


def _moved(picture: Tensor, down: int, right: int) -> Tensor:
    """A picture (S, S) shifted over white ground."""
    return torch.roll(picture, (down, right), dims=(0, 1))  # the margin is wider than any shift


def draw(program: Program, size: int = SIZE) -> Picture:
    """The picture of a procedural part: iso view, shaded, grey, (size, size) uint8."""
    return grey(render(build_mesh(features(program), angle=ANGLE), size=size))


def draw_part(seed: int, config: PartConfig) -> Picture:
    """The picture of the part of a seed, (S, S) uint8."""
    program = sample_part(seed, config).program
    if seed % 4:
        return draw(program)
    return as_seen(render(build_mesh(features(program), angle=ANGLE), size=FINE), SIZE)


def draw_file(path: str | Path, count: int, config: PartConfig | None = None) -> None:
    """Draw the first `count` training parts into a file for `PartDataConfig.pictures`."""
    seeds = Split("train").seeds[:count]
    pictures = np.stack([draw_part(seed, config or TINY) for seed in seeds])
    np.savez_compressed(path, pictures=pictures)


def read_pictures(path: str | Path) -> Picture:
    """Pictures of the first training parts, (n, S, S) uint8.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; write it with mm.cad.data.draw_file")
    with np.load(path, allow_pickle=False) as arrays:
        pictures: Any = arrays.get("pictures")
    if pictures is None or pictures.ndim != 3 or pictures.dtype != np.uint8:
        raise ValueError(f"{path}: holds no array `pictures` (n, {SIZE}, {SIZE}) uint8")
    return pictures  # type: ignore[no-any-return]
