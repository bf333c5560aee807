"""Parameters and multiply-adds of the presets, counted on the meta device, against VIOLETv2 on the same clips.

Backbone, text and fusion as they run at inference; heads are left out. One multiply-add is two operations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from mm.encoders.evilm.config import evilm_config
from mm.encoders.evilm.model import EViLM
from mm.metrics.flops import count_flops

SETTINGS = ((4, 32), (5, 25))
"""(frames, words) of pre-training and of fine-tuning, at 224 x 224 pixels."""
OURS = ("evilm_30m", "evilm_35m_dual", "evilm_swin_t", "evilm_slim")
BASELINE = "violetv2"
BODY = ("video.", "text.", "text_layers.", "fusion.")
"""Prefixes of what the counts hold."""


def _meta(name: str) -> EViLM:
    with torch.device("meta"):
        return EViLM(evilm_config(name)).eval()


@cache
def body_parameters(name: str) -> int:
    """Parameters of trunk, text and fusion of a preset, heads left out."""
    return sum(value.numel() for key, value in _meta(name).named_parameters() if key.startswith(BODY))


@cache
def body_flops(name: str, frames: int, words: int) -> int:
    """Operations of one clip of 224 x 224 pixels and one text, from pixels to fused tokens."""
    model = _meta(name)
    with torch.device("meta"):
        clip, ids = torch.empty(1, frames, 3, 224, 224), torch.zeros(1, words, dtype=torch.long)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model.fuse(model.encode_video(clip), model.encode_text(ids)).text

    return count_flops(run)


def rows() -> list[dict[str, Any]]:
    """Per preset and setting: setting, ours_tflop, baseline_tflop, saving, giga_macs, million_parameters, and the
    parameters' share of the baseline's."""
    return [_row(name, frames, words) for frames, words in SETTINGS for name in OURS]


def _row(name: str, frames: int, words: int) -> dict[str, Any]:
    ours, baseline = body_flops(name, frames, words), body_flops(BASELINE, frames, words)
    parameters = body_parameters(name)
    return {
        "setting": f"{name}, {frames} frames, {words} words, against VIOLETv2",
        "ours_tflop": ours / 1e12,
        "baseline_tflop": baseline / 1e12,
        "saving": 1.0 - ours / baseline,
        "giga_macs": ours / 2e9,
        "million_parameters": parameters / 1e6,
        "parameter_share": parameters / body_parameters(BASELINE),
    }
