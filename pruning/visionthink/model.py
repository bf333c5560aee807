"""The demonstration model as one object: weights, words, pictures, protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from mm.checkpoint import Pretrained
from mm.pruning.visionthink.generator import AdaptiveGenerator
from mm.pruning.visionthink.tiny import TINY_POLICY, TINY_PROTOCOL, TinySizes, tiny_processor, tiny_vlm
from mm.pruning.visionthink.weaves import words


@dataclass(frozen=True, kw_only=True)
class VisionThinkConfig:
    """What a demonstration model is made of."""

    sizes: TinySizes = field(default_factory=TinySizes)
    """Sizes of the language model and the vision encoder."""
    words: tuple[str, ...] = field(default_factory=lambda: tuple(words()))
    """Texts whose pieces make up the vocabulary."""


class VisionThinkModel(Pretrained, nn.Module):
    """A small Qwen2.5-VL that asks for the full picture when it needs it.

    Args:
        config: See `VisionThinkConfig`.
        seed: Of the random weights.

    Example:
        >>> model = VisionThinkModel(VisionThinkConfig())
        >>> model.generator(max_new_tokens=4).mode
        'auto'
    """

    config_class = VisionThinkConfig

    def __init__(self, config: VisionThinkConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.processor: SimpleNamespace = tiny_processor(config.words)
        self.vlm: Any = tiny_vlm(self.processor.tokenizer, config.sizes, seed)

    def generator(self, **options: Any) -> AdaptiveGenerator:
        """An `AdaptiveGenerator` on this model, with its own protocol and sizes; options as there."""
        options = {"max_new_tokens": 48, "protocol": TINY_PROTOCOL, "policy": TINY_POLICY, **options}
        return AdaptiveGenerator(self.vlm, self.processor, **options)

    def ask(self, images: Any, prompt: str, *, max_new_tokens: int = 48) -> str:
        """Answer a question about one or more pictures, from the first look or after asking for more.

        Args:
            images: A picture or a list of pictures.
            prompt: The question.
            max_new_tokens: Tokens per turn at most.
        """
        return str(self.generator(max_new_tokens=max_new_tokens)(images, prompt).answer)

    def forward(self, **inputs: Tensor) -> Any:
        """As the language model's `forward`."""
        return self.vlm(**inputs)


def visionthink_tiny(seed: int = 0, **sizes: Any) -> VisionThinkModel:
    """The demonstration with random weights; `sizes` are fields of `TinySizes`."""
    return VisionThinkModel(VisionThinkConfig(sizes=TinySizes(**sizes)), seed).eval()
