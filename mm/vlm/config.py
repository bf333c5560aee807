"""What a concatenation host is made of: tower, projector, language model, and how a question becomes a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mm.vision import TowerConfig

ProjectorKind = Literal["linear", "mlp2x_gelu"]
FeatureSelect = Literal["patches", "all", "drop_first"]


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """From a question to the text that the language model reads."""

    image_token: str = "<image>"
    """Placeholder of one picture in a prompt; added to the tokenizer if it is not there."""
    format: Literal["template", "chat"] = "template"
    """template: `system` once, then `template` per turn; chat: the tokenizer's own chat template."""
    template: str = "{prompt}"
    """One turn up to the answer; LLaVA-1.5: "USER: {prompt} ASSISTANT:". Not used with format="chat"."""
    system: str = ""
    """Text before the first turn. Not used with format="chat" (pass a system message instead)."""
    answer_prefix: str = ""
    """Put before a training answer (" " for tokenizers that write the blank into the word, as GPT-2 does)."""

    def __post_init__(self) -> None:
        if self.format not in ("template", "chat"):
            raise ValueError(f"format must be 'template' or 'chat', got {self.format!r}")
        if "{prompt}" not in self.template:
            raise ValueError(f"template must contain {{prompt}}, got {self.template!r}")
        if self.format == "chat" and (self.template != "{prompt}" or self.system):
            raise ValueError("template and system have no effect with format='chat'; leave them at their defaults")
        if not self.image_token.strip():
            raise ValueError("image_token must not be empty")


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """A vision-language model that puts projected picture tokens between the words (LLaVA)."""

    tower: TowerConfig
    """The vision tower and its preprocessing."""
    language: dict[str, Any]
    """Hugging Face config of the language model, `model_type` included."""
    projector: ProjectorKind = "mlp2x_gelu"
    """linear: one matrix; mlp2x_gelu: matrix, exact GELU, matrix (LLaVA-1.5)."""
    projector_bias: bool = True
    """Bias in the projector's matrices."""
    feature_select: FeatureSelect = "patches"
    """Which tower tokens are read: the patches; all (class token first); or drop_first, all but the first token, which
    for a tower without class token loses a patch (TinyLLaVA with SigLIP; kept for its weights)."""
    feature_scale: Literal["none", "sqrt_width"] = "none"
    """sqrt_width: multiply projected features by sqrt(width), as connectors trained on a Gemma that scaled all its
    inputs expect (TinyLLaVA-Gemma)."""
    grids: tuple[tuple[int, int], ...] = ()
    """Any-resolution input: allowed (rows, columns) of tiles beside the thumbnail; () = one picture each."""
    image_token_id: int
    """Id of the placeholder in `input_ids`; it need not exist in the language model's embedding."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Prompt format."""

    def __post_init__(self) -> None:
        if "model_type" not in self.language:
            raise ValueError("language must be a Hugging Face config with its model_type, e.g. {'model_type': 'llama'}")
        for name, value, known in (
            ("projector", self.projector, ("linear", "mlp2x_gelu")),
            ("feature_select", self.feature_select, ("patches", "all", "drop_first")),
            ("feature_scale", self.feature_scale, ("none", "sqrt_width")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
