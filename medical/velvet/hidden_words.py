"""Words of a report that only the scan can tell, hidden one at a time and read back.

Dims: M hidden words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.medical.phantom_reports import attribute_words, described, report
from mm.medical.phantoms import Case
from mm.medical.velvet.held_out import HeldOut, encode
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.vision import VolumeFeatures


@torch.no_grad()
def hidden_attributes(model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None) -> dict[str, float]:
    """Attribute words hidden one at a time: share that is restored with the right, another and an empty volume."""
    masked, rows, answers = hide_attributes(model, data.cases)
    right = model.visual_memory(features or encode(model, data))
    empty = model.visual_memory(model.encode_volume(torch.zeros_like(data.volumes[:1]).to(model.device)))
    memories = {"right": right, "wrong": right.roll(1, dims=0), "empty": empty.expand_as(right)}
    scores = {}
    for name, memory in memories.items():
        hits = []
        for index in torch.arange(len(rows)).split(256):
            tokens = {key: value[index] for key, value in masked.items()}
            logits = masked_logits(model, tokens, memory[rows[index]])
            hits.append(logits.argmax(-1) == answers[index])
        scores[f"hidden_attribute_{name}_volume"] = torch.cat(hits).float().mean().item()
    return scores


def hide_attributes(model: VelvetModel, cases: Sequence[Case]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """One row per attribute word of every finding: tokens with that word masked, number of its case, its id.

    Words of normal sentences and of sentences about the organs stay, so that the rest of the report never tells.
    """
    tokenizer, config = model.tokenizer, model.config.text
    words = torch.tensor([tokenizer.ids[word] for word in sorted(attribute_words())], device=model.device)
    tokens = model.tokenize([report(case) for case in cases])
    rows, places = _places(tokens, words, cases, config.first_sentence_id)
    hidden = {name: value[rows].clone() for name, value in tokens.items()}
    index = torch.arange(len(rows), device=model.device)
    answers = hidden["input_ids"][index, places]
    hidden["input_ids"][index, places] = config.mask_id
    return hidden, rows, answers


def _places(
    tokens: dict[str, Tensor], words: Tensor, cases: Sequence[Case], first_sentence: int
) -> tuple[Tensor, Tensor]:
    """Rows and columns of attribute words inside sentences about a finding."""
    about = torch.zeros_like(tokens["input_ids"], dtype=torch.bool)
    for row, case in enumerate(cases):
        for number, (finding, _) in enumerate(described(case), 1):
            if finding is not None:
                about[row] |= tokens["token_type_ids"][row] == number
    rows, places = (torch.isin(tokens["input_ids"], words) & about).nonzero(as_tuple=True)
    return rows, places


def masked_logits(model: VelvetModel, tokens: dict[str, Tensor], memory: Tensor) -> Tensor:
    """Vocabulary logits at the one masked place of each row, (M, vocabulary)."""
    states = model.text(
        tokens["input_ids"], tokens["token_type_ids"], tokens["attention_mask"], memory=memory, layers="all"
    )[-1]
    place = (tokens["input_ids"] == model.config.text.mask_id).int().argmax(1)
    return model.word_logits(states[torch.arange(len(place), device=place.device), place])
