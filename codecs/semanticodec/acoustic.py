"""Acoustic encoder: what the semantic codebook lost, found by a bidirectional LSTM over features and their codewords.

Dims: B segments, N tokens, D token width.
Source: paper section III-B.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mm.codecs.semanticodec.config import EncoderConfig

PADDED = -1.0
"""Value of every channel at a padded position: the networks see padding, it is not masked out."""


class AcousticEncoder(nn.Module):
    """[feature ; semantic codeword] -> vectors for the acoustic codebook."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.token_width
        self.lstm = nn.LSTM(
            2 * width, config.hidden, num_layers=config.lstm_layers, bidirectional=True, batch_first=True
        )
        self.project = nn.Linear(2 * config.hidden, width, bias=False)

    def forward(self, features: Tensor, semantic: Tensor, keep: Tensor) -> Tensor:
        """Vectors to quantise.

        Args:
            features: Unquantised tokens, (B, N, D).
            semantic: Their codewords, (B, N, D).
            keep: True where there is sound, (B, N) bool.

        Returns:
            (B, N, D); also at padded positions, which carry numbers like any other.
        """
        return self.project(self.lstm(acoustic_input(features, semantic, keep))[0])


def acoustic_input(features: Tensor, semantic: Tensor, keep: Tensor) -> Tensor:
    """(B, N, 2D): both parts side by side, padded positions at -1."""
    joined = torch.cat([features, semantic.to(features.dtype)], dim=-1)
    return torch.where(keep[..., None], joined, PADDED)
