"""What adaptive answering gets right and what it spends, against never and always asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from mm.data.split import Split
from mm.pruning.visionthink.generator import AdaptiveAnswer
from mm.pruning.visionthink.looks import Eye, Look
from mm.pruning.visionthink.model import VisionThinkModel
from mm.pruning.visionthink.weaves import WeaveSample, weave_sample

BIASES = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0)
SIDES = (8, 16, 24, 32)
"""Sides of the fixed resolutions, of pictures of 32 pixels."""


def held_out(count: int, seed: int = 0) -> list[WeaveSample]:
    """Test samples, easy and hard questions in turn on the same pictures."""
    first = Split("test").seeds[2 * seed * count]
    return [weave_sample(first + first % 2 + index) for index in range(count)]


def answers(model: VisionThinkModel, samples: Sequence[WeaveSample], **options: Any) -> list[AdaptiveAnswer]:
    """Greedy answers to all samples; options as for `AdaptiveGenerator`."""
    generate = model.generator(batch_size=64, **options)
    found: list[AdaptiveAnswer] = generate([s.image for s in samples], [s.question for s in samples])
    return found


def scores(samples: Sequence[WeaveSample], found: Sequence[AdaptiveAnswer]) -> dict[str, float]:
    """Accuracy and share of calls for easy and hard questions, and the mean share of visual tokens spent."""
    rows = list(zip(samples, found, strict=True))
    result = {}
    for kind in ("easy", "hard"):
        part = [(sample, answer) for sample, answer in rows if sample.kind == kind]
        result[f"{kind}_accuracy"] = sum(a.answer == s.answer for s, a in part) / len(part)
        result[f"{kind}_calls"] = sum(a.called for _, a in part) / len(part)
    result["accuracy"] = (result["easy_accuracy"] + result["hard_accuracy"]) / 2
    result["retain_ratio"] = sum(a.retain_ratio for _, a in rows) / len(rows)
    return result


def evaluate(model: VisionThinkModel, *, seed: int = 0, count: int = 256) -> dict[str, float]:
    """The scores of the shipped demonstration, with its controls.

    Args:
        model: The demonstration.
        seed: Which part of the test samples.
        count: Samples, half of them hard.
    """
    samples = held_out(count, seed)
    auto, never, always = (scores(samples, answers(model, samples, mode=m)) for m in ("auto", "never", "always"))
    return {
        **auto,
        "accuracy_always": always["accuracy"],
        "retain_ratio_always": always["retain_ratio"],
        "hard_accuracy_never": never["hard_accuracy"],
        "hard_accuracy_blank": scores(samples, blank_second(model, samples))["hard_accuracy"],
    }


def blank_second(model: VisionThinkModel, samples: Sequence[WeaveSample]) -> list[AdaptiveAnswer]:
    """The control in which every full picture is grey."""
    generate = model.generator(batch_size=64)
    full = generate.full_look

    def grey(eye: Eye, images: Sequence[Image.Image]) -> list[Look]:
        return full(eye, [Image.new("RGB", image.size, (125, 125, 125)) for image in images])

    generate.full_look = grey
    found: list[AdaptiveAnswer] = generate([s.image for s in samples], [s.question for s in samples])
    return found


def curve(model: VisionThinkModel, samples: Sequence[WeaveSample]) -> list[dict[str, float]]:
    """Accuracy and cost over `call_bias`, one row per value of `BIASES`."""
    return [{"call_bias": b, **scores(samples, answers(model, samples, call_bias=b))} for b in BIASES]


def fixed(model: VisionThinkModel, samples: Sequence[WeaveSample]) -> list[dict[str, float]]:
    """The baseline that every question gets the same resolution and no second look, one row per side of `SIDES`."""
    rows = []
    for side in SIDES:
        shown = [s.image.resize((side, side), Image.Resampling.LANCZOS) for s in samples]
        generate = model.generator(batch_size=64, first_look="full", mode="never")
        found = scores(samples, generate(shown, [s.question for s in samples]))
        cost = (side / samples[0].image.width) ** 2
        rows.append({"side": side, "accuracy": found["accuracy"], "retain_ratio": cost})
    return rows
