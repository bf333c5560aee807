"""Questions about a scan and draft reports: the writer's text with what a reader needs to judge it.

Dims: K sentences, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mm.medical.tasks.attention import sentence_attention
from mm.medical.tasks.index import ScanIndex
from mm.medical.tasks.page import NOTE, CasePage
from mm.medical.tasks.phantom_dialogues import REQUEST
from mm.medical.tasks.pictures import attention_figure, png_of_pixels, thinned
from mm.medical.tasks.retrieval import Hit, retrieve
from mm.medical.tasks.scan_input import Scan, as_volume, cube_of
from mm.medical.tasks.writer import Writer
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.sentences import split_sentences
from mm.medical.volumes.panel import three_planes
from mm.medical.volumes.volume import Volume

if TYPE_CHECKING:
    from mm.medical.velvet.model import VelvetModel

DRAFT_MARK = "[Draft written by a model. Research only, not for diagnosis.]"
"""Stands in front of every report."""


@dataclass(frozen=True)
class Answer:
    """One answer."""

    question: str
    text: str
    confidence: float
    """Geometric mean of the probabilities of its tokens, 0..1; says how sure the model is, not whether it is right."""
    volume: Volume
    note: str = NOTE

    def summary(self) -> dict[str, Any]:
        """Plain data without a name."""
        told = {"question": self.question, "answer": self.text, "confidence": self.confidence}
        return {"note": self.note, **told, "scan": self.volume.summary()}

    def page(self, title: str = "Answer") -> CasePage:
        """Panel, question and answer."""
        page = CasePage(title)
        page.figure(three_planes(self.volume), "The scan in three planes; the patient's right is on the left.")
        page.table([{"question": self.question, "answer": self.text, "confidence": self.confidence}])
        page.listed(self.volume.provenance.notes)
        return page


@dataclass(frozen=True)
class DraftReport:
    """A report that a model wrote."""

    plain: str
    """The text alone."""
    sentences: tuple[str, ...]
    """Its sentences."""
    references: tuple[Hit, ...]
    """Nearest reports of an index."""
    volume: Volume
    levels: LevelEmbeddings
    """Vectors of the scan, for the attention maps."""
    index: ScanIndex | None = None
    """Where the references come from."""

    @property
    def text(self) -> str:
        """The text behind its mark."""
        return f"{DRAFT_MARK} {self.plain}"

    def attention(self, model: VelvetModel, volume: Volume | None = None) -> NDArray[np.float32]:
        """Where each sentence looks, on the voxels of the scan (or of a coarser one of it), (K, X, Y, Z)."""
        shape: Any = (volume or self.volume).hu.shape
        return sentence_attention(model, self.levels, self.sentences, shape)

    def summary(self) -> dict[str, Any]:
        """Plain data without a name."""
        nearest = [hit.as_dict() for hit in self.references]
        return {"note": NOTE, "draft": self.text, "references": nearest, "scan": self.volume.summary()}

    def page(self, model: VelvetModel, title: str = "Draft report") -> CasePage:
        """Panel, text, attention per sentence, references with their pictures."""
        page = CasePage(title)
        page.figure(three_planes(self.volume), "The scan in three planes; the patient's right is on the left.")
        page.heading("Draft")
        page.text(self.text)
        if self.sentences and "sentence" in model.config.levels:
            small = thinned(self.volume)
            maps = self.attention(model, small)
            page.heading("Where the sentences look")
            page.figure(
                attention_figure(small, maps, self.sentences[: len(maps)]),
                "Highest values along each axis; every map is stretched over its own range. Attention is no evidence: "
                "it may lie away from what its sentence is about, and with the demonstration weights it does.",
            )
        if self.references and self.index is not None:
            page.heading("Nearest reports of the index")
            cards = [
                (png_of_pixels(self.index.picture(hit.row)), f"[{number}] scan {hit.key}", hit.report)
                for number, hit in enumerate(self.references, 1)
            ]
            page.gallery(cards)
        page.listed(self.volume.provenance.notes)
        return page


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A closed question: choices are appended as text, as published.

    Example:
        >>> with_choices("Where is it?", ("left", "right"))
        'Where is it? Choices: A. left B. right'
    """
    if not choices:
        return question
    listed = " ".join(f"{chr(ord('A') + number)}. {text}" for number, text in enumerate(choices))
    return f"{question} Choices: {listed}"


@torch.inference_mode()
def writer_inputs(model: VelvetModel, cube: Tensor, question: str) -> dict[str, Tensor]:
    """What the frozen model hands to a writer for one question, see `Writer.forward`.

    Raises:
        ValueError: an empty question.
    """
    if not question.strip():
        raise ValueError("the question is empty")
    tokens = model.tokenize([question])
    text = model.encode_text(**tokens)
    features = model.encode_volume(cube.to(model.device)).report
    return {"features": features, "states": text.states, "visible": text.visible, "keep": tokens["attention_mask"]}


def ask(
    model: VelvetModel,
    writer: Writer,
    scan: Scan,
    question: str,
    *,
    choices: Sequence[str] = (),
    window: str | None = None,
    max_new_tokens: int = 50,
) -> Answer:
    """Answer a question about a scan; arguments as `VelvetModel.ask`."""
    writer.fits(model)
    volume = as_volume(scan)
    cube = cube_of(volume, model.config.vision.volume_size, window)
    inputs = writer_inputs(model, cube, with_choices(question, choices))
    text = writer.write(**inputs, max_new_tokens=max_new_tokens)[0]
    return Answer(question, text, confidence(writer, inputs, text), volume)


@torch.inference_mode()
def confidence(writer: Writer, inputs: dict[str, Tensor], text: str) -> float:
    """Geometric mean of the probabilities of the tokens of a text and its end."""
    tokens = {name: value.to(inputs["states"].device) for name, value in writer.answer_tokens([text]).items()}
    labels = tokens.pop("labels")[0]
    logits = writer(**inputs, **tokens).logits[0].float()
    picked = logits.log_softmax(-1)[torch.arange(len(labels)), labels.clamp(min=0)]
    return float(picked.mean().exp())


def draft_report(
    model: VelvetModel,
    writer: Writer,
    scan: Scan,
    *,
    index: ScanIndex | str | Path | None = None,
    k: int = 3,
    window: str | None = None,
    request: str = REQUEST,
    max_new_tokens: int = 512,
) -> DraftReport:
    """Write a draft report; arguments as `VelvetModel.report`, and:

    Args:
        window: Intensity window.
        request: What the writer was trained to answer with a report.
    """
    writer.fits(model)
    volume = as_volume(scan)
    found = (ScanIndex(index) if isinstance(index, str | Path) else index) if index is not None else None
    references = () if found is None else tuple(retrieve(model, volume, found, k, window=window))
    cube = cube_of(volume, model.config.vision.volume_size, window)
    plain = writer.write(**writer_inputs(model, cube, request), max_new_tokens=max_new_tokens)[0]
    with torch.inference_mode():
        levels = model.volume_embeddings(model.encode_volume(cube.to(model.device)))
    return DraftReport(plain, tuple(split_sentences(plain)), references, volume, levels, found)
