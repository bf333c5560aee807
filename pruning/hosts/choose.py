"""Which host fits a model that somebody hands in."""

from __future__ import annotations

from torch import nn

from mm.pruning.hosts.base import Host
from mm.pruning.hosts.llava import LlavaHost
from mm.pruning.hosts.llava_tiled import TiledHost
from mm.pruning.hosts.own import OwnHost
from mm.pruning.hosts.qwen import QwenHost
from mm.vlm import VisionLanguageModel
from mm.vlm.hf_native import NativeVisionLanguageModel

HOSTS: dict[str, type[Host]] = {
    "llava": LlavaHost,
    "llava_next": TiledHost,
    "llava_onevision": TiledHost,
    "qwen2_vl": QwenHost,
    "qwen2_5_vl": QwenHost,
}
"""`model_type` of the Hugging Face config -> host."""


def open_host(vlm: nn.Module) -> Host:
    """Open a vision-language model for pruning; nothing about it changes.

    Raises:
        ValueError: not a supported vision-language model.
    """
    if isinstance(vlm, VisionLanguageModel):
        return OwnHost(vlm)
    if isinstance(vlm, NativeVisionLanguageModel):
        vlm = vlm.model
    kind = getattr(getattr(vlm, "config", None), "model_type", None)
    if kind in HOSTS and hasattr(vlm, "generate") and hasattr(vlm, "lm_head"):
        return HOSTS[kind](vlm)
    found = f"{type(vlm).__name__} (model type {kind!r})" if kind else type(vlm).__name__
    raise ValueError(
        f"{found} is no vision-language model that can be pruned; supported are our VisionLanguageModel and the "
        f"...ForConditionalGeneration classes of {', '.join(HOSTS)}. For a vision encoder alone use "
        "encode(encoder, pixel_values)"
    )
