"""Procedural CT phantoms: anatomy in Hounsfield units, findings, label maps. A pure function of a seed.

A case is drawn as plain numbers (`draw_case`), then rendered at any size (`render`) and described in words
(`mm.medical.phantom_reports`). The body is a rough sketch of a patient: ellipsoids and tubes with the right order of
intensities and places, no substitute for real scans.
Axes are RAS: the first index grows to the patient's right, the second to the front, the third to the head; lengths in
millimetres from the centre of the field of view, intensities in HU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm.data.split import generator

FIELD_OF_VIEW_MM = 384.0
"""Edge of the cube that is rendered."""
LABELS = ("background", "lungs", "liver", "spleen", "kidneys", "spine", "aorta", "heart")
"""Names of the values of a label map."""

AIR, FAT, MUSCLE, FLUID, BONE, DISC, LUNG = -1000.0, -100.0, 45.0, 8.0, 380.0, 90.0, -850.0
PLAIN = {"liver": 58.0, "spleen": 48.0, "kidneys": 34.0, "aorta": 42.0, "heart": 40.0}
"""Organs without contrast medium, HU."""
ENHANCED = {"liver": 112.0, "spleen": 128.0, "kidneys": 190.0, "aorta": 165.0, "heart": 150.0}
"""Organs with contrast medium, HU."""

Vector = tuple[float, float, float]


# --- what a patient has ----------------------------------------------------------------------------------------------

CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "scan": {"contrast": ("enhanced", "unenhanced")},
    "lung": {
        "side": ("left", "right"),
        "part": ("upper", "lower"),
        "size": ("small", "large"),
        "kind": ("solid", "calcified"),
    },
    "pleura": {"side": ("left", "right"), "size": ("small", "large")},
    "liver": {"part": ("upper", "lower"), "size": ("small", "large"), "kind": ("hypodense", "hyperdense")},
    "spleen": {},
    "kidney": {"side": ("left", "right"), "part": ("upper", "lower"), "kind": ("cyst", "stone")},
    "spine": {"part": ("thoracic", "lumbar"), "kind": ("sclerotic", "lytic")},
    "aorta": {"kind": ("dilated", "calcified")},
}
"""Place of a finding -> its attributes and their values, drawn evenly and independently of each other."""
PLACES = tuple(place for place in CHOICES if place != "scan")
FINDING_PROBABILITY = 0.5


@dataclass(frozen=True)
class Finding:
    """One abnormality."""

    place: str
    """Where: one of `PLACES`, or "scan" for the technique."""
    attributes: dict[str, str]
    """Attribute -> value, see `CHOICES`."""


@dataclass(frozen=True)
class Case:
    """One patient and scan as numbers; everything random has been drawn."""

    seed: int
    """Where it came from; also draws noise, artefacts and wording."""
    findings: tuple[Finding, ...]
    """Technique first, then abnormalities from the lungs downwards."""
    anatomy: dict[str, float] = field(default_factory=dict)
    """Relative sizes and offsets of this patient, see `draw_anatomy`."""

    def of(self, place: str) -> dict[str, str] | None:
        """Attributes of the finding at a place, or None."""
        return next((finding.attributes for finding in self.findings if finding.place == place), None)


@dataclass(frozen=True)
class Phantom:
    """A rendered case."""

    hu: NDArray[np.int16]
    """Intensities (X, Y, Z), HU."""
    labels: NDArray[np.uint8]
    """Organs (X, Y, Z), see `LABELS`; lesions belong to their organ."""
    lesions: NDArray[np.uint8]
    """0, or 1 + the number of the finding in `case.findings`, (X, Y, Z)."""
    spacing_mm: float
    """Edge of a voxel."""
    case: Case

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index -> RAS millimetres, (4, 4)."""
        matrix = np.diag([self.spacing_mm] * 3 + [1.0])
        matrix[:3, 3] = [-(edge - 1) / 2 * self.spacing_mm for edge in self.hu.shape]
        return matrix


def draw_case(seed: int) -> Case:
    """The patient of a seed of `mm.data.split.Split`.

    Example:
        >>> draw_case(3) == draw_case(3), draw_case(3) == draw_case(4)
        (True, False)
    """
    rng = generator(seed, "phantom case")
    findings = [Finding("scan", _attributes(rng, "scan"))]
    findings += [Finding(place, _attributes(rng, place)) for place in PLACES if rng.random() < FINDING_PROBABILITY]
    return Case(seed=int(seed), findings=tuple(findings), anatomy=draw_anatomy(rng))


def change_one(case: Case, seed: int) -> Case:
    """The same patient with one attribute of one finding changed: the hardest wrong partner of its report."""
    rng = generator(seed, "phantom change")
    places = [index for index, finding in enumerate(case.findings) if finding.attributes]
    index = int(rng.choice(places))
    finding = case.findings[index]
    name = str(rng.choice(sorted(finding.attributes)))
    others = [value for value in CHOICES[finding.place][name] if value != finding.attributes[name]]
    changed = replace(finding, attributes={**finding.attributes, name: str(rng.choice(others))})
    return replace(case, findings=(*case.findings[:index], changed, *case.findings[index + 1 :]))


def draw_anatomy(rng: np.random.Generator) -> dict[str, float]:
    """Relative size of the body and its organs (1 = average), and offsets in millimetres."""
    names = ("body", "depth", "lungs", "liver", "spleen", "kidneys", "heart", "spine")
    sizes = {name: float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)) for name in names}
    offsets = {f"{name}_{axis}": float(rng.normal(0, 5.0)) for name in ("organs", "lesion") for axis in "xyz"}
    places = {f"lesion_{number}": float(rng.uniform(-1, 1)) for number in range(6)}
    return {**sizes, **offsets, **places, "noise": float(rng.uniform(8, 22)), "streaks": float(rng.uniform(0, 14))}


def _attributes(rng: np.random.Generator, place: str) -> dict[str, str]:
    return {name: str(rng.choice(values)) for name, values in CHOICES[place].items()}


# --- drawing ---------------------------------------------------------------------------------------------------------


def phantom(seed: int, size: int = 48) -> Phantom:
    """The phantom of a seed: `render(draw_case(seed), size)`.

    Example:
        >>> scan = phantom(0, size=32)
        >>> scan.hu.shape, scan.hu.dtype, scan.spacing_mm
        ((32, 32, 32), dtype('int16'), 12.0)
    """
    return render(draw_case(seed), size)


def render(case: Case, size: int = 48) -> Phantom:
    """Draw a case.

    Args:
        case: What to draw.
        size: Voxels per edge; the field of view stays 384 mm.
    """
    canvas = _Canvas(size)
    _draw_body(canvas, case)
    _draw_organs(canvas, case)
    numbers = {finding.place: number for number, finding in enumerate(case.findings)}
    for place, draw in DRAW.items():
        if place in numbers:
            draw(canvas, case, case.findings[numbers[place]].attributes, numbers[place] + 1)
    hu = canvas.hu + _disturbance(case, canvas)
    return Phantom(
        hu=np.clip(hu, -1024, 3071).astype(np.int16),
        labels=canvas.labels,
        lesions=canvas.lesions,
        spacing_mm=canvas.spacing,
        case=case,
    )


class _Canvas:
    """Three volumes that shapes are painted into, each shape only inside its bounding box."""

    def __init__(self, size: int) -> None:
        self.size, self.spacing = size, FIELD_OF_VIEW_MM / size
        self.axis = ((np.arange(size) - (size - 1) / 2) * self.spacing).astype(np.float32)
        self.hu = np.full((size,) * 3, AIR, dtype=np.float32)
        self.labels = np.zeros((size,) * 3, dtype=np.uint8)
        self.lesions = np.zeros((size,) * 3, dtype=np.uint8)

    def ellipsoid(self, centre: Vector, radii: Vector) -> tuple[tuple[slice, slice, slice], NDArray[np.bool_]]:
        """Bounding box and mask of the points with sum ((p - c) / r)^2 <= 1; an infinite radius makes a tube."""
        box, terms = [], []
        for middle, radius in zip(centre, radii, strict=True):
            low, high = np.searchsorted(self.axis, (middle - radius, middle + radius))
            box.append(slice(int(low), int(high)))
            terms.append(((self.axis[low:high] - middle) / radius) ** 2)
        return tuple(box), np.add.outer(np.add.outer(terms[0], terms[1]), terms[2]) <= 1  # type: ignore[return-value]

    def paint(
        self,
        centre: Vector,
        radii: Vector,
        hu: float,
        label: int | None = None,
        lesion: int = 0,
        inside: tuple[int, ...] | None = None,
        where: tuple[float, float] | None = None,
    ) -> None:
        """Paint an ellipsoid.

        Args:
            centre, radii: Millimetres.
            hu: Intensity.
            label: Organ value, None keeps what is there.
            lesion: Value in the lesion map, 0 keeps it.
            inside: Paint only over these labels.
            where: Paint only between these heights (third axis), millimetres.
        """
        box, mask = self.ellipsoid(centre, radii)
        if where is not None:
            height = self.axis[box[2]]
            mask = mask & ((height >= where[0]) & (height < where[1]))
        if inside is not None:
            mask = mask & np.isin(self.labels[box], inside)
        self.hu[box][mask] = hu
        if label is not None:
            self.labels[box][mask] = label
        if lesion:
            self.lesions[box][mask] = lesion


_LUNGS, _LIVER, _SPLEEN, _KIDNEYS, _SPINE, _AORTA, _HEART = range(1, 8)
_SIDE = {"left": -1.0, "right": 1.0}
"""Sign of the first axis."""
_SIZE_MM = {"small": 12.0, "large": 24.0}


def _draw_body(canvas: _Canvas, case: Case) -> None:
    """Skin fat, muscle, ribs, spine."""
    a = case.anatomy
    wide, deep = 165 * a["body"], 115 * a["body"] * a["depth"]
    canvas.paint((0, 0, 0), (wide, deep, np.inf), FAT)
    canvas.paint((0, 0, 0), (wide - 16, deep - 16, np.inf), BONE)
    for low in np.arange(-8, 200, 24.0):  # ribs: rings of bone with muscle between them
        canvas.paint((0, 0, 0), (wide - 16, deep - 16, np.inf), MUSCLE, where=(low + 9, low + 24))
    canvas.paint((0, 0, 0), (wide - 16, deep - 16, np.inf), MUSCLE, where=(-400, 1))
    canvas.paint((0, 0, 0), (wide - 27, deep - 27, np.inf), MUSCLE)
    canvas.paint((0, 6, 0), (wide - 34, deep - 33, np.inf), FAT, where=(-400, 60))
    radius = 22 * a["spine"]
    for low in np.arange(-192, 192, 32.0):
        canvas.paint((0, -68, 0), (radius, radius, np.inf), BONE, label=_SPINE, where=(low, low + 26))
        canvas.paint((0, -68, 0), (radius, radius, np.inf), DISC, label=_SPINE, where=(low + 26, low + 32))


def _draw_organs(canvas: _Canvas, case: Case) -> None:
    """Lungs, heart, liver, spleen, kidneys, aorta, bowel."""
    a, tone = case.anatomy, _tones(case)
    for side in (-1, 1):
        canvas.paint(_lung_centre(case, side), _lung_radii(case), LUNG, label=_LUNGS, inside=(0,))
    canvas.paint((-18, 22, 62 + a["organs_z"]), _scaled((48, 42, 48), a["heart"]), tone["heart"], label=_HEART)
    over = (0, _LUNGS)
    canvas.paint(_liver_centre(case), _scaled((74, 66, 56), a["liver"]), tone["liver"], label=_LIVER, inside=over)
    scale = a["spleen"] * (1.45 if case.of("spleen") is not None else 0.95)
    canvas.paint((-92, -20, -22), _scaled((27, 36, 40), scale), tone["spleen"], label=_SPLEEN, inside=over)
    for side in (-1, 1):
        canvas.paint(_kidney_centre(case, side), _scaled((27, 24, 52), a["kidneys"]), tone["kidneys"], label=_KIDNEYS)
        canvas.paint(_kidney_centre(case, side), _scaled((9, 9, 22), a["kidneys"]), FAT, inside=(_KIDNEYS,))
    canvas.paint((-10, -34, 0), (13, 13, np.inf), tone["aorta"], label=_AORTA)
    canvas.paint((18, -32, 0), (11, 11, np.inf), 0.8 * tone["aorta"], inside=(0,))
    rng = generator(case.seed, "phantom bowel")
    for _ in range(5):
        x, y, z = rng.uniform((-80, 15, -170), (80, 55, -95))
        canvas.paint((x, y, z), (24, 18, 18), 25.0, inside=(0,))
        canvas.paint((x, y + 6, z), (13, 9, 10), -700.0, inside=(0,))


def _tones(case: Case) -> dict[str, float]:
    scan = case.of("scan")
    return ENHANCED if scan is None or scan["contrast"] == "enhanced" else PLAIN


def _scaled(radii: Vector, factor: float) -> Vector:
    return tuple(radius * factor for radius in radii)  # type: ignore[return-value]


def _lung_centre(case: Case, side: float) -> Vector:
    return (74 * side * case.anatomy["body"], 0.0, 82 + case.anatomy["organs_z"])


def _lung_radii(case: Case) -> Vector:
    return _scaled((52, 70, 98), case.anatomy["lungs"])


def _liver_centre(case: Case) -> Vector:
    return (62 + case.anatomy["organs_x"], 8.0, -18 + case.anatomy["organs_z"])


def _kidney_centre(case: Case, side: float) -> Vector:
    return (62 * side * case.anatomy["body"], -42.0, -84 - 8 * (side > 0) + case.anatomy["organs_y"])


# --- findings --------------------------------------------------------------------------------------------------------


def _lung_nodule(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    a, side = case.anatomy, _SIDE[found["side"]]
    x, y, z = _lung_centre(case, side)
    height = z + (52 if found["part"] == "upper" else -28) + 8 * a["lesion_0"]
    place = (x + 12 * a["lesion_1"], y + 28 + 12 * a["lesion_2"], height)
    hu = 45.0 if found["kind"] == "solid" else 650.0
    radius = _SIZE_MM[found["size"]]
    canvas.paint(place, (radius,) * 3, hu, label=_LUNGS, lesion=number, inside=(_LUNGS,))


def _effusion(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    """Fluid behind and below, thicker and higher when large; the front of the lung stays free."""
    side, large = _SIDE[found["side"]], found["size"] == "large"
    x, y, z = _lung_centre(case, side)
    rx, ry, rz = _lung_radii(case)
    centre = (x, y - (62 if large else 80), z)
    top = z + (35 if large else -20)
    canvas.paint(centre, (rx * 1.1, ry * 0.9, rz), FLUID, lesion=number, inside=(_LUNGS,), where=(-400, top))


def _liver_lesion(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    a = case.anatomy
    x, y, z = _liver_centre(case)
    place = (x + 14 * a["lesion_3"], y + 20 * a["lesion_4"], z + (24 if found["part"] == "upper" else -26))
    hu = FLUID - 10 if found["kind"] == "hypodense" else _tones(case)["liver"] + 110
    canvas.paint(place, (_SIZE_MM[found["size"]],) * 3, hu, lesion=number, inside=(_LIVER,))


def _kidney_lesion(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    side = _SIDE[found["side"]]
    x, y, z = _kidney_centre(case, side)
    height = z + (30 if found["part"] == "upper" else -30)
    if found["kind"] == "cyst":
        canvas.paint((x + 8 * side, y, height), (20, 20, 20), FLUID, label=_KIDNEYS, lesion=number)
    else:
        canvas.paint((x, y, height), (10, 10, 10), 900.0, lesion=number, inside=(_KIDNEYS,))


def _spine_lesion(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    height = (96 if found["part"] == "thoracic" else -96) + 13
    hu = 950.0 if found["kind"] == "sclerotic" else 20.0
    canvas.paint((0, -64, height), (18, 18, 24), hu, lesion=number, inside=(_SPINE,))


def _aorta_finding(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    low, high = -130.0, -50.0
    if found["kind"] == "dilated":
        canvas.paint((-10, -30, -90), (26, 24, 44), _tones(case)["aorta"], label=_AORTA, lesion=number)
    else:
        canvas.paint((-10, -34, 0), (13, 13, np.inf), 750.0, lesion=number, inside=(_AORTA,), where=(low, high))
        canvas.paint((-10, -34, 0), (7, 7, np.inf), _tones(case)["aorta"], inside=(_AORTA,), where=(low, high))


def _spleen_finding(canvas: _Canvas, case: Case, found: dict[str, str], number: int) -> None:
    """The enlarged spleen is drawn with the organs; here it is marked."""
    canvas.lesions[canvas.labels == _SPLEEN] = number


DRAW: dict[str, Callable[[_Canvas, Case, dict[str, str], int], Any]] = {
    "pleura": _effusion,
    "lung": _lung_nodule,
    "liver": _liver_lesion,
    "spleen": _spleen_finding,
    "kidney": _kidney_lesion,
    "spine": _spine_lesion,
    "aorta": _aorta_finding,
}
"""Place of a finding -> what draws it, in the order of drawing."""


# --- what a scanner adds ---------------------------------------------------------------------------------------------


def _disturbance(case: Case, canvas: _Canvas) -> NDArray[np.float32]:
    """Noise, cupping, and streaks of beam hardening in one slab, HU, (X, Y, Z)."""
    a, axis = case.anatomy, canvas.axis
    rng = generator(case.seed, "phantom noise")
    noise = rng.standard_normal(canvas.hu.shape, dtype=np.float32) * np.float32(a["noise"])
    plane = np.add.outer(axis**2, axis**2) / 192**2
    cupping = (12 * (plane - 0.5)).astype(np.float32)
    angle, wave = rng.uniform(0, np.pi), rng.uniform(22, 40)
    stripes = np.cos(np.add.outer(np.cos(angle) * axis, np.sin(angle) * axis) * (2 * np.pi / wave))
    slab = np.exp(-(((axis - rng.uniform(-150, 150)) / 30) ** 2))
    noise += cupping[:, :, None]
    noise += (a["streaks"] * stripes).astype(np.float32)[:, :, None] * slab.astype(np.float32)
    return noise
