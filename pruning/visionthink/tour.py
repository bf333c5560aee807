"""VisionThink's page of the tour: what was seen and asked for, accuracy over cost, what a call does to the rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mm.checkpoint import load
from mm.pruning.visionthink.evaluate import answers, curve, evaluate, fixed, held_out
from mm.pruning.visionthink.model import VisionThinkModel
from mm.pruning.visionthink.resolution import ResolutionPolicy, token_grid

if TYPE_CHECKING:
    from mm.app.report import Page

MODEL = "visionthink_tiny"
SAMPLES = 128
SHOWN = 4
SIZES = ((2048, 1024), (1024, 768), (640, 480), (100, 60), (56, 56))
"""Sizes of pictures whose tokens the page lists."""


def page(page: Page) -> None:
    """Fill the page."""
    model = load(MODEL)
    if not isinstance(model, VisionThinkModel):
        raise TypeError(f"{MODEL} must be a VisionThinkModel")
    samples = held_out(SAMPLES, page.seed)
    page.text(
        "A model looks at a quarter of the pixels first. Every picture here comes with two questions: its colour "
        "survives half the resolution, its weave does not. A tiny model was taught by reinforcement learning, from "
        "rewards alone, when to ask for the full picture."
    )
    _conversations(page, model)
    page.heading("Does it ask when it must?")
    page.table(
        [{"score": name, "value": value} for name, value in evaluate(model, seed=page.seed, count=SAMPLES).items()],
        f"{SAMPLES} held-out questions, half of them hard; nine answers each",
        key="scores",
    )
    _curve(page, model, samples)
    page.heading("What a first look saves at full size")
    rows = []
    for width, height in SIZES:
        low, full = ResolutionPolicy.evaluation().sizes(width, height)
        few, many = token_grid(*low).tokens, token_grid(*full).tokens
        rows.append({"picture": f"{width} x {height}", "first look": few, "full": many, "share": few / many})
    page.table(rows, "Visual tokens of Qwen2.5-VL", key="sizes")


def _conversations(page: Page, model: VisionThinkModel) -> None:
    page.heading("Conversations")
    samples = held_out(SHOWN, page.seed + 1)
    rows = []
    for sample, found in zip(samples, answers(model, samples), strict=True):
        rows.append(
            {
                "question": sample.question,
                "right": sample.answer,
                "answer": found.answer,
                "asked": "yes" if found.called else "no",
                "visual tokens": found.tokens_low + found.tokens_full,
                "full picture": found.tokens_reference,
            }
        )
    pictures = [np.asarray(sample.image.resize((160, 160), 0)) for sample in samples[::2]]
    page.picture(np.concatenate(pictures, 1), "The pictures; each has an easy and a hard question.")
    page.table(rows, "Both questions about each", key="conversations")


def _curve(page: Page, model: VisionThinkModel, samples: list) -> None:  # type: ignore[type-arg]
    import matplotlib.pyplot as plt

    page.heading("Accuracy over cost")
    asked, alike = curve(model, samples), fixed(model, samples)
    page.table(asked, "Over call_bias: how readily it asks", key="curve")
    page.table(
        alike,
        "One resolution for all questions; this model was never trained to begin with a full picture",
        key="fixed",
    )
    figure, axis = plt.subplots(figsize=(6, 3.4))
    for rows, style, name in ((asked, "o-", "VisionThink over call_bias"), (alike, "x:", "one resolution for all")):
        points = sorted((row["retain_ratio"], row["accuracy"]) for row in rows)
        axis.plot(*zip(*points, strict=True), style, label=name)
    axis.set(xlabel="visual tokens, share of the full picture's", ylabel="exact answers", ylim=(0, 1.02))
    axis.legend()
    page.figure(figure, "A first look and a call together cost 1.25; the method pays where few questions need it.")
