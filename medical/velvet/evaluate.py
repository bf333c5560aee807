"""What a pre-trained model scores on held-out phantoms, with the controls that a fake would not pass.

Dims: P pairs.
"""

from __future__ import annotations

import torch

from mm.medical.phantom_reports import report
from mm.medical.phantoms import change_one
from mm.medical.velvet.held_out import HeldOut, embed, encode, held_out
from mm.medical.velvet.hidden_words import hidden_attributes
from mm.medical.velvet.model import MATCHES, VelvetModel
from mm.medical.velvet.vision import VolumeFeatures
from mm.medical.velvet.where import where
from mm.metrics.scores import recall_at_k

GALLERY = 64
"""Pairs per retrieval; chance of R@1 is one in 64."""


@torch.no_grad()
def evaluate(model: VelvetModel, *, seed: int, count: int = 128) -> dict[str, float]:
    """All scores of the demonstration.

    Args:
        model: With weights.
        seed: Which held-out patients.
        count: Patients per score, a multiple of 64.
    """
    model.eval()
    return all_scores(model, held_out(seed, count, model.config.vision.volume_size))


def all_scores(model: VelvetModel, data: HeldOut) -> dict[str, float]:
    """Every score on the same patients; their volumes are encoded once."""
    features = encode(model, data)
    return {
        **retrieval(model, data, features),
        **hidden_attributes(model, data, features),
        **matching(model, data, features),
        **where(model, data, features),
    }


def retrieval(model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None) -> dict[str, float]:
    """R@1 among 64 pairs, mean of both directions; the same when every volume is asked for another's report."""
    volumes, texts = embed(model, data, features)
    right, shuffled = [], []
    for start in range(0, len(data.cases), GALLERY):
        rows = slice(start, start + GALLERY)
        scores = model.similarity(volumes[rows], texts[rows], "report")
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        for table in (scores, scores.mT):
            right.append(recall_at_k(table, own, 1))
            shuffled.append(recall_at_k(table, own.roll(1, dims=1), 1))
    return {"retrieval_r1_of_64": sum(right) / len(right), "retrieval_shuffled": sum(shuffled) / len(shuffled)}


@torch.no_grad()
def matching(model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None) -> dict[str, float]:
    """The match head on reports that differ by one attribute: which of the two, and each alone at probability 1/2."""
    wrong = [report(change_one(case, case.seed + 1)) for case in data.cases]
    scores = {}
    memory = model.visual_memory(features or encode(model, data))
    for name, reports in (("right", data.reports), ("wrong", wrong)):
        text = model.encode_text(**model.tokenize(reports))
        logits = model.match_logits(text.states, text.visible, memory)
        scores[name] = logits[:, MATCHES] - logits[:, 1 - MATCHES]
    alone = torch.cat([scores["right"] > 0, scores["wrong"] < 0])
    return {
        "hard_negative_choice": (scores["right"] > scores["wrong"]).float().mean().item(),
        "hard_negative_decision": alone.float().mean().item(),
    }
