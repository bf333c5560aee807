"""How well a vision-language model still answers with fewer visual tokens: every method at every budget.

Knows nothing of how model and samples came about; a model is anything of `mm.vlm` with a processor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import torch

from mm.data.sample import VisualSample
from mm.pruning.base import Pruner
from mm.pruning.cost import Cost, call_cost, plain_cost
from mm.pruning.hosts import open_host
from mm.pruning.methods import METHODS, make_pruner, read_options
from mm.training.answers import accuracy

logger = logging.getLogger(__name__)
BUDGETS = (0.33, 0.22, 0.11)
"""Shares of the visual tokens that are kept."""


def evaluate_methods(
    model: Any,
    samples: Sequence[Sequence[VisualSample]],
    *,
    methods: Iterable[str] = tuple(METHODS),
    budgets: Sequence[float] = BUDGETS,
    batch_size: int = 64,
    max_new_tokens: int = 8,
) -> list[dict[str, Any]]:
    """Accuracy of every method at every budget, mean and spread over sets of samples.

    Args:
        model: An `mm.vlm.VisionLanguageModel` with a processor; the same weights everywhere.
        samples: One held-out set per seed. `RandomPrune` also draws by the number of the set.
        methods: Keys of `METHODS`, with options as in "flowcut:schedule=last,ema=0.9".
        budgets: Kept shares of a picture's tokens, each in 0..1.
        batch_size: Samples answered at once.
        max_new_tokens: Longest answer.

    Returns:
        Rows {method, share, tokens, per_block, gflop, stage, accuracy, spread, relative}; the first is the unpruned
        model. `stage` says where tokens leave: methods inside the language model have the full number in its first
        blocks, `per_block` is the mean over its blocks, and `gflop` what one picture with its question costs. `spread`
        is the standard deviation over the sets, `relative` the accuracy over the unpruned one.

    Raises:
        ValueError: no samples, an unknown method, or a budget outside 0..1.
    """
    if not samples or not all(samples):
        raise ValueError("evaluate_methods needs at least one sample in every set")
    for budget in budgets:
        if not 0 < budget <= 1:
            raise ValueError(f"budgets are shares in 0..1, got {budget}")
    size = int(model.tokens_per_picture)
    answering = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    base = [accuracy(model, group, **answering) for group in samples]
    rows = [_row("unpruned", 1.0, size, "-", cost_of(model, None, samples[0][0]), base, base)]
    for budget in budgets:
        target = max(1, round(budget * size))
        for name in methods:
            kind, _, words = name.partition(":")
            options = read_options(words.split(",")) if words else {}
            found = []
            for seed, group in enumerate(samples):
                pruner = make_pruner(kind, target, options | ({"seed": seed} if kind == "random" else {}))
                with pruner.attach(model):
                    found.append(accuracy(model, group, **answering))
            rows.append(_row(name, budget, target, pruner.stage, cost_of(model, pruner, samples[0][0]), found, base))
            logger.info("%s at %d of %d tokens: %.3f", name, target, size, rows[-1]["accuracy"])
    return rows


def cost_of(model: Any, pruner: Pruner | None, sample: VisualSample) -> Cost:
    """What one sample costs with a pruner, or without one."""
    inputs = model.prepare(sample.images, sample.question)
    if pruner is None:
        return plain_cost(open_host(model), inputs)
    with pruner.attach(model) as session:
        model.generate(**inputs, max_new_tokens=1)
        return call_cost(session, inputs)


def _row(
    name: str, share: float, tokens: int, stage: str, cost: Cost, found: Sequence[float], base: Sequence[float]
) -> dict[str, Any]:
    return {
        "method": name,
        "share": share,
        "tokens": tokens,
        "per_block": cost.average_visual_tokens,
        "gflop": cost.total_flops / 1e9,
        "stage": stage,
        "accuracy": mean(found),
        "spread": stdev(found) if len(found) > 1 else 0.0,
        "relative": mean(found) / mean(base) if mean(base) else float("nan"),
    }


def average_over_budgets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean relative accuracy of each method over all budgets, best first."""
    names = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "unpruned"]
    table = [
        {"method": name, "relative": mean(row["relative"] for row in rows if row["method"] == name)} for name in names
    ]
    return sorted(table, key=lambda row: -row["relative"])


@torch.no_grad()
def kept_share_of(mask: torch.Tensor, keep_indices: torch.Tensor) -> torch.Tensor:
    """Recall: how much of what matters was kept.

    Args:
        mask: True for the patches that matter (an object, a word), (B, N) bool.
        keep_indices: Kept patches, (B, T) int64; -1 where there is none.

    Returns:
        Share of the True patches that were kept, (B,) float32; 1 for a row without any.
    """
    kept = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.bool, device=mask.device)
    kept.scatter_(1, keep_indices.masked_fill(keep_indices < 0, mask.shape[1]), True)
    found = (kept[:, :-1] & mask).sum(dim=1).float()
    total = mask.sum(dim=1)
    return torch.where(total > 0, found / total.clamp(min=1), torch.ones_like(found))
