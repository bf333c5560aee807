"""What the shipped LaVi demonstration scores on held-out data, with the controls that a fake would not pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mm.data.frames import ClipConfig, clip_sample
from mm.data.sample import VisualSample
from mm.data.split import Split
from mm.encoders.lavi.model import LaviModel
from mm.training.answers import accuracy
from mm.zoo.evaluate import answering


def held_out_clips(seed: int, count: int) -> list[VisualSample]:
    """Clips of four frames of 64 pixels: does the square move left or right?"""
    return [clip_sample(Split("test").seed(seed * count + index), ClipConfig(size=64)) for index in range(count)]


def reordered(samples: list[VisualSample], seed: int) -> list[VisualSample]:
    """The same clips with their frames in random order."""
    rng = np.random.default_rng(seed)
    return [
        replace(sample, images=[sample.images[i] for i in rng.permutation(len(sample.images))]) for sample in samples
    ]


def evaluate(model: LaviModel, *, seed: int, count: int = 512) -> dict[str, float]:
    """Boards, scenes and clips.

    Args:
        model: With weights.
        seed: Which held-out samples.
        count: Samples per score.
    """
    clips = held_out_clips(seed, count)
    return {
        **answering(model, seed=seed, count=count),
        "frame_order_accuracy": accuracy(model, clips),
        "frame_order_shuffled_frames": accuracy(model, reordered(clips, seed)),
    }
