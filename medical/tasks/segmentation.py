"""Segmentation of a whole scan: to the network's grid, window by window, back to the voxels of the file.

Dims: X Y Z voxels, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mm.checkpoint import write_aside, write_json
from mm.medical.tasks.page import NOTE, CasePage
from mm.medical.tasks.scan_input import Scan, as_volume
from mm.medical.velvet.segmenter import Segmenter
from mm.medical.volumes.labels import label_volumes
from mm.medical.volumes.mesh import label_meshes, save_mesh
from mm.medical.volumes.nifti import save_nifti
from mm.medical.volumes.panel import three_planes
from mm.medical.volumes.sliding import sliding_labels
from mm.medical.volumes.volume import Volume
from mm.medical.volumes.working_grid import WorkingGrid

LABELS_FILE, RESULT_FILE, PAGE_FILE = "labels.nii.gz", "result.json", "case.html"


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How a scan is cut into windows; what is None is taken from the network."""

    spacing: tuple[float, float, float] | None = None
    """Working spacing, millimetres; None: what the network was trained on."""
    window: str | None = None
    """Intensity window; None: that of the network."""
    overlap: float = 0.25
    """Share of a window that its neighbour covers, as published."""
    blend: Literal["constant", "gaussian"] = "constant"
    """Weight of the voxels of a window, as published, or falling towards its border."""
    batch: int = 4
    """Windows per call, as published."""

    def grid(self, segmenter: Segmenter) -> WorkingGrid:
        """The network's working grid with these changes."""
        changes = {name: value for name in ("spacing", "window") if (value := getattr(self, name)) is not None}
        return replace(segmenter.grid, **changes)


@dataclass(frozen=True)
class Segmentation:
    """Labels of a scan."""

    labels: NDArray[np.uint8]
    """On the grid of `volume.hu` (X, Y, Z); 0 is background."""
    names: tuple[str, ...]
    """Names of the values."""
    volume: Volume
    """The scan."""
    config: SegmentConfig
    """With the values that were used."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Label, name, voxels and millilitres, largest first."""
        return label_volumes(self.labels, self.volume.affine, self.names)

    @property
    def native(self) -> NDArray[np.uint8]:
        """Labels on the grid of the file."""
        return self.volume.to_native(self.labels)

    def summary(self) -> dict[str, Any]:
        """Plain data without a name."""
        return {
            "note": NOTE,
            "scan": self.volume.summary(),
            "structures": self.rows,
            "labels": list(self.names),
            "settings": asdict(self.config),
        }

    def page(self, title: str = "Segmentation") -> CasePage:
        """Panel with overlay, volumes, and what was odd about the scan."""
        page = CasePage(title)
        panel = three_planes(self.volume, labels=self.labels, names=self.names)
        page.figure(panel, "Three planes through the structures; the patient's right is on the left.")
        page.table([{"structure": row["name"], "ml": row["ml"], "voxels": row["voxels"]} for row in self.rows])
        if not self.rows:
            page.text("No structure was found.")
        page.heading("The scan")
        page.table([{"what": key, "value": _plain(value)} for key, value in scan_facts(self.volume).items()])
        page.listed(self.volume.provenance.notes)
        return page

    def save(self, folder: str | Path, *, meshes: str | None = None, extra: Mapping[str, Any] | None = None) -> Path:
        """Write `labels.nii.gz` on the grid of the file, `result.json`, `case.html` and meshes; all or nothing.

        Args:
            folder: New or older folder of this case; it is replaced as a whole.
            meshes: Format of the surfaces (stl, ply, glb, obj), one file per structure; None writes none.
            extra: Further entries of `result.json`.

        Raises:
            ValueError: unknown mesh format.
        """
        with write_aside(folder) as place:
            place.mkdir()
            save_nifti(place / LABELS_FILE, self.labels, self.volume)
            if meshes:
                for name, mesh in label_meshes(self.labels, self.volume.affine, self.names).items():
                    save_mesh(place / f"{name.replace(' ', '_')}.{meshes}", mesh)
            self.page(f"Case {Path(folder).name}").save(place / PAGE_FILE)
            write_json(place / RESULT_FILE, {**self.summary(), **(extra or {})})
        return Path(folder)


def segment(
    segmenter: Segmenter,
    scan: Scan,
    config: SegmentConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Segment a whole scan where the weights of the network are.

    Args:
        segmenter: The network; it states labels, working grid and edge of a window.
        scan: Volume or path. Values that are not HU are scaled by the window as they are: give a fitting one.
        config: Windows.
        progress: Called with (done, all) windows; by default a progress bar where a terminal shows one.

    Raises:
        ValueError: the scan can't be used, or the spacing makes too many voxels of it.
    """
    config = config or SegmentConfig()
    volume = as_volume(scan)
    grid = config.grid(segmenter)
    prepared = grid.prepare(volume)
    edge = segmenter.config.patch
    training = segmenter.training
    segmenter.eval()
    try:
        found = sliding_labels(
            prepared.image.as_tensor()[0],  # without the record, which would be copied for every window
            segmenter,
            window=(edge, edge, edge),
            overlap=config.overlap,
            blend=config.blend,
            batch=config.batch,
            device=next(segmenter.parameters()).device,
            progress=progress,
        )
    finally:
        segmenter.train(training)
    labels = prepared.invert_to_volume(torch.from_numpy(found)).astype(np.uint8)
    return Segmentation(
        labels, tuple(segmenter.labels), volume, replace(config, spacing=grid.spacing, window=grid.window)
    )


def scan_facts(volume: Volume) -> dict[str, Any]:
    """Facts for a page: shape, spacing, axes, intensities; hash of the source."""
    found = volume.summary()
    found.pop("notes")
    return found


def _plain(value: Any) -> str:
    return " x ".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
