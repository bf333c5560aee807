"""Does a model look where the report says? Three readings, each with its chance.

Pointing reads the attention of a sentence, occlusion leaves a finding out of the drawing, evidence blanks parts of the
scan. A model may depend on the right place and still attend elsewhere: after some blocks a region knows of the others.
Dims: P pairs, W hidden words, C cubes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from mm.kernels import local_attention
from mm.medical.phantom_reports import described, report
from mm.medical.phantoms import Case, render
from mm.medical.velvet.data import windowed
from mm.medical.velvet.held_out import HeldOut, embed
from mm.medical.velvet.hidden_words import hide_attributes, masked_logits
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.vision import VolumeFeatures

CUBES = 3
"""Cubes per axis that are blanked one at a time."""


# --- attention -------------------------------------------------------------------------------------------------------


def where(model: VelvetModel, data: HeldOut, features: VolumeFeatures | None = None) -> dict[str, float]:
    """All three readings."""
    return {**pointing(model, data, features), **occlusion(model, data), **evidence(model, data)}


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


# --- a finding that is gone ------------------------------------------------------------------------------------------


@torch.no_grad()
def occlusion(model: VelvetModel, data: HeldOut, patients: int = 32) -> dict[str, float]:
    """Do sentences depend on what they are about? Share of findings whose own sentence loses most when they are gone.

    Each finding of the first patients is left out of the drawing, and the similarity of every sentence of the report
    with its own scan is compared before and after. The sentence about the technique is compared apart: words see the
    whole report, and a model may let one sentence carry all of it. `technique_loses_most` says how often it does.
    The chance is one over the number of the other sentences, on average.
    """
    size = model.config.vision.volume_size
    hits, chances, technique = [], [], []
    for case in data.cases[:patients]:
        gone = [number for number, finding in enumerate(case.findings) if finding.place != "scan"]
        if not gone:
            continue
        drawings = [case, *(without(case, number) for number in gone)]
        volumes = torch.stack([windowed(render(drawing, size).hu) for drawing in drawings]).to(model.device)
        similarity = sentence_similarity(model, volumes, report(case))  # (1 + findings, sentences)
        losses = similarity[:1] - similarity[1:]
        about = [finding for finding, _ in described(case)][1:]  # the first sentence is about the technique
        hits += [about[row.argmax()] == number for row, number in zip(losses[:, 1:], gone, strict=True)]
        chances += [1 / len(about)] * len(gone)
        technique += (losses.argmax(1) == 0).tolist()
    return {
        "occlusion": sum(hits) / len(hits),
        "occlusion_chance": sum(chances) / len(chances),
        "technique_loses_most": sum(technique) / len(technique),
    }


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


# --- a part of the scan that is gone ---------------------------------------------------------------------------------


@torch.no_grad()
def evidence(model: VelvetModel, data: HeldOut, patients: int = 12) -> dict[str, float]:
    """Which part of the scan do hidden words come from? Share of words whose most needed cube holds their finding.

    One of 27 cubes after the other is replaced by the mean scan; the cube without which the right word's probability
    falls most counts. The chance is the share of cubes that hold the finding, on average.
    """
    mean = data.volumes.mean(0)
    hits, chances = [], []
    for case, volume in zip(data.cases[:patients], data.volumes, strict=False):
        lesions = torch.from_numpy(render(case, volume.shape[-1]).lesions)
        cubes = list(_cubes(volume.shape[-1]))
        blanked = torch.stack([volume] + [_blank(volume, mean, cube) for cube in cubes])
        memory = model.visual_memory(model.encode_volume(blanked.to(model.device)))  # (1 + C, tokens, channels)
        hidden, _, answers = hide_attributes(model, [case])
        about = _findings_of(model, hidden, case)
        for row, (number, answer) in enumerate(zip(about, answers, strict=True)):
            holds = [bool((lesions[cube] == number + 1).any()) for cube in cubes]
            if case.findings[number].place == "scan" or not any(holds):
                continue
            tokens = {name: value[row].expand(len(blanked), -1) for name, value in hidden.items()}
            known = masked_logits(model, tokens, memory).log_softmax(-1)[:, answer]
            hits.append(holds[int((known[0] - known[1:]).argmax())])
            chances.append(sum(holds) / len(holds))
    return {"evidence": sum(hits) / len(hits), "evidence_chance": sum(chances) / len(chances)}


def _cubes(size: int) -> Iterator[tuple[slice, slice, slice]]:
    """The parts of a volume, `CUBES` per axis."""
    edges = [size * number // CUBES for number in range(CUBES + 1)]
    parts = [slice(low, high) for low, high in pairwise(edges)]
    return product(parts, parts, parts)


def _blank(volume: Tensor, mean: Tensor, cube: tuple[slice, slice, slice]) -> Tensor:
    """A copy of a volume (1, X, X, X) that shows the mean scan in one cube."""
    copy = volume.clone()
    copy[0][cube] = mean[0][cube]
    return copy


def _findings_of(model: VelvetModel, hidden: dict[str, Tensor], case: Case) -> list[int]:
    """Number of the finding that each hidden word (W rows) is about."""
    places = (hidden["input_ids"] == model.config.text.mask_id).int().argmax(1)
    sentences = hidden["token_type_ids"][torch.arange(len(places), device=places.device), places]
    numbers = [finding for finding, _ in described(case)]
    return [number for number in (numbers[sentence - 1] for sentence in sentences.tolist()) if number is not None]
