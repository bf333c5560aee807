"""What a pre-trained model scores on held-out phantoms, with the controls that a fake would not pass.

Dims: P pairs, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from mm.data.split import Split
from mm.kernels import local_attention
from mm.medical.phantom_reports import attribute_words, described, report
from mm.medical.phantoms import Case, change_one, draw_case, render
from mm.medical.velvet.config import LEVELS
from mm.medical.velvet.data import windowed
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.model import MATCHES, VelvetModel
from mm.medical.velvet.vision import VolumeFeatures
from mm.metrics.scores import recall_at_k

GALLERY = 64
"""Pairs per retrieval; chance of R@1 is one in 64."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out patients with their volumes; no two reports are the same text."""

    cases: list[Case]
    volumes: Tensor
    """(P, 1, X, X, X) in 0 .. 1."""

    @property
    def reports(self) -> list[list[str]]:
        return [report(case) for case in self.cases]


def held_out(seed: int, count: int, size: int = 36) -> HeldOut:
    """Patients of the test split.

    Args:
        seed: Which part of the split; parts do not overlap.
        count: Patients (P).
        size: Voxels per edge.
    """
    cases: list[Case] = []
    texts: set[str] = set()
    number = seed * 2**24
    while len(cases) < count:
        case = draw_case(Split("test").seed(number))
        number += 2
        text = " ".join(report(case))
        if text not in texts:
            texts.add(text)
            cases.append(case)
    return HeldOut(cases, torch.stack([windowed(render(case, size).hu) for case in cases]))


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
        **pointing(model, data, features),
        **occlusion(model, data),
    }


@torch.no_grad()
def encode(model: VelvetModel, data: HeldOut) -> VolumeFeatures:
    """Features of all volumes."""
    parts = [model.encode_volume(part) for part in _parts(model, data.volumes)]
    levels = {level: torch.cat([getattr(part, level) for part in parts]) for level in LEVELS}
    return VolumeFeatures(**levels)


@torch.no_grad()
def embed(
    model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None
) -> tuple[LevelEmbeddings, LevelEmbeddings]:
    """Level vectors of all volumes and all reports."""
    volumes = model.volume_embeddings(features or encode(model, data))
    return volumes, model.encode_text(**model.tokenize(data.reports)).embeddings


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


def pointing(model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None) -> dict[str, float]:
    """Where sentences look: share of findings whose most attended region of the sentence level holds the finding.

    The chance is the share of regions that hold it, on average.
    """
    hits, chances = [], []
    volumes, texts = embed(model, data, features)
    for number, case in enumerate(data.cases):
        found = sentence_attention(model, volumes, texts, number)
        lesions = torch.from_numpy(render(case, model.config.vision.volume_size).lesions)
        for row, (finding, _) in enumerate(described(case)):
            if finding is None or case.findings[finding].place == "scan":
                continue
            holds = _regions_with(lesions == finding + 1, found.shape[1:])
            hits.append(float(holds[found[row].argmax().cpu()]))
            chances.append(holds.float().mean().item())
    return {"pointing": sum(hits) / len(hits), "pointing_chance": sum(chances) / len(chances)}


@torch.no_grad()
def occlusion(model: VelvetModel, data: HeldOut, patients: int = 32) -> dict[str, float]:
    """Do sentences depend on what they are about? Share of findings whose own sentence loses most when they are gone.

    Each finding of the first patients is left out of the drawing, and the similarity of every sentence of the report
    with its own scan is compared before and after. The chance is one over the number of sentences, on average.
    """
    size = model.config.vision.volume_size
    hits, chances = [], []
    for case in data.cases[:patients]:
        gone = [number for number, finding in enumerate(case.findings) if finding.place != "scan"]
        if not gone:
            continue
        drawings = [case, *(without(case, number) for number in gone)]
        volumes = torch.stack([windowed(render(drawing, size).hu) for drawing in drawings]).to(model.device)
        similarity = sentence_similarity(model, volumes, report(case))  # (1 + findings, sentences)
        losses = similarity[:1] - similarity[1:]
        about = [finding for finding, _ in described(case)]
        hits += [about[row.argmax()] == number for row, number in zip(losses, gone, strict=True)]
        chances += [1 / len(about)] * len(gone)
    return {"occlusion": sum(hits) / len(hits), "occlusion_chance": sum(chances) / len(chances)}


def without(case: Case, number: int) -> Case:
    """The same patient without one finding."""
    return replace(case, findings=(*case.findings[:number], *case.findings[number + 1 :]))


def sentence_similarity(model: VelvetModel, volumes: Tensor, sentences: list[str]) -> Tensor:
    """Cosine of each sentence with what it attends to in each volume: (B, 1, X, X, X) -> (B, sentences)."""
    regions = model.volume_embeddings(model.encode_volume(volumes)).sentence
    texts = model.encode_text(**model.tokenize([sentences])).embeddings
    if regions is None or texts.sentence is None or texts.sentence_keep is None:
        raise ValueError("this model has no sentence level; see `levels` of its config")
    tokens = texts.sentence[0][texts.sentence_keep[0]]
    local = model.config.local
    rows = []
    for found in regions:
        attention = local_attention(
            found, tokens, region_temperature=local.region_temperature, pre_scale=local.pre_scale
        )
        rows.append(F.cosine_similarity(attention @ F.normalize(found, dim=-1), tokens, dim=-1))
    return torch.stack(rows)


@torch.no_grad()
def sentence_attention(model: VelvetModel, volumes: LevelEmbeddings, texts: LevelEmbeddings, number: int) -> Tensor:
    """Which regions each sentence of a patient's report attends to.

    Args:
        model: Gives the temperatures.
        volumes: Of all patients, with a sentence level.
        texts: Of all patients.
        number: Which patient.

    Returns:
        (sentences, h, w, d); every sentence sums to 1.
    """
    if volumes.sentence is None or texts.sentence is None or texts.sentence_keep is None:
        raise ValueError("this model has no sentence level; see `levels` of its config")
    attention = local_attention(
        volumes.sentence[number],
        texts.sentence[number][texts.sentence_keep[number]],
        region_temperature=model.config.local.region_temperature,
        pre_scale=model.config.local.pre_scale,
    )
    return attention.unflatten(1, volumes.grids["sentence"])


def _regions_with(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Which regions of a grid hold part of a mask (X, X, X); the grid may reach beyond the border, (S,) bool."""
    cells = [2 ** (edge - 1).bit_length() for edge in (-(-mask.shape[0] // side) for side in grid)]
    padded = torch.zeros([side * cell for side, cell in zip(grid, cells, strict=True)], dtype=torch.bool)
    padded[: mask.shape[0], : mask.shape[1], : mask.shape[2]] = mask
    pattern = "(h x) (w y) (d z) -> (h w d)"
    h, w, d = grid
    return reduce(padded.float(), pattern, "max", h=h, w=w, d=d).bool()


def _parts(model: VelvetModel, volumes: Tensor, size: int = 32) -> Iterator[Tensor]:
    """Pieces of a batch on the model's device."""
    return (part.to(model.device) for part in volumes.split(size))
