"""Data of both stages: written conversations for the warm start, prompts for reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm.data.seeded_module import SeededBatches
from mm.pruning.visionthink.model import VisionThinkModel, visionthink_tiny
from mm.pruning.visionthink.tiny import TINY_POLICY, TINY_PROTOCOL
from mm.pruning.visionthink.traces import trace_batch
from mm.pruning.visionthink.weaves import weave_sample


class TraceData(SeededBatches):
    """Conversations about weaves with the right answer, half of them with a call.

    Args:
        batch_size: Conversations per batch and process.
        held_out_batches: Batches of the fixed validation and test sets.
        workers: Loading processes.
    """

    def __init__(self, batch_size: int = 32, held_out_batches: int = 4, workers: int = 0) -> None:
        self._parts: VisionThinkModel | None = None
        super().__init__(self._traces, batch_size=batch_size, held_out_batches=held_out_batches, workers=workers)

    def _traces(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        parts = self._parts = self._parts or visionthink_tiny()  # for its words and sizes only
        asks = [bool(np.random.default_rng([seed, 7]).integers(2)) for seed in seeds]
        samples = [weave_sample(seed) for seed in seeds]
        return trace_batch(samples, asks, parts.processor, parts.generator().tokens, TINY_PROTOCOL, TINY_POLICY)


class PromptData(SeededBatches):
    """Seeds of samples; the rollouts are made while training.

    Args:
        batch_size: Prompts per step and process.
        held_out_batches: Batches of the fixed validation and test sets.
        workers: Loading processes.
    """

    def __init__(self, batch_size: int = 8, held_out_batches: int = 8, workers: int = 0) -> None:
        super().__init__(_seeds, batch_size=batch_size, held_out_batches=held_out_batches, workers=workers)


def _seeds(seeds: Sequence[int]) -> dict[str, Tensor]:
    return {"seeds": torch.tensor(list(seeds))}
