"""What every pruning method looks like from outside.

A method is a frozen dataclass of its options. `encode` runs it inside (or behind) a vision encoder alone; `attach` puts
it around a whole vision-language model for the length of a `with` block and leaves the model exactly as it was.
Dims: B pictures, T tokens kept, N tokens in the full picture, D width, L blocks that run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mm.pruning.layout import Layout
from mm.pruning.ragged import spread
from mm.pruning.towers import PrunableTower, Stream, open_tower

if TYPE_CHECKING:
    from mm.pruning.attach import Attached
    from mm.pruning.llm_stage import LanguageStage


@dataclass(frozen=True)
class Pruned:
    """Visual tokens that were kept, and where they came from."""

    tokens: Tensor
    """Features of the kept tokens, (B, T, D), dtype of the encoder; padding rows follow the real ones."""
    keep_indices: Tensor
    """Raster number of each kept token in the full picture, (B, T) int64. Ascending, except for methods that append
    merged tokens; -1 for a token without a place (a class token, a sum of leftovers, padding)."""
    tokens_per_layer: Tensor
    """Patch tokens that enter block 0, 1, ..., L-1 and leave block L-1, (B, L + 1) int64."""
    scores: Tensor
    """Score of every token when it was last rated, (B, N) float32; higher is kept. 0 where nothing was rated."""
    last_block: Tensor
    """Last block whose output still held the token, (B, N) int64; L for tokens that were kept, -1 for padding."""
    keep: Tensor | None = None
    """True where a kept token is real, (B, T) bool; None when all pictures kept equally many."""
    cls: Tensor | None = None
    """Class token of the same layer, (B, D); None for encoders without one."""


class Pruner(ABC):
    """Base of all methods."""

    target_tokens: int
    """Visual tokens to keep per picture (T)."""
    text_share: float = 0.0
    """Share of the target that the prompt's words choose; only FlowCut offers it."""
    stage: str
    """"encoder": tokens leave before the language model; "language": inside it."""

    def encode(
        self,
        vision_model: nn.Module,
        pixel_values: Tensor,
        *,
        image_grid_thw: Tensor | None = None,
        layer: int | None = None,
        targets: Sequence[int] | None = None,
    ) -> Pruned:
        """Run a vision encoder and keep some of its tokens; the encoder is not changed.

        Args:
            vision_model: CLIP or SigLIP of transformers, a ViT of timm or open_clip, a tower of Qwen2(.5)-VL, or an
                `mm.vision.VisionTower`.
            pixel_values: Preprocessed pictures, (B, 3, H, W); for Qwen the packed patches (all patches, C).
            image_grid_thw: Only for Qwen, (pictures, 3). Every time step is a row of the result.
            layer: Hidden state to read, counted as in Hugging Face's `hidden_states`. None takes what the tower says,
                else -2 with a class token and -1 without.
            targets: Tokens to keep for each row instead of `target_tokens`.

        Raises:
            ValueError: no vision encoder, no pictures, a target below 1, or scores that are not finite.
        """
        tower = self.open(vision_model, layer)
        if not len(pixel_values):
            raise ValueError("pixel_values holds no pictures; leave the call out when a prompt has none")
        stream = tower.start(pixel_values, **({} if image_grid_thw is None else {"image_grid_thw": image_grid_thw}))
        wanted = self.view_targets(1, "plain") * len(stream.hidden) if targets is None else list(targets)
        if len(wanted) != len(stream.hidden):
            raise ValueError(f"targets lists {len(wanted)} numbers for {len(stream.hidden)} pictures")
        for target in wanted:
            check_target(target)
        return self.prune(tower, stream, wanted)

    def open(self, vision_model: nn.Module, layer: int | None) -> PrunableTower:
        """Open the encoder block by block."""
        return open_tower(vision_model, layer)

    @abstractmethod
    def prune(self, tower: PrunableTower, stream: Stream, targets: Sequence[int]) -> Pruned:
        """Run the encoder from its input on, with one target per row."""

    @property
    def adaptive(self) -> bool:
        """Whether a picture may keep fewer tokens than its target."""
        return False

    def view_targets(self, views: int, layout: Layout) -> list[int]:
        """Tokens that each view of a picture hands to the language model; by default `target_tokens` together.

        Args:
            views: Views that the picture is cut into.
            layout: How the model takes pictures.
        """
        return [max(1, share) for share in spread(self.target_tokens, views)]

    def language_stage(self, layout: Layout) -> LanguageStage | None:
        """The part that works inside the language model, if there is one for this layout."""
        return None

    def attach(self, vlm: nn.Module) -> AbstractContextManager[Attached]:
        """Prune every `forward` and `generate` of a vision-language model inside a `with` block.

        Args:
            vlm: LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL or Qwen2.5-VL of transformers, or our
                `VisionLanguageModel`.

        Raises:
            ValueError: another kind of model, or one that is pruned already.
        """
        from mm.pruning.attach import attached

        return attached(self, vlm)


def check_target(target: Any, name: str = "target_tokens") -> None:
    """A target must be a whole number of at least 1.

    Raises:
        ValueError: it is not.
    """
    if isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {target!r}")
