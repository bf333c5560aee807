"""FlowCut's page of the tour: what is kept block by block, accuracy of all methods over budgets, operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mm.checkpoint import load
from mm.data.sample import VisualSample
from mm.pruning.evaluate import BUDGETS, average_over_budgets, evaluate_methods
from mm.pruning.flops import rows as flops_rows
from mm.pruning.flowcut import FlowCut
from mm.pruning.methods import METHODS
from mm.pruning.trial import Trial
from mm.vlm import VisionLanguageModel
from mm.zoo.evaluate import held_out_wide_scenes

if TYPE_CHECKING:
    from mm.app.report import Page

MODEL = "llava_tiny_256"
SAMPLES = 48
"""Held-out samples per row of the tour; `mm prune evaluate` takes more."""
SHOWN = 3
"""Pictures with a keep map."""


def page(page: Page) -> None:
    """Fill the page."""
    model = load(MODEL)
    if not isinstance(model, VisionLanguageModel):
        raise TypeError(f"{MODEL} must be a concatenation host")
    size = model.tokens_per_picture
    page.text(
        "FlowCut drops visual tokens while the vision encoder runs, without any training: every block rates its "
        "patches by the attention of the class token, by how alike their values are to its own, and by how large they "
        f"are. A tiny model with {size} visual tokens answers about small things in large pictures; about one patch in "
        "twenty shows one. How many tokens can go before the answers do?"
    )
    scenes = held_out_wide_scenes(page.seed, SAMPLES)
    _maps(page, model, scenes[:SHOWN], round(BUDGETS[-1] * size))
    _accuracy(page, model, scenes)
    page.heading("At full size")
    page.text(
        "Operations of encoder and prefill from the shapes of public models; a multiply-add counts as two. The "
        "assumptions behind the published totals are in docs/flowcut.md."
    )
    page.table(flops_rows(), "With and without FlowCut, TFLOP", key="full_size")


def _maps(page: Page, model: VisionLanguageModel, samples: list[VisualSample], target: int) -> None:
    page.heading("What is kept, block by block")
    rows = []
    for sample in samples:
        trial = Trial(model, Image.fromarray(sample.images[0]), sample.question, max_new_tokens=8)
        plain = trial.unpruned()
        row, picture = trial.pruned(FlowCut(target_tokens=target))
        if picture is not None:
            page.picture(np.asarray(picture), f"“{sample.question}” Dropped patches are dark; the last panel goes on.")
        rows.append(
            {
                "question": sample.question,
                "right": sample.answer,
                f"all {plain['visual_tokens']} tokens": plain["answer"],
                f"{row['visual_tokens']} tokens": row["answer"],
                "GFLOP, all": 1e3 * plain["tflop"],
                "GFLOP, pruned": 1e3 * row["tflop"],
            }
        )
    page.table(rows, "The same questions with all tokens and with one in nine", key="answers")


def _accuracy(page: Page, model: VisionLanguageModel, samples: list[VisualSample]) -> None:
    page.heading("Accuracy over tokens")
    rows = evaluate_methods(model, [samples], methods=list(METHODS))
    page.table(rows, f"Share of exact answers on {len(samples)} held-out scenes", key="accuracy")
    page.table(average_over_budgets(rows), "Relative to all tokens, mean over the budgets", key="average")
    _curve(page, rows)
    page.text(
        "Methods of the stage “language” show all tokens to the first blocks of the language model: look at "
        "“per_block”, the mean over its blocks, before comparing accuracies."
    )


def _curve(page: Page, rows: list[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6))
    full, *rest = rows
    for name in METHODS:
        points = sorted((row["share"], row["accuracy"]) for row in rest if row["method"] == name)
        style = {"flowcut": "o-", "uniform": "x:", "random": "+:"}.get(name, ".--")
        axis.plot(*zip(*points, strict=True), style, label=name)
    axis.axhline(full["accuracy"], color="grey", linewidth=0.8, label="all tokens")
    axis.set(xlabel="share of the visual tokens", ylabel="exact answers", ylim=(0, 1))
    axis.legend(fontsize=8, ncols=2)
    page.figure(figure, "Each method at three budgets; the controls are dotted.")
