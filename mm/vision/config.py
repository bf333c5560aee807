"""What has to be known to build a vision tower again: library, architecture, which layer is read, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mm.vision.preprocessing import ImagePreprocessing

Library = Literal["timm", "open_clip", "transformers"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """A vision tower; plain values only, so that it survives JSON and YAML."""

    library: Library = "timm"
    """Whose implementation: "timm", "open_clip" or "transformers"."""
    name: str = "vit_base_patch16_clip_quickgelu_224"
    """Architecture in that library: a timm model, an open_clip model, or a transformers model type
    ("clip_vision_model", "siglip_vision_model")."""
    options: dict[str, Any] = field(default_factory=dict)
    """Sizes that differ from the named architecture, in the library's own keywords (timm: embed_dim, depth,
    num_heads, patch_size; open_clip: width, layers, head_width, patch_size; transformers: hidden_size, ...)."""
    layer: int = -2
    """Which hidden state is read, counted as Hugging Face's `hidden_states`: 0 the embedding, k the output of block k,
    -1 the last block, -2 (LLaVA) the last but one. Later blocks are not computed."""
    final_norm: bool = False
    """Apply the tower's own final norm to what is read (a SigLIP or self-trained tower read at -1)."""
    activation: Activation | None = None
    """Activation of the MLPs; None: that of the named architecture. The config of a built tower always names it:
    OpenAI's CLIP weights give wrong features with plain GELU, without any error."""
    preprocessing: ImagePreprocessing = field(default_factory=ImagePreprocessing)
    """Input size, mean and standard deviation, resize rule."""

    def __post_init__(self) -> None:
        if self.library not in get_args(Library):
            raise ValueError(f"library must be one of {', '.join(get_args(Library))}, got {self.library!r}")
        if self.activation is not None and self.activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}")
