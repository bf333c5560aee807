"""What a trained writer scores on held-out phantoms, with the control of a scan that is not the patient's.

Dims: P patients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import load
from mm.data.split import Split
from mm.medical.phantoms import draw_case, render
from mm.medical.tasks.phantom_dialogues import Dialogue, dialogues, findings_in
from mm.medical.tasks.writer import Writer
from mm.medical.velvet.data import phantom_tokenizer, windowed
from mm.medical.velvet.model import VelvetModel

QUESTIONS = 9
"""Dialogues per patient, one of them the report."""


def evaluate(writer: Writer, *, seed: int, count: int = 64, model: VelvetModel | None = None) -> dict[str, float]:
    """Share of right answers and F1 of the findings of reports, with the right and with another patient's scan.

    Args:
        writer: With weights.
        seed: Which held-out patients.
        count: Patients (P).
        model: What it was trained on; default: the shipped `velvet_tiny`.
    """
    base: Any = model if model is not None else load("velvet_tiny")
    base.to(next(writer.parameters()).device).eval()
    seeds = [Split("test").seed(seed * 2**24 + 2 * number) for number in range(count)]
    cases = [draw_case(one) for one in seeds]
    scans = torch.stack([windowed(render(case, base.config.vision.volume_size).hu) for case in cases])
    asked = [dialogues(case, one, QUESTIONS) for case, one in zip(cases, seeds, strict=True)]
    scores = {}
    for name, volumes in (("", scans), ("_wrong_scan", scans.roll(1, dims=0))):
        written = answers(base, writer, volumes, asked)
        for kind in ("yes_no", "choice"):
            pairs = [(text, one.answer) for text, one in written if one.kind == kind]
            scores[kind + name] = sum(text == truth for text, truth in pairs) / len(pairs)
        scores["finding_f1" + name] = finding_f1([(text, one.answer) for text, one in written if one.kind == "report"])
    return scores


@torch.inference_mode()
def answers(
    base: VelvetModel, writer: Writer, volumes: Tensor, asked: list[list[Dialogue]]
) -> list[tuple[str, Dialogue]]:
    """Every dialogue with what the writer answers; short answers and reports in batches of their own."""
    written = []
    features = torch.cat([base.encode_volume(part.to(base.device)).report for part in volumes.split(32)])
    for reports in (False, True):
        flat = [(row, one) for row, some in enumerate(asked) for one in some if (one.kind == "report") == reports]
        for start in range(0, len(flat), 64):
            part = flat[start : start + 64]
            tokens = phantom_tokenizer()([one.question for _, one in part]).to(base.device).to_dict()
            text = base.encode_text(**tokens)
            rows = torch.tensor([row for row, _ in part], device=features.device)
            found = writer.write(
                features[rows],
                text.states,
                text.visible,
                tokens["attention_mask"],
                max_new_tokens=112 if reports else 8,
            )
            written += [(answer, one) for answer, (_, one) in zip(found, part, strict=True)]
    return written


def finding_f1(pairs: list[tuple[str, str]]) -> float:
    """F1 over all findings of all reports: place and every attribute must agree.

    Args:
        pairs: (written, true) reports.
    """
    right = stated = true = 0
    for written, truth in pairs:
        ours, theirs = findings_in(written), findings_in(truth)
        right, stated, true = right + len(ours & theirs), stated + len(ours), true + len(theirs)
    return 2 * right / max(1, stated + true)


def main(argv: list[str] | None = None) -> int:
    """`python -m mm.medical.tasks.writer_scores --writer FOLDER --model FOLDER`: print the scores."""
    import argparse

    from mm.command import emit_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--writer", type=Path, required=True)
    parser.add_argument("--model", default="velvet_tiny")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    writer = Writer.from_pretrained(arguments.writer)
    emit_json(evaluate(writer, seed=arguments.seed, count=arguments.count, model=load(arguments.model)))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
