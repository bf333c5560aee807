"""CT: a scan in three planes with its organs, the nearest reports of other scans, and a draft report."""

from __future__ import annotations

import html
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import as_path, gradio, model_input, needed, own_folder, results

if TYPE_CHECKING:
    import numpy as np

    from mm.medical.volumes import Volume

MODELS = ("velvet_tiny",)
WINDOWS = ("soft_tissue", "lung", "bone", "brain", "abdomen", "wide")
"""Presets of `mm.medical.volumes.WINDOWS` for scans in HU."""
ENDINGS = (".nii", ".nii.gz", ".zip")
MOST_FILES, MOST_BYTES = 5000, 2 * 2**30
"""Of a zip, unpacked: more slices than any scan, and more than a visitor should fill the disk with."""
COLLECTION = 12
"""Phantoms that reports are retrieved from."""
SHOWN = 4
LARGEST = 192
"""Voxels per axis of what stays in memory for the pictures."""
WARNING = "Research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True)
class Viewed:
    """What the pictures of one visitor are drawn from."""

    volume: Volume
    """The scan, thinned."""
    labels: np.ndarray | None
    """Its organs, thinned alike."""
    names: tuple[str, ...]


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    gr.Markdown(f"**{WARNING}** Remove names before you upload; nothing is kept after the session.")
    state = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2):
            upload = as_path(gr.File(shown[0][0], label="NIfTI file, or a zip of one DICOM series", elem_id="ct_scan"))
            run = gr.Button("Read the scan", variant="primary", elem_id="ct_run")
            gr.Examples(shown, [upload], label="Drawn phantoms")
            window = gr.Radio(WINDOWS, value=WINDOWS[0], label="Window", elem_id="ct_window")
            sides = [gr.Slider(0, 100, 50, step=1, label=f"{name}, %") for name in ("left to right", "back to front")]
            height = gr.Slider(0, 100, 50, step=1, label="feet to head, %", elem_id="ct_height")
            overlay = gr.Checkbox(True, label="Show organs", elem_id="ct_overlay")
            with gr.Accordion("Real weights", open=False):
                model = model_input("ct", MODELS)
        with gr.Column(scale=3):
            panel = gr.Image(label="Axial, coronal, sagittal; the patient's right is on the left", elem_id="ct_panel")
            volumes = gr.HTML(label="Volumes", elem_id="ct_result")
            draft = gr.HTML(label="Draft report", elem_id="ct_draft")
            gallery = gr.Gallery(
                label="Nearest reports of the collection", columns=2, height="auto", elem_id="ct_found"
            )
            files = gr.File(label="Labels on the grid of the file, and the page of the case", file_count="multiple")
    view = [state, window, *sides, height, overlay]
    read = run.click(guarded(read_scan), [upload, model], [state, volumes, draft, gallery, files], api_name="read_scan")
    read.success(guarded(draw), view, [panel], api_visibility="private")
    for change in (window.change, overlay.change, *(slider.release for slider in (*sides, height))):
        change(guarded(draw), view, [panel], api_visibility="private")


def read_scan(
    upload: str | None, model: str, progress: Any = quiet
) -> tuple[Viewed, str, str, list[tuple[Any, str]], list[str]]:
    """Organs and their volumes, the nearest reports, a draft report, and files to keep.

    Args:
        upload: Path of a NIfTI file, or of a zip with one scan.
        model: Name or folder of a VELVET-Med model; its segmenter and writer lie beside it.
        progress: Told what is being done.

    Returns:
        What `draw` needs, a table of volumes, the draft, pictures with reports, paths of written files.

    Raises:
        ValueError: no scan, a wrong file, a zip that is too large or has paths that lead outside, another model.
    """
    from mm.medical.tasks.parts import MissingPartError
    from mm.medical.tasks.pictures import thinned, thinning
    from mm.medical.velvet.model import VelvetModel
    from mm.medical.volumes import load_volume

    path = checked(needed(upload, "a scan"))
    progress(0, desc="reading the scan")
    volume = load_volume(path)
    with shelf.lent(model) as velvet:
        if not isinstance(velvet, VelvetModel):
            raise ValueError(f"{model}: a {type(velvet).__name__} does not read scans.")
        found, labels, written = [], None, []
        names: tuple[str, ...] = ()
        try:
            segmentation = velvet.segment(volume, progress=lambda done, total: progress(0.6 * done / total, "organs"))
            labels, names = segmentation.labels[thinning(volume.hu.shape, LARGEST)], segmentation.names
            rows = [{"structure": row["name"], "ml": row["ml"]} for row in segmentation.rows]
            table = results(rows, "Volumes of what was found.") if rows else "<p>No structure was found.</p>"
            folder = segmentation.save(own_folder() / "case")
            written = [str(folder / name) for name in ("labels.nii.gz", "case.html")]
        except MissingPartError as missing:
            table = f"<p>{html.escape(str(missing))}</p>"
        progress(0.7, desc="nearest reports")
        index = collection(velvet)
        for hit in velvet.retrieve(volume, index, k=SHOWN):
            found.append((index.picture(hit.row), f"{hit.similarities['report']:.2f} · {hit.report}"))
        progress(0.85, desc="draft report")
        try:
            draft = velvet.report(volume, max_new_tokens=128).text
        except MissingPartError as missing:
            draft = str(missing)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in volume.provenance.notes)
    told = f"{table}<ul>{notes}</ul>" if notes else table
    return Viewed(thinned(volume, LARGEST), labels, names), told, f"<p>{html.escape(draft)}</p>", found, written


def draw(view: Viewed | None, window: str, x: float, y: float, z: float, overlay: bool) -> Any:
    """The three planes through a place, (H, W, 4) uint8.

    Args:
        view: From `read_scan`.
        window: One of `WINDOWS`; grey values and unknown units keep their own.
        x, y, z: Place in per cent of each axis.
        overlay: Show the organs.

    Raises:
        ValueError: no scan was read, or an unknown window.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from mm.medical.volumes import three_planes

    view = needed(view, "a scan, and press the button")
    at: Any = tuple(
        round(share / 100 * (size - 1)) for share, size in zip((x, y, z), view.volume.hu.shape, strict=True)
    )
    figure = three_planes(
        view.volume,
        at=at,
        window=window if view.volume.unit == "HU" else None,
        labels=view.labels if overlay else None,
        names=view.names,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def checked(path: str) -> Path:
    """An upload that may be opened: a known ending, and a zip without surprises.

    Raises:
        ValueError: it is neither, or holds too much.
    """
    scan = Path(path)
    if not scan.name.lower().endswith(ENDINGS):
        raise ValueError(f"A scan is a file that ends in {', '.join(ENDINGS)}; zip the folder of a DICOM series.")
    if scan.suffix.lower() != ".zip":
        return scan
    try:
        members = zipfile.ZipFile(scan).infolist()
    except zipfile.BadZipFile:
        raise ValueError("This is not a zip archive, or it is cut off: zip the folder again.") from None
    if len(members) > MOST_FILES:
        raise ValueError(f"The archive holds {len(members)} files, at most {MOST_FILES} are read: zip one series.")
    size = sum(member.file_size for member in members)
    if size > MOST_BYTES:
        raise ValueError(
            f"The archive unpacks to {size / 2**30:.1f} GiB, at most {MOST_BYTES / 2**30:.0f} are read: zip one series."
        )
    for member in members:
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
            raise ValueError("The archive holds a path that leads outside of it: zip the folder itself.")
    return scan


def collection(model: Any) -> Any:
    """An index over held-out phantoms and their reports, made once per model."""
    from mm.medical.tasks.identity import fingerprint
    from mm.medical.tasks.index import IndexBuilder, ScanIndex

    folder = _folder_of(fingerprint(model))
    if not (folder / "index.json").is_file():
        list(IndexBuilder(model, folder, phantom_items(COLLECTION)).run())
    return ScanIndex(folder)


@cache
def _folder_of(_weights: str) -> Path:
    return own_folder()


def phantom_items(count: int) -> list[Any]:
    """Held-out phantoms as entries of an index."""
    from mm.data.split import Split
    from mm.medical.phantom_reports import report
    from mm.medical.phantoms import draw_case, render
    from mm.medical.tasks.index import ScanItem
    from mm.medical.volumes import Volume

    def scan(seed: int) -> Volume:
        found = render(draw_case(seed), 48)
        return Volume.from_array(found.hu, found.affine)

    def reader(seed: int) -> Callable[[], Volume]:
        return lambda: scan(seed)

    seeds = [Split("test").seed(2 * number) for number in range(100, 100 + count)]
    return [ScanItem(place=str(seed), read=reader(seed), report=" ".join(report(draw_case(seed)))) for seed in seeds]


def examples(folder: Path) -> list[list[str]]:
    """Phantoms as NIfTI files: [[path], …]."""
    from mm.data.split import Split
    from mm.extras import require
    from mm.medical.phantoms import draw_case, render

    nibabel = require("nibabel", extra="medical", purpose="The CT tab")
    paths = []
    for number in range(3):
        found = render(draw_case(Split("test").seed(2 * number)), 64)
        path = folder / f"phantom_{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(found.hu, found.affine), path)
        paths.append([str(path)])
    return paths
