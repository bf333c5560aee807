"""Join the text side of one trained model with the vision encoder of another.

Two models that were trained on the same kind of reports place the same words, sentences and reports in two spaces; a
linear map between those spaces (ridge regression) carries the donor's vision heads over.
Dims: M vectors of a level, E contrastive width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mm.checkpoint import load_state
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.model import VelvetModel


@torch.no_grad()
def graft_vision(model: VelvetModel, donor: VelvetModel, tokens: Mapping[str, Tensor], damping: float = 1e-3) -> None:
    """Give a model the vision encoder, the adapter and translated vision heads of another.

    Args:
        model: Keeps its text side; changed in place.
        donor: Of the same sizes and vocabulary.
        tokens: The fields of `TokenBatch` of some hundred reports.
        damping: Of the regression, relative to the mean square of the vectors.
    """
    load_state(model.vision, donor.vision.state_dict(), source="donor vision")
    if model.adapter is not None and donor.adapter is not None:
        load_state(model.adapter, donor.adapter.state_dict(), source="donor adapter")
    fields = {name: tokens[name] for name in ("input_ids", "token_type_ids", "attention_mask", "unit_starts")}
    ours, theirs = (side.encode_text(**fields).embeddings for side in (model, donor))
    for level in model.config.levels:
        weight, bias = ridge(_vectors(theirs, level), _vectors(ours, level), damping)
        head, given = model.level_head(level).vision, donor.level_head(level).vision
        head.weight.copy_(weight.T @ given.weight)
        head.bias.copy_(given.bias @ weight + bias)


def ridge(source: Tensor, target: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Weight (E, E) and bias (E,) with source @ weight + bias close to target, both (M, E)."""
    source, target = source.double(), target.double()
    middle, aim = source.mean(0), target.mean(0)
    centred = source - middle
    gram = centred.T @ centred
    gram += damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, centred.T @ (target - aim))
    return weight.float(), (aim - middle @ weight).float()


def _vectors(embeddings: LevelEmbeddings, level: str) -> Tensor:
    """All vectors of a level that exist, (M, E)."""
    vectors: Tensor = getattr(embeddings, level)
    kept: Tensor | None = getattr(embeddings, f"{level}_keep", None)
    return vectors.flatten(0, -2) if kept is None else vectors[kept]
