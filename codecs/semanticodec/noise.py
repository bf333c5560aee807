"""Noise of the sampler, tied to a seed and to the place in time, not to how windows are batched.

Every hop of the latent time axis owns a random stream. A window reads its own hop and the head of the next one, so that
two neighbours start from the same noise where they overlap, a window decoded alone equals the same window in a batch,
and every row of a batch equals that row decoded alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STREAM_STRIDE = 1_000_003  # a prime: streams of seeds 0, 1, 2 … share no generator for files below a million hops


class WindowNoise:
    """Draws standard normal noise for some windows of a file; every call gives the noise of the next use.

    Args:
        seed: Of the whole file.
        windows: Which windows of the file, in the order of the batch.
        shape: Latent of one window, (C, T, F).
        overlap: Latent frames shared with the next window.
        device: Where the noise is wanted; it is drawn on the CPU, so that all devices agree.
    """

    def __init__(
        self,
        seed: int,
        windows: Sequence[int],
        shape: tuple[int, int, int],
        overlap: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.channels, self.frames, self.bins = shape
        self.overlap = overlap
        self.device = device
        hops = sorted({hop for window in windows for hop in (window, window + 1)})
        self.windows = list(windows)
        self.streams = {hop: torch.Generator().manual_seed(seed * STREAM_STRIDE + hop) for hop in hops}

    def __call__(self) -> Tensor:
        """(W, C, T, F) float32."""
        shape = (self.channels, self.frames - self.overlap, self.bins)
        drawn = {hop: torch.randn(shape, generator=stream) for hop, stream in self.streams.items()}
        stacked = [torch.cat([drawn[w], self._head(drawn[w + 1])], dim=1) for w in self.windows]
        return torch.stack(stacked).to(self.device)

    def _head(self, hop: Tensor) -> Tensor:
        if self.overlap > hop.shape[1]:
            raise ValueError(f"windows may share at most half their length, got {self.overlap} of {self.frames} frames")
        return hop[:, : self.overlap]
