"""CLIP and SigLIP vision models of Hugging Face transformers, stopped at the layer that is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mm.vision.config import Activation, TowerConfig
from mm.vision.preprocessing import CLIP_MEAN, CLIP_STD, HALF, ImagePreprocessing
from mm.vision.tower import Blocks, VisionTower, as_pair

MODEL_TYPES = ("clip_vision_model", "siglip_vision_model")
_ACTIVATIONS: dict[Activation, str] = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_SET_ELSEWHERE = ("image_size", "hidden_act", "model_type")
_NOT_OPTIONS = (*_SET_ELSEWHERE, "architectures", "transformers_version", "dtype", "torch_dtype")


class TransformersTower(VisionTower):
    """A `CLIPVisionModel` or `SiglipVisionModel` behind the tower interface."""

    def __init__(self, module: Any, config: TowerConfig) -> None:
        kind = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        if kind not in MODEL_TYPES:
            raise ValueError(f"transformers tower {kind!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
        super().__init__(module, config, len(self.blocks_of(module)))
        self.width = int(module.config.hidden_size)
        self.patch_size = as_pair(module.config.patch_size)
        self.has_cls = kind == "clip_vision_model"
        self.num_prefix = int(self.has_cls)

    @staticmethod
    def blocks_of(module: Any) -> Blocks:
        return module.encoder.layers

    def run(self, pixel_values: Tensor) -> Tensor:
        hidden = self.module.embeddings(pixel_values)
        if self.has_cls:
            hidden = self.module.pre_layrnorm(hidden)
        for block in self.blocks:
            output = block(hidden, attention_mask=None)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.module.post_layernorm(hidden) if self.config.final_norm else hidden


def build(config: TowerConfig, weights: str | None) -> nn.Module:
    """transformers vision model; `weights`: None random, a local folder or a hub id."""
    from transformers import AutoConfig, AutoModel

    if config.name not in MODEL_TYPES:
        raise ValueError(f"transformers tower {config.name!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
    if set(_SET_ELSEWHERE) & config.options.keys():
        raise ValueError(
            "transformers options image_size, hidden_act, model_type: set preprocessing.size, activation, name instead"
        )
    if weights is not None:
        if config.options:
            raise ValueError(f"weights {weights!r} bring their own sizes; leave options empty, got {config.options}")
        from transformers import CLIPVisionModel, SiglipVisionModel

        cls = CLIPVisionModel if config.name == "clip_vision_model" else SiglipVisionModel
        return cls.from_pretrained(weights)
    options: dict[str, Any] = {**config.options, "image_size": config.preprocessing.size}
    if config.activation is not None:
        options["hidden_act"] = _ACTIVATIONS[config.activation]
    return AutoModel.from_config(AutoConfig.for_model(config.name, **options))


def guess_config(module: Any, layer: int) -> TowerConfig:
    """Config of an existing module; complete, except that mean and std are its family's."""
    return config_of(module.config, layer)


def config_of(hf: Any, layer: int, preprocessing: ImagePreprocessing | None = None) -> TowerConfig:
    """Tower config for a Hugging Face CLIP or SigLIP vision config.

    Args:
        hf: `CLIPVisionConfig` or `SiglipVisionConfig`.
        layer: Which hidden state is read.
        preprocessing: Default: that of the family.
    """
    clip = hf.model_type == "clip_vision_model"
    changed = hf.to_diff_dict()
    options = {key: value for key, value in changed.items() if key not in _NOT_OPTIONS and not key.startswith("_")}
    if preprocessing is None:
        preprocessing = ImagePreprocessing(
            size=int(hf.image_size),
            mean=CLIP_MEAN if clip else HALF,
            std=CLIP_STD if clip else HALF,
            resize="crop" if clip else "squash",
        )
    return TowerConfig(
        library="transformers",
        name=str(hf.model_type),
        options=options,
        layer=layer,
        activation=_activation(hf.hidden_act),
        preprocessing=preprocessing,
    )


def _activation(hidden_act: str) -> Activation:
    for name, hugging_face in _ACTIVATIONS.items():
        if hidden_act == hugging_face:
            return name
    raise ValueError(f"hidden_act {hidden_act!r} is not supported; supported: {', '.join(_ACTIVATIONS.values())}")
