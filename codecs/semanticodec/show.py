"""Pictures of sound and of its tokens, for pages, notebooks and the app.

Dims: S samples, N token pairs, T columns of tokens along time, R tokens per column (frequency).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import HOP, SAMPLE_RATE
from mm.codecs.semanticodec.mel import LogMel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOLDEN = 0.618034
"""Neighbouring ids get hues this far apart on the circle of colours."""


def token_strip(codec: SemantiCodec, tokens: Tensor) -> NDArray[np.uint8]:
    """Token pairs (N, 2) as pixels (2 R + 1, T, 3): a colour per id, low frequencies at the bottom.

    Semantic tokens stand above the white line, acoustic ones below; an incomplete last column is left out.
    """
    from matplotlib.colors import hsv_to_rgb

    rows = codec.config.encoder.column_tokens
    whole = tokens[: len(tokens) // rows * rows].cpu().numpy()
    columns = rearrange(whole, "(t r) kind -> kind r t", r=rows)[:, ::-1]
    hue = columns * GOLDEN % 1
    colours = (255 * hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.55), np.full_like(hue, 0.9)], -1))).astype(np.uint8)
    line = np.full((1, colours.shape[2], 3), 255, dtype=np.uint8)
    return np.concatenate([colours[0], line, colours[1]])


def mel_figure(codec: SemantiCodec, waves: Mapping[str, Tensor], *, per_row: int = 2) -> Figure:
    """Log-mel spectrograms of waves (S,), each under its name, all on one scale."""
    from matplotlib.figure import Figure

    mel = LogMel(codec.config.decoder.vae.mel_bins)
    pictures = {name: mel(wave[None, : len(wave) // HOP * HOP].float().cpu())[0].T for name, wave in waves.items()}
    low, high = (float(edge) for edge in torch.cat([picture.flatten() for picture in pictures.values()]).aminmax())
    rows = -(-len(pictures) // per_row)
    figure = Figure(figsize=(4.4 * per_row, 2.0 * rows), layout="constrained")
    axes = figure.subplots(rows, per_row, squeeze=False)
    shown: Any = None
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        extent = (0, picture.shape[1] * HOP / SAMPLE_RATE, 0, len(picture))
        shown = axis.imshow(picture, origin="lower", aspect="auto", cmap="magma", extent=extent, vmin=low, vmax=high)
        axis.set_title(name, fontsize=9)
        axis.set_ylabel("mel bin")
        axis.set_xlabel("seconds")
    for axis in list(axes.flat)[len(pictures) :]:
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, label="log magnitude", shrink=0.8)
    return figure
