"""What a pruner needs to know about a vision-language model around an encoder.

Dims: B prompts, L tokens, n_i visual tokens of picture i, D width of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mm.pruning.layout import Layout
from mm.pruning.prompt import keep_placeholders, shorten

if TYPE_CHECKING:
    from mm.pruning.base import Pruned, Pruner


@dataclass(frozen=True)
class Picture:
    """One pruned picture, ready for the language model."""

    features: Tensor
    """Projected visual tokens, (n, D)."""
    places: Tensor
    """Which of the unpruned picture's placeholders they take, (n,) int64, ascending."""
    stock_count: int
    """Placeholders of the unpruned picture."""


class Host(ABC):
    """A vision-language model of transformers."""

    layout: Layout
    """How pictures reach the language model."""
    multimodal_positions: bool = False
    """Whether visual tokens carry their own position ids (M-RoPE)."""

    def __init__(self, vlm: Any) -> None:
        self.vlm = vlm

    @property
    def core(self) -> Any:
        """The model without its head."""
        return self.vlm.model

    @property
    def language_model(self) -> nn.Module:
        """The decoder: has `layers`, `rotary_emb` and `config`."""
        return self.core.language_model

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the language model."""
        return self.language_model.layers  # type: ignore[return-value]

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision encoder."""

    @property
    def image_token(self) -> int:
        """Id of the placeholder."""
        return int(self.vlm.config.image_token_id)

    @abstractmethod
    def pictures(self, pruner: Pruner, inputs: dict[str, Any]) -> tuple[list[Picture], list[Pruned]] | None:
        """Encode and prune the pictures of a call; None when every target covers all tokens."""

    def features(self, inputs: dict[str, Any]) -> Any:
        """Unpruned features of the pictures, as the model itself computes them."""
        names = [name for name in self.feature_inputs if inputs.get(name) is not None]
        return self.core.get_image_features(**{name: inputs[name] for name in names}, return_dict=True)

    feature_inputs: tuple[str, ...] = ("pixel_values",)
    """Keyword arguments that describe pictures and leave the call when features are handed in."""

    def text_positions(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Fill in positions that the shortened prompt could no longer derive."""
        return inputs

    def pruned_inputs(
        self, pruner: Pruner, inputs: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Picture], list[Pruned]] | None:
        """Arguments of the same call with pruned pictures; None when nothing is dropped.

        Raises:
            ValueError: the prompt is given as embeddings, or placeholders and pictures do not match.
        """
        if inputs.get("input_ids") is None:
            raise ValueError("pruning needs input_ids beside pixel_values, to find the image placeholders")
        found = self.pictures(pruner, inputs)
        if found is None:
            return None
        pictures, pruned = found
        inputs = self.text_positions(inputs)
        keep = keep_placeholders(
            inputs["input_ids"],
            self.image_token,
            [picture.stock_count for picture in pictures],
            [picture.places for picture in pictures],
        )
        short = shorten(inputs, keep, self.pad_token)
        for name in (*self.feature_inputs, *self.unpruned_only):
            short.pop(name, None)
        features = BaseModelOutputWithPooling(
            pooler_output=[picture.features for picture in pictures]  # type: ignore[arg-type]
        )
        short["mm_encoder_outputs"] = {"image": features}
        return short, pictures, pruned

    unpruned_only: tuple[str, ...] = ()
    """Further arguments that describe the unpruned prompt and must not reach the pruned call."""

    @property
    def pad_token(self) -> int:
        """Any id but the placeholder's; masked wherever it stands."""
        pad = getattr(self.vlm.config.get_text_config(), "pad_token_id", None)
        pad = 0 if pad is None or pad < 0 else int(pad)
        return pad if pad != self.image_token else (0 if self.image_token else 1)


def no_text_guide(pruner: Pruner) -> None:
    """Refuse an option that only models with one view per picture honour.

    Raises:
        ValueError: `text_share` is set.
    """
    if pruner.text_share:
        raise ValueError(
            f"text_share={pruner.text_share} works with one view per picture (LLaVA-1.5, our VisionLanguageModel); "
            "here the second stage inside the language model reads the question instead"
        )
