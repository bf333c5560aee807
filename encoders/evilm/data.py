"""Batches of moving things for training: clips, captions, and one question with its answer per clip.

Clips are drawn once and kept; a batch only gathers. Which question a clip gets changes from epoch to epoch.
Dims: B clips, F frames, S side in pixels, X text tokens, p patches of a code along a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader

from mm.data.base_module import TrackedData
from mm.data.loading import Stream, TrackedLoader, worker
from mm.data.split import Split, SplitName
from mm.encoders.evilm.scenes import MovingClip, MovingConfig, combinations, moving_clip
from mm.encoders.evilm.tokenizer import tiny_text_tokenizer

KINDS = ("shape", "colour", "size", "direction", "choice")
"""Kinds of questions, see `MovingClip.ask`."""


@dataclass(frozen=True, kw_only=True)
class MovingDataConfig:
    """Clips of the procedural world with captions and questions."""

    clips: MovingConfig = field(default_factory=MovingConfig)
    """What clips show."""
    num_clips: int = 6144
    """Clips that are drawn for training."""
    kinds: tuple[str, ...] = ("shape", "colour", "direction", "choice", "choice", "size")
    """Kinds of questions, drawn evenly; a kind may stand here more than once."""
    patch: int = 8
    """Side in pixels of a patch that has one code."""
    batch_size: int = 64
    """Clips per batch and process (B)."""
    held_out: int = 256
    """Validation clips, of the combinations that training leaves out."""
    drawing: int = 0
    """Processes that draw the clips at the start; 0 draws here."""
    workers: int = 0
    """Loading processes."""
    seed: int = 0
    """Of the order and of the questions."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_clips < self.batch_size or self.held_out < 1:
            raise ValueError(
                "batch_size and held_out must be at least 1 and num_clips at least batch_size, "
                f"got {self.batch_size}, {self.held_out} and {self.num_clips}"
            )
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be of {', '.join(KINDS)}; got {', '.join(unknown) or 'nothing'}")


class ClipSet:
    """Clips with their words, ready to be gathered.

    Args:
        clips: What was drawn.
        kinds: Kinds of questions.
        patch: Side of a patch in pixels.
    """

    def __init__(self, clips: list[MovingClip], kinds: tuple[str, ...], patch: int) -> None:
        tokenizer = tiny_text_tokenizer()
        self.frames = np.stack([clip.frames for clip in clips])
        self.covered = torch.from_numpy(np.stack([clip.covered(patch) for clip in clips]))
        self.captions = _padded(tokenizer, [clip.caption for clip in clips])
        asked = [clip.ask(kind) for clip in clips for kind in kinds]
        questions = _padded(tokenizer, [f"{question} answer: {tokenizer.mask_token}" for question, _ in asked])
        self.questions = rearrange(questions, "(b k) x -> b k x", k=len(kinds))
        answers = torch.tensor(tokenizer.convert_tokens_to_ids([answer for _, answer in asked]))
        self.answers = rearrange(answers, "(b k) -> b k", k=len(kinds))

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, chosen: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
        """The clips with these numbers, each with one of its questions."""
        index = torch.from_numpy(chosen)
        kind = torch.from_numpy(rng.integers(self.answers.shape[1], size=len(chosen)))
        return {
            "frames": rearrange(torch.from_numpy(self.frames[chosen]), "b f h w c -> b f c h w"),
            "covered": self.covered[index],
            "input_ids": self.captions[index],
            "question_ids": self.questions[index, kind],
            "answer_ids": self.answers[index, kind],
        }


class MovingClips(TrackedData):
    """`frames` (B, F, 3, S, S) uint8, `covered` (B, F, p, p) bool (patches that the thing touches), `input_ids` (B, X)
    of captions, `question_ids` (B, X) that end in `answer: [MASK]`, and `answer_ids` (B); texts are padded with 0."""

    def __init__(self, config: MovingDataConfig | None = None) -> None:
        super().__init__()
        self.config = config or MovingDataConfig()
        self.position = 0
        self._sets: dict[str, ClipSet] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draw the clips, once."""
        for split in ("train", "validation") if stage in (None, "fit") else ("validation",):
            if split not in self._sets:
                self._sets[split] = self._drawn(split)

    def _drawn(self, split: SplitName) -> ClipSet:
        config, training = self.config, split == "train"
        clips = config.clips if training else replace(config.clips, pairs="held_out")
        seeds = Split(split).seeds[: config.num_clips if training else config.held_out]
        drawn = draw_clips(seeds, clips, processes=config.drawing)
        return ClipSet(drawn, config.kinds, config.patch)

    def train_dataloader(self) -> DataLoader:
        stream = ClipStream(self._sets["train"], self.config, rank=self.rank, world=self.world)
        stream.position = self.position
        self._loader = TrackedLoader(stream, batches=1000, workers=self.config.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader:
        """The fixed validation batches."""
        clips, size = self._sets["validation"], self.config.batch_size
        rng = np.random.default_rng(self.config.seed)
        starts = range(self.rank * size, len(clips), self.world * size)
        batches = [clips.batch(np.arange(first, min(first + size, len(clips))), rng) for first in starts]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader:
        """The same as for validation; scores are `mm.encoders.evilm.evaluate`."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position if self._loader is None else self._loader.stream.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = int(state_dict["position"])
        if self._loader is not None:
            self._loader.stream.position = self.position


class ClipStream(Stream):
    """Endless batches, every epoch in a new order; `position` counts the clips that all processes have used."""

    def __init__(self, clips: ClipSet, config: MovingDataConfig, *, rank: int, world: int) -> None:
        self.clips, self.config, self.rank, self.world, self.position = clips, config, rank, world, 0

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        number, workers = worker()
        size, step = self.config.batch_size, self.config.batch_size * self.world
        per_epoch = len(self.clips) // step
        if not per_epoch:
            raise ValueError(f"{len(self.clips)} clips fill no batch of {size} x {self.world}; draw more (num_clips)")
        turn = self.position // step + number
        while True:
            epoch, place = divmod(turn, per_epoch)
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.clips))
            first = place * step + self.rank * size
            rng = np.random.default_rng([self.config.seed, turn, self.rank])
            yield self.clips.batch(order[first : first + size], rng), step
            turn += workers

    def advance(self, mark: int) -> None:
        self.position += mark


def draw_clips(seeds: range, config: MovingConfig, *, processes: int = 0) -> list[MovingClip]:
    """One clip per seed, drawn here or by other processes."""
    make = partial(moving_clip, config=config)
    if not processes:
        return [make(seed) for seed in seeds]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(make, seeds, chunksize=64))


def held_out_clips(seed: int, config: MovingConfig | None = None) -> list[MovingClip]:
    """One test clip for each of the 64 combinations that training leaves out."""
    every = combinations("held_out")
    seeds = Split("test").seeds[seed * len(every) : (seed + 1) * len(every)]
    clips = config or MovingConfig()
    return [moving_clip(one, clips, combination) for one, combination in zip(seeds, every, strict=True)]


def _padded(tokenizer: Any, texts: list[str]) -> Tensor:
    """(N, X) int64."""
    return tokenizer(texts, padding=True, return_tensors="pt").input_ids
