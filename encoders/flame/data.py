"""Data of the tiny recipe: drawn scenes and scanned digits beside text embeddings that are computed once.

The language model runs when the data is set up and never again; a training step only gathers rows.
Dims: B pairs per batch and process, P positives, R rows per pair, D width, H = W picture side.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.base_module import TrackedData
from mm.data.loading import Stream, TrackedLoader, worker
from mm.data.scenes import SceneConfig
from mm.encoders.flame.pairs import SCENES, Pairs, digit_pairs, joined, scene_pairs
from mm.encoders.flame.positives import draw_positives, embed_captions, take_rows
from mm.encoders.flame.text import TextTower
from mm.encoders.flame.tower import TextTowerConfig, load_text_tower

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FlameDataConfig:
    """How many pictures of which kind, and who embeds their captions."""

    text: TextTowerConfig = field(
        default_factory=lambda: TextTowerConfig(language="tiny_lm", layer="-1", templates="world")
    )
    """The frozen text tower."""
    scenes: SceneConfig = field(default_factory=lambda: SCENES)
    """What scenes contain."""
    num_scenes: int = 4096
    """Drawn scenes."""
    digit_copies: int = 1
    """How often an epoch shows the training half of the scanned digits; 0 leaves them out."""
    size: int = 48
    """Side of the pictures, pixels (H)."""
    positives: int = 6
    """Texts per picture and step (P)."""
    rows: tuple[int, ...] = ()
    """Which rows of a pair may be drawn, by number; () = all. (4,) is the first facet of the long caption alone."""
    batch_size: int = 128
    """Pairs per batch and process (B)."""
    held_out: int = 512
    """Validation scenes."""
    workers: int = 0
    """Loading processes."""
    drawing: int = 0
    """Processes that draw the scenes at the start."""
    seed: int = 0
    """Of the order and of the draws."""

    def __post_init__(self) -> None:
        for name, least in (("num_scenes", 1), ("digit_copies", 0), ("positives", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class FlamePairs(TrackedData):
    """Batches of `pixel_values` (B, 3, H, W) float and `texts` (B, P, D) float32 of unit length.

    Args:
        config: What is shown.
        tower: Used instead of the configured text tower.
        processor: Picture preprocessing; default: that of the model under training.
    """

    def __init__(
        self, config: FlameDataConfig | None = None, *, tower: TextTower | None = None, processor: Any = None
    ) -> None:
        super().__init__(processor)
        self.config = config or FlameDataConfig()
        self.tower = tower
        self.position = 0
        self._sets: dict[str, EmbeddedPairs] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draw the pictures and embed their captions, once."""
        for split in ("train", "validation") if stage in (None, "fit") else ("validation",):
            if split not in self._sets:
                self._sets[split] = self._embedded(split)

    def _embedded(self, split: Any) -> EmbeddedPairs:
        config = self.config
        count = config.num_scenes if split == "train" else config.held_out
        parts = [scene_pairs(split, count, scenes=config.scenes, size=config.size, workers=config.drawing)]
        if split == "train":
            parts += [digit_pairs(held_out=False, size=config.size, seed=copy) for copy in range(config.digit_copies)]
        pairs = joined(parts)
        tower: Any = self.tower if self.tower is not None else load_text_tower(config.text)
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        logger.info("%s: embedding the captions of %d pictures", split, len(pairs))
        rows = embed_captions(tower.to(device), pairs.captions, batch_size=64 if device.type == "cpu" else 512)
        return EmbeddedPairs(pairs, rows[:, list(config.rows)] if config.rows else rows)

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, (3, 1, 1)."""
        processor = self.find_processor()
        if processor is None:
            raise ValueError("FlamePairs needs a picture processor: pass processor=..., or train a FlameModule")
        values = processor.preprocessing
        return torch.tensor(values.mean).view(3, 1, 1), torch.tensor(values.std).view(3, 1, 1)

    def train_dataloader(self) -> DataLoader:
        pairs = self._sets["train"]
        stream = PairStream(pairs, self.config, *self.normalisation, rank=self.rank, world=self.world)
        stream.position = self.position
        batches = len(pairs.pairs) // (self.config.batch_size * self.world)
        if not batches:
            raise ValueError(f"{len(pairs.pairs)} pairs fill no batch of {self.config.batch_size} x {self.world}")
        self._loader = TrackedLoader(stream, batches=batches, workers=self.config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader:
        """The fixed validation batches."""
        return self._fixed()

    def test_dataloader(self) -> DataLoader:
        """The same as for validation; scores on test pictures are `mm.encoders.flame.trial`."""
        return self._fixed()

    def _fixed(self) -> DataLoader:
        pairs, size = self._sets["validation"], self.config.batch_size
        generator = torch.Generator().manual_seed(self.config.seed)
        numbers = range(self.rank, len(pairs.pairs) // size, self.world)
        batches = [
            pairs.batch(np.arange(n * size, (n + 1) * size), self.config.positives, generator, *self.normalisation)
            for n in numbers
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position if self._loader is None else self._loader.stream.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = int(state_dict["position"])
        if self._loader is not None:
            self._loader.stream.position = self.position


class EmbeddedPairs:
    """Pictures with the rows of their captions.

    Args:
        pairs: Pictures and captions.
        rows: (N, R, D) float16 unit rows.
    """

    def __init__(self, pairs: Pairs, rows: Tensor) -> None:
        self.pairs, self.rows = pairs, rows

    def batch(
        self, chosen: np.ndarray, positives: int, generator: torch.Generator, mean: Tensor, std: Tensor
    ) -> dict[str, Tensor]:
        """The pairs with these numbers, with freshly drawn positives."""
        rows = self.rows[torch.from_numpy(chosen)].float()
        pictures = torch.from_numpy(self.pairs.images[chosen])
        pixels = rearrange(pictures, "b h w c -> b c h w").float() / 255
        texts = take_rows(rows, draw_positives(len(chosen), rows.shape[1], positives, generator))
        return {"pixel_values": (pixels - mean) / std, "texts": texts}


class PairStream(Stream):
    """Endless batches, every epoch in a new order; `position` counts the pairs that all processes have used."""

    def __init__(
        self, pairs: EmbeddedPairs, config: FlameDataConfig, mean: Tensor, std: Tensor, *, rank: int, world: int
    ) -> None:
        self.pairs, self.config, self.mean, self.std = pairs, config, mean, std
        self.rank, self.world, self.position = rank, world, 0

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        number, workers = worker()
        size, step = self.config.batch_size, self.config.batch_size * self.world
        per_epoch = len(self.pairs.pairs) // step
        turn = self.position // step + number
        while True:
            epoch, place = divmod(turn, per_epoch)
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.pairs.pairs))
            first = place * step + self.rank * size
            generator = torch.Generator().manual_seed(hash((self.config.seed, turn, self.rank)) % 2**63)
            chosen = order[first : first + size]
            yield self.pairs.batch(chosen, self.config.positives, generator, self.mean, self.std), step
            turn += workers

    def advance(self, mark: int) -> None:
        self.position += mark
