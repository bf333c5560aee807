"""`mm medical segment`: labels on the grid of the file, volumes in millilitres, a page per case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.command import CommandParser, UsageError
from mm.medical.command.cases import add_output, run_cases
from mm.medical.command.source import add_source, load
from mm.medical.tasks.cases import ScanCase

ABOUT = """Segment a scan, every scan of a folder, or a DICOM folder. Writes per case labels.nii.gz (the grid of the
file), result.json (volumes in ml) and case.html. Finished cases are left as they are, so a stopped run goes on."""


def run(argv: list[str]) -> int:
    """Run `mm medical segment`."""
    parser = CommandParser(
        "medical segment",
        about=ABOUT,
        example="mm medical segment scan.nii.gz",
        json_output=True,
    )
    add_source(parser)
    add_output(parser, default="segmented")
    parser.add_argument(
        "--model",
        default="velvet_tiny",
        help="segmenter, or model with one beside it: folder, shipped name or hub id (default: velvet_tiny)",
    )
    parser.add_argument("--mesh", choices=("stl", "ply", "glb", "obj"), help="also write a surface per structure")
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM", help="working spacing (default: the model's)")
    parser.add_argument("--window", help="intensity window (default: the model's)")
    parser.add_argument("--overlap", type=float, default=0.25, help="of neighbouring windows (default: 0.25)")
    parser.add_argument("--blend", choices=("constant", "gaussian"), default="constant", help="weight of a window")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.overlap < 1:
        raise UsageError(f"--overlap must lie in [0, 1), got {arguments.overlap}")

    from mm.medical.tasks.identity import fingerprint
    from mm.medical.tasks.segmentation import SegmentConfig, segment
    from mm.medical.volumes.windows import window_named

    if arguments.window:
        window_named(arguments.window)
    config = SegmentConfig(
        spacing=tuple(arguments.spacing) if arguments.spacing else None,
        window=arguments.window,
        overlap=arguments.overlap,
        blend=arguments.blend,
    )
    segmenter = load_segmenter(arguments.model, arguments.device)
    config.grid(segmenter)  # a wrong spacing is said before a scan is read
    names = ("overlap", "blend", "window", "spacing", "mesh", "intensity", "series", "missing")
    settings = {"task": "segment", "weights": fingerprint(segmenter), **{n: getattr(arguments, n) for n in names}}

    def work(case: ScanCase, folder: Path | None) -> dict[str, Any]:
        assert folder is not None
        found = segment(segmenter, load(arguments, str(case.path)), config)
        found.save(folder, meshes=arguments.mesh, extra={"made_with": settings})
        return {**found.summary(), "made_with": settings}

    return run_cases(arguments, settings, work, lambda result: {r["name"]: r["ml"] for r in result["structures"]})


def load_segmenter(name: str, device: str) -> Any:
    """A segmenter, or the one beside a VELVET-Med model."""
    from mm.checkpoint import load as load_any
    from mm.medical.tasks.parts import checked
    from mm.medical.velvet.model import VelvetModel

    found = load_any(name, device=device)
    return found.part("segmenter", "segmentation") if isinstance(found, VelvetModel) else checked("segmenter", found)
