"""Options of FlowCut, with the published constants as defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mm.pruning.base import check_target
from mm.pruning.schedule import Schedule
from mm.pruning.scores import CRITERIA, Criterion


@dataclass(frozen=True, kw_only=True)
class FlowCutOptions:
    """What FlowCut can be told; the defaults are the published method, batch-invariant."""

    target_tokens: int = 128
    """Visual tokens per picture that reach the language model (T)."""
    batch_mode: Literal["per_sample", "max"] = "per_sample"
    """"per_sample": a picture's result does not depend on its neighbours; "max": the batch's largest drop for all, as
    in the published code."""
    schedule: Schedule = "adaptive"
    """"adaptive" by entropy; "fixed": the numbers in `counts`; "uniform": equal shares; "last": one cut at the end."""
    counts: tuple[int, ...] = ()
    """Tokens left after each cut of the fixed schedule; `calibrate` measures them."""
    interval: int = 2
    """Blocks from one cut to the next."""
    ema: float = 0.5
    """Weight of the past in the running score, 0..1."""
    guide: Literal["auto", "cls", "mean"] = "auto"
    """Token that rates the others; "auto" is the class token where there is one, else the mean of all tokens."""
    criteria: tuple[Criterion, ...] = CRITERIA
    """Parts of the score in use."""
    semantic_scale: Literal["none", "sqrt"] = "none"
    """"none": as the published code; "sqrt": scaled and without class token, as the paper's listing."""
    density: Literal["head_mean", "full"] = "head_mean"
    """L1 norm of the mean over heads, or of the whole value vector."""
    stop_layer: int | None = None
    """Block (from 0) after which exactly the target is left; None: one block before the features, or the last block
    when the features are those of the last one."""
    coverage: float | None = None
    """Budget per picture: at the last cut keep the fewest tokens that hold this share of the score (0..1), at most
    `target_tokens`. None keeps `target_tokens` everywhere."""
    merge_dropped: bool = False
    """Fold the tokens of the last cut into their nearest kept token instead of dropping them."""
    official_qwen: bool = False
    """Only towers without class token: leave the semantic part out and add 1e-7 inside the entropy's logarithm, as
    the published Qwen2-VL code does."""
    qwen_merge: Literal["group", "patch"] = "group"
    """Only Qwen towers: whole 2x2 squares go or stay, or single patches (published code)."""
    stage1: Literal["code", "paper"] = "code"
    """Only tiled pictures: every view keeps T / 2 (published code), or 2 T shared over the views (paper)."""
    second_stage: Literal["auto", "on", "off"] = "auto"
    """Cut once more inside the language model: "auto" for tiled pictures and native resolution only."""
    second_stage_layer: int = 1
    """Block of the language model (from 0) whose scores decide and behind which tokens leave."""
    text_share: float = 0.0
    """Share of the target (0..1) that goes to the candidates nearest to the prompt's words, for dense text and charts;
    0 ignores the prompt in the encoder stage."""

    def __post_init__(self) -> None:
        check_target(self.target_tokens)
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        for name in ("ema", "text_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise ValueError(f"coverage must lie in 0..1 (0 excluded), got {self.coverage}")
        if (self.schedule == "fixed") != bool(self.counts):
            raise ValueError("schedule='fixed' and counts belong together; FlowCut.calibrate(...) sets both")
        unknown = sorted(set(self.criteria) - set(CRITERIA))
        if unknown or not self.criteria:
            raise ValueError(f"criteria must be some of {', '.join(CRITERIA)}, got {self.criteria!r}")
