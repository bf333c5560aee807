"""`mm ask --adaptive`: the first look, the request, the full picture, and what all of it cost."""

from __future__ import annotations

import argparse
from typing import Any

from mm.command import OK, emit_json
from mm.pruning.visionthink.generator import AdaptiveAnswer, AdaptiveGenerator

DEFAULT_MODEL = "visionthink_tiny"


def adaptive_generator(model: Any, **options: Any) -> AdaptiveGenerator:
    """The generator of a loaded model: our demonstration, or a Qwen2-VL or Qwen2.5-VL of Hugging Face.

    Raises:
        ValueError: a model without dynamic resolution.
    """
    if hasattr(model, "generator"):
        found: AdaptiveGenerator = model.generator(**options)
        return found
    if not hasattr(model, "model_type"):
        raise ValueError(
            f"a {type(model).__name__} encodes every picture at one size, so a first look saves nothing; "
            f"use {DEFAULT_MODEL} or a Qwen2.5-VL"
        )
    return AdaptiveGenerator(model.model, model.processor, **options)


def answer(model: Any, images: Any, arguments: argparse.Namespace) -> int:
    """Answer the question of `mm ask --adaptive` and say what was spent."""
    generate = adaptive_generator(model, mode=arguments.mode, call_bias=arguments.call_bias)
    found: AdaptiveAnswer = generate(images, arguments.prompt)
    if arguments.json:
        emit_json(report(found) | {"model": arguments.model})
        return OK
    print(found.answer or "(no answer)")
    seen = f"first look {found.tokens_low} visual tokens"
    asked = f", asked for the full picture: {found.tokens_full} more" if found.called else ", did not ask for more"
    print(f"{seen}{asked}; the full picture alone has {found.tokens_reference}")
    return OK


def report(found: AdaptiveAnswer) -> dict[str, Any]:
    """A conversation as plain data."""
    return {
        "answer": found.answer,
        "called": found.called,
        "attempted": found.attempted,
        "finished": found.finished,
        "tokens_low": found.tokens_low,
        "tokens_full": found.tokens_full,
        "tokens_reference": found.tokens_reference,
        "retain_ratio": found.retain_ratio,
        "computed": found.computed,
        "transcript": [{"role": role, "text": text} for role, text in found.transcript],
    }
