"""FlowCut: drop visual tokens while the encoder runs, by the information that flows through them.

Tong et al. 2025, "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models"
(arXiv:2505.19536). No parameters, no training. Each block rates its patches (`mm.pruning.scores`), a moving average
remembers the earlier blocks, and every second block drops as many patches as the entropy of its attention allows
(`mm.pruning.schedule`). The class token always stays; kept patches keep their raster order.
Dims: B pictures, N tokens (units) of the full picture, n now, T target, P prefix tokens, L blocks, u patches per unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mm.pruning import schedule
from mm.pruning.base import Pruned, Pruner
from mm.pruning.config import FlowCutOptions
from mm.pruning.layout import Layout
from mm.pruning.merging import fold_into_kept
from mm.pruning.ragged import best_columns, spread
from mm.pruning.scores import Flow, Heads, ScoreConfig, entropy_ratio, information_flow
from mm.pruning.towers import PrunableTower, Stream, open_tower

if TYPE_CHECKING:
    from mm.pruning.llm_stage import LanguageStage


@dataclass(frozen=True, kw_only=True)
class FlowCut(FlowCutOptions, Pruner):
    """Progressive pruning inside the vision encoder; all options are those of `FlowCutOptions`.

    Example:
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        ...     num_attention_heads=4, image_size=32, patch_size=4)).eval()
        >>> out = FlowCut(target_tokens=16).encode(tower, torch.rand(2, 3, 32, 32))
        >>> out.tokens.shape, out.keep_indices.shape
        (torch.Size([2, 16, 32]), torch.Size([2, 16]))
    """

    stage = "encoder"

    def open(self, vision_model: nn.Module, layer: int | None) -> PrunableTower:
        return open_tower(vision_model, layer, merge=self.qwen_merge)

    def prune(self, tower: PrunableTower, stream: Stream, targets: Sequence[int]) -> Pruned:
        if self.qwen_merge == "patch" and hasattr(tower, "group"):
            targets = [target * tower.group for target in targets]
        return _Run(self, tower, stream, targets).finish()

    def calibrate(
        self, vision_model: nn.Module, batches: Iterable[Tensor], *, multiple: int = 8, layer: int | None = None
    ) -> FlowCut:
        """Measure the average adaptive schedule and fix it: no reading back from the device, one graph to compile.

        Args:
            vision_model: The encoder that will be used.
            batches: Typical pictures, each (B, 3, H, W).
            multiple: Counts are rounded up to multiples of this; the last one is always the target.
            layer: See `encode`.

        Returns:
            The same method with `schedule="fixed"` and `counts` set.

        Raises:
            ValueError: no pictures, or fewer patches than the target.
        """
        adaptive = replace(self, schedule="adaptive", counts=(), coverage=None)
        with torch.no_grad():
            runs = [adaptive.encode(vision_model, batch, layer=layer).tokens_per_layer for batch in batches]
        if not runs:
            raise ValueError("calibrate needs at least one batch of pictures")
        seen = torch.cat(runs).double()
        if seen[0, 0] <= self.target_tokens:
            raise ValueError(f"the encoder has {int(seen[0, 0])} tokens, target_tokens={self.target_tokens} drops none")
        cuts = schedule.cut_layers(_last_cut(self, seen.shape[1] - 1, open_tower(vision_model, layer)), self.interval)
        means = [float(seen[:, layer + 1].mean()) for layer in cuts]
        counts = schedule.rounded_counts(means, self.target_tokens, multiple)
        return replace(self, schedule="fixed", counts=counts)

    @property
    def adaptive(self) -> bool:
        return self.coverage is not None

    def view_targets(self, views: int, layout: Layout) -> list[int]:
        """Tokens per view; more than the target where the language model cuts once more."""
        if not self._cuts_twice(layout):
            return super().view_targets(views, layout)
        if layout == "tiled" and self.stage1 == "code":
            return [max(1, self.target_tokens // 2)] * views
        return spread(2 * self.target_tokens, views)

    def language_stage(self, layout: Layout) -> LanguageStage | None:
        if not self._cuts_twice(layout):
            return None
        from mm.pruning.second_stage import FlowCutSecondStage

        return FlowCutSecondStage(target_tokens=self.target_tokens, layer=self.second_stage_layer)

    def _cuts_twice(self, layout: Layout) -> bool:
        return self.second_stage == "on" or (self.second_stage == "auto" and layout != "plain")


def _last_cut(options: FlowCutOptions, num_blocks: int, tower: PrunableTower) -> int:
    """Block after which exactly the target is left."""
    if options.stop_layer is not None:
        last = options.stop_layer
    else:
        last = num_blocks - 1 if num_blocks == len(tower.blocks) else num_blocks - 2
    if not 0 <= last < num_blocks:
        raise ValueError(f"the last cut follows block {last}, but {num_blocks} blocks run (0..{num_blocks - 1})")
    return last


class _Run:
    """One pass through an encoder: the state between its blocks."""

    def __init__(self, options: FlowCut, tower: PrunableTower, stream: Stream, targets: Sequence[int]) -> None:
        self.options, self.tower, self.stream = options, tower, stream
        self.last_cut = _last_cut(options, tower.num_blocks, tower)
        self.cuts = schedule.cut_layers(self.last_cut, options.interval)
        self.rating = _rating(options, tower)
        batch, device = len(stream.hidden), stream.hidden.device
        full = torch.full((batch,), stream.total, device=device)
        self.counts = full if stream.keep is None else stream.keep.sum(dim=1)
        self.targets = torch.tensor(targets, device=device)
        self.tables = self._fixed_counts(targets)
        self.pending = stream.keep is not None or max(stream.total - target for target in targets) > 0
        self.running: Tensor | None = None
        # one column more than there are tokens: padding writes there
        self.scores = torch.zeros(batch, stream.total + 1, device=device)
        self.last_block = torch.full((batch, stream.total + 1), -1, device=device)

    def _fixed_counts(self, targets: Sequence[int]) -> list[int] | None:
        """Tokens after each cut where they are known beforehand, else None."""
        options, total = self.options, self.stream.total
        if options.schedule == "adaptive":
            return None
        if len(set(targets)) > 1 or self.stream.keep is not None:
            raise ValueError(
                f"schedule={options.schedule!r} needs pictures of one size and one target; use the adaptive one here"
            )
        target = min(targets[0], total)
        if options.schedule == "last":
            return [total] * (len(self.cuts) - 1) + [target]
        if options.schedule == "uniform":
            return schedule.uniform_counts(total, target, len(self.cuts))
        if target == total:
            return [total] * len(self.cuts)
        schedule.check_fixed_counts(options.counts, len(self.cuts), target)
        return [min(count, total) for count in options.counts]

    def finish(self) -> Pruned:
        """Run all blocks and collect."""
        entered = [self.counts]
        for layer in range(self.tower.num_blocks):
            self.stream, heads = self.tower.block(layer, self.stream)
            if self.pending and layer <= self.last_cut:
                with torch.no_grad():
                    ratio = self._rate(heads)
                if layer in self.cuts:
                    self._cut(layer, heads, ratio)
            entered.append(self.counts)
        tokens, cls = self.tower.finish(self.stream)
        self.last_block.scatter_(1, self.stream.index, self.tower.num_blocks)
        keep, index = self.stream.keep, self.stream.index
        return Pruned(
            tokens=tokens,
            keep_indices=index if keep is None else index.masked_fill(~keep, -1),
            tokens_per_layer=torch.stack(entered, dim=1),
            scores=self.scores[:, : self.stream.total],
            last_block=self.last_block[:, : self.stream.total],
            keep=keep,
            cls=cls,
        )

    def _rate(self, heads: Heads) -> Tensor:
        """Update the running score; entropy ratio of this block's attention, (B,)."""
        flow: Flow = information_flow(heads, self.stream.prefix, self.rating, self.stream.patch_keep)
        instant = flow.score.unflatten(1, (-1, self.stream.unit)).sum(dim=2)  # patches -> units
        weight = self.options.ema
        self.running = instant if self.running is None else weight * self.running + (1 - weight) * instant
        epsilon = 1e-7 if self.options.official_qwen and not self.tower.has_cls else 0.0
        return entropy_ratio(flow.attention, self.counts * self.stream.unit, epsilon)

    def _cut(self, layer: int, heads: Heads, ratio: Tensor) -> None:
        assert self.running is not None
        counts, width, even = self._decide(layer, ratio)
        self.scores.scatter_(1, self.stream.index, self.running)
        self.last_block.scatter_(1, self.stream.index, layer)
        columns, real = best_columns(self.running, counts, width, self.stream.keep)
        keep = None if even else real
        kept = self.stream.take(columns, keep)
        if self.options.merge_dropped and layer == self.last_cut:
            kept = fold_into_kept(self.stream, kept, columns, keep, heads.key, self.running)
        self.stream, self.running = kept, self.running.gather(1, columns)
        self.counts = counts

    def _decide(self, layer: int, ratio: Tensor) -> tuple[Tensor, int, bool]:
        """Tokens to keep per row, their maximum, and whether all rows keep equally many."""
        last = layer == self.last_cut
        if self.tables is not None and not (last and self.options.coverage):
            width = self.tables[self.cuts.index(layer)]
            return torch.full_like(self.counts, width), width, True
        if last and self.options.coverage:
            assert self.running is not None
            counts = coverage_counts(self.running, self.stream.keep, self.options.coverage)
            counts = torch.minimum(counts, torch.minimum(self.counts, self.targets))
        else:
            batch_max = self.options.batch_mode == "max"
            counts = schedule.adaptive_counts(
                self.counts, self.targets, self.last_cut - layer, ratio, batch_max=batch_max
            )
        return counts, *self._read_back(layer, counts)

    def _read_back(self, layer: int, counts: Tensor) -> tuple[int, bool]:
        """The one reading back from the device per cut: widths, whether work is left, whether scores are finite."""
        assert self.running is not None
        left = (counts - self.targets).amax()
        finite = self.running.isfinite().all().to(counts.dtype)
        most, least, open_, fine = torch.stack([counts.amax(), counts.amin(), left, finite]).tolist()
        if not fine:
            raise ValueError(
                f"the scores behind block {layer} are not finite: activations of the encoder overflow in "
                f"{self.stream.hidden.dtype}, or its input holds NaN; use bfloat16 or float32 and check the pictures"
            )
        self.pending = open_ > 0 or bool(self.options.coverage)
        return most, most == least


def _rating(options: FlowCut, tower: PrunableTower) -> ScoreConfig:
    guide = ("cls" if tower.has_cls else "mean") if options.guide == "auto" else options.guide
    if guide == "cls" and not tower.has_cls:
        raise ValueError("guide='cls': this encoder has no class token; use guide='mean' or 'auto'")
    criteria = options.criteria
    if options.official_qwen and not tower.has_cls:
        criteria = tuple(name for name in criteria if name != "semantic")
    return ScoreConfig(guide=guide, criteria=criteria, semantic_scale=options.semantic_scale, density=options.density)


def coverage_counts(scores: Tensor, keep: Tensor | None, coverage: float) -> Tensor:
    """Fewest tokens that hold a share of the score: (B, n) -> (B,) int64, at least 1."""
    scores = scores if keep is None else scores.masked_fill(~keep, 0.0)
    share = scores.sort(dim=1, descending=True).values.cumsum(dim=1) / scores.sum(dim=1, keepdim=True)
    return (share < coverage).sum(dim=1).clamp(max=scores.shape[1] - 1) + 1
