"""VELVET-Med's page of the tour: a phantom in three planes with its organs, finding scans, where sentences look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mm.checkpoint import load, shipped_names
from mm.medical.phantom_reports import attribute_words, described, report
from mm.medical.phantoms import Phantom, render
from mm.medical.velvet.evaluate import GALLERY, evaluate
from mm.medical.velvet.held_out import HeldOut, embed, held_out
from mm.medical.velvet.hidden_words import hide_attributes, masked_logits
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.segmenter import Segmenter
from mm.medical.velvet.where import sentence_attention
from mm.medical.volumes.labels import label_volumes
from mm.medical.volumes.panel import plane, three_planes
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.windows import WINDOWS

if TYPE_CHECKING:
    from mm.app.report import Page

ATTRIBUTE_CHANCE = 0.5
"""An attribute has two values."""
SHOWN = 4


def page(page: Page) -> None:
    """Fill the page; without MONAI it says what to install."""
    try:
        model = load("velvet_tiny")
    except ImportError as error:
        page.text(str(error))
        return
    assert isinstance(model, VelvetModel)
    page.text(
        "VELVET-Med ties reports to CT scans at three levels: words, sentences, whole reports. Everything here is a "
        "demonstration on procedural phantoms, drawn ellipsoids with the intensities of a CT: no patient, and no use "
        "for one. Research only."
    )
    data = held_out(page.seed + 1, GALLERY, model.config.vision.volume_size)
    _planes(page, data)
    _scores(page, model)
    _gallery(page, model, data)
    _attention(page, model, data)
    _hidden(page, model, data)


# --- the scan and its organs -----------------------------------------------------------------------------------------


def _planes(page: Page, data: HeldOut) -> None:
    """A scan, its report, and its organs in millilitres if the segmenter ships."""
    case = max(data.cases[:SHOWN], key=lambda case: len(case.findings))
    scan = render(case, 64)
    volume = Volume.from_array(scan.hu, scan.affine)
    page.heading("A scan and its report")
    page.text(" ".join(report(case)))
    if "velvet_tiny_segmenter" not in shipped_names():
        page.figure(three_planes(volume), "The phantom in three planes, seen as radiologists do.")
        return
    found = _organs(volume)
    names = _segmenter().labels
    page.figure(
        three_planes(volume, labels=found, names=names),
        "Organs found by the segmentation network on the pre-trained encoder, with their volumes.",
    )
    drawn = {row["label"]: row["ml"] for row in label_volumes(scan.labels, volume.affine, names)}
    rows = [
        {
            "organ": names[label],
            "drawn ml": millilitres,
            "found ml": float((found == label).sum()) * volume.voxel_ml,
            "Dice": _dice(found == label, scan.labels == label),
        }
        for label, millilitres in sorted(drawn.items())
    ]
    page.table(rows, "Every organ of this scan: what was drawn and what was found", key="organs")


def _segmenter() -> Segmenter:
    segmenter = load("velvet_tiny_segmenter")
    assert isinstance(segmenter, Segmenter)
    return segmenter


def _organs(volume: Volume) -> Any:
    """Label map on the grid of the volume."""
    segmenter = _segmenter()
    prepared = segmenter.grid.prepare(volume)
    with torch.inference_mode():
        labels = segmenter(prepared.image.as_tensor()[None]).argmax(1)[0]
    return prepared.invert_to_volume(labels.to(torch.uint8))


def _dice(ours: Any, truth: Any) -> float:
    return 2 * float((ours & truth).sum()) / max(float(ours.sum() + truth.sum()), 1.0)


# --- scores with their controls --------------------------------------------------------------------------------------


def _scores(page: Page, model: VelvetModel) -> None:
    page.heading("What it learned, and the controls")
    found = evaluate(model, seed=page.seed, count=GALLERY)
    tests = (
        ("report finds its scan and back, R@1 of 64", "retrieval_r1_of_64", 1 / GALLERY),
        ("the same when every scan has another's report", "retrieval_shuffled", 1 / GALLERY),
        ("hidden attribute word, with the right scan", "hidden_attribute_right_volume", ATTRIBUTE_CHANCE),
        ("hidden attribute word, with another's scan", "hidden_attribute_wrong_volume", ATTRIBUTE_CHANCE),
        ("hidden attribute word, with an empty scan", "hidden_attribute_empty_volume", ATTRIBUTE_CHANCE),
        ("which of two reports that differ by a word", "hard_negative_choice", 0.5),
        ("finding left out of the drawing: its own sentence loses most", "occlusion", found["occlusion_chance"]),
        ("part of the scan that a hidden word needs most holds its finding", "evidence", found["evidence_chance"]),
        ("sentence attends to its finding (missed)", "pointing", found["pointing_chance"]),
    )
    rows = [{"test": text, "chance": chance, "found": found[name]} for text, name, chance in tests]
    page.table(rows, f"{GALLERY} held-out phantoms", key="scores")


# --- retrieval -------------------------------------------------------------------------------------------------------


def _gallery(page: Page, model: VelvetModel, data: HeldOut) -> None:
    """Three reports, the best three scans of each."""
    import matplotlib.pyplot as plt

    page.heading("Finding a scan by its report")
    with torch.no_grad():
        volumes, texts = embed(model, data)
        best = model.similarity(volumes, texts).mT.topk(3, dim=1).indices[:SHOWN].tolist()
    figure, axes = plt.subplots(SHOWN, 4, figsize=(10, 2.4 * SHOWN), width_ratios=(1.4, 1, 1, 1))
    for number, (row, picks) in enumerate(zip(axes, best, strict=True)):
        row[0].text(0, 0.5, _wrapped(" ".join(report(data.cases[number]))), fontsize=7, va="center")
        for axis, pick in zip(row[1:], picks, strict=True):
            axis.imshow(_slice(data.volumes[pick], data, number), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title("its own scan" if pick == number else f"scan {pick}", fontsize=8)
        for axis in row:
            axis.set_axis_off()
    page.figure(figure, f"Best three of {GALLERY} scans, coronal slice through the first finding of the report.")


def _slice(volume: Tensor, data: HeldOut, number: int) -> Any:
    """Coronal slice of a volume where the first finding of a patient lies."""
    lesions = render(data.cases[number], volume.shape[-1]).lesions > 0
    middle = int(lesions.sum((0, 2)).argmax()) if lesions.any() else volume.shape[-1] // 2
    return plane(volume[0].numpy(), "coronal", middle)


def _wrapped(text: str, width: int = 44) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


# --- attention -------------------------------------------------------------------------------------------------------


def _attention(page: Page, model: VelvetModel, data: HeldOut) -> None:
    """The sentence level's attention over scans, with the finding outlined."""
    import matplotlib.pyplot as plt

    page.heading("Where a sentence looks")
    chosen = list(_findings(data))[:SHOWN]
    volumes, texts = embed(model, data)
    figure, axes = plt.subplots(1, len(chosen), figsize=(3.4 * len(chosen), 3.9))
    for axis, (patient, sentence, text, scan, number) in zip(axes, chosen, strict=True):
        grid = sentence_attention(model, volumes, texts, patient)[sentence]
        _show_attention(axis, scan, scan.lesions == number + 1, _enlarged(grid, scan.hu.shape[0]))
        axis.set_title(_wrapped(text, 34), fontsize=8)
    page.figure(
        figure,
        "Attention of a sentence over the 27 regions of the sentence level (red = most), coronal slice; its finding is "
        "outlined in yellow. These weights miss this aim: sentences depend on their finding (see the scores above), "
        "but their attention lies mostly on thin regions at the border that hold no finding.",
    )


def _findings(data: HeldOut) -> Any:
    """(patient, row of the sentence, its text, phantom, number of the finding), one of each patient."""
    size = data.volumes.shape[-1]
    for patient, case in enumerate(data.cases):
        rows = [
            (patient, row, text, render(case, size), number)
            for row, (number, text) in enumerate(described(case))
            if number is not None and case.findings[number].place in ("lung", "liver", "kidney", "spleen")
        ]
        yield from rows[:1]


def _enlarged(grid: Tensor, size: int) -> Any:
    """Regions (h, w, d) -> voxels (size, size, size); a region of the sentence level covers 16 voxels per axis."""
    cell = 2 ** (-(-size // grid.shape[0]) - 1).bit_length()
    whole = grid.float().cpu().numpy().repeat(cell, 0).repeat(cell, 1).repeat(cell, 2)
    return whole[:size, :size, :size]


def _show_attention(axis: Any, scan: Phantom, lesion: Any, attention: Any) -> None:
    middle = int(lesion.sum((0, 2)).argmax())
    axis.imshow(plane(WINDOWS["abdomen"](scan.hu), "coronal", middle), cmap="gray", interpolation="nearest")
    stretched = (attention - attention.min()) / max(float(np.ptp(attention)), 1e-9)
    axis.imshow(plane(stretched, "coronal", middle), cmap="inferno", alpha=0.45, vmin=0, vmax=1)
    axis.contour(plane(lesion, "coronal", middle).astype(float), levels=[0.5], colors="yellow", linewidths=1.2)
    axis.set_axis_off()


# --- hidden words ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _hidden(page: Page, model: VelvetModel, data: HeldOut) -> None:
    """Attribute words of one report, each hidden and read back with three scans."""
    page.heading("Words that only the scan can tell")
    hidden, _, answers = hide_attributes(model, data.cases[:1])
    scans = {"its scan": data.volumes[:1], "another": data.volumes[1:2], "empty": torch.zeros_like(data.volumes[:1])}
    guesses = {}
    words = sorted(attribute_words())
    ids = torch.tensor([model.tokenizer.ids[word] for word in words])
    for name, volume in scans.items():
        memory = model.visual_memory(model.encode_volume(volume)).expand(len(answers), -1, -1)
        best = masked_logits(model, hidden, memory)[:, ids].argmax(1)
        guesses[name] = [words[index] for index in best.tolist()]
    truth = [words[ids.tolist().index(answer)] for answer in answers.tolist()]
    rows = [
        {"hidden": word, **{f"with {name}": guesses[name][row] for name in scans}} for row, word in enumerate(truth)
    ]
    page.table(rows, " ".join(report(data.cases[0])), key="hidden_words")
