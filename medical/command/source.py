"""Options that every `mm medical` command which reads a scan shares."""

from __future__ import annotations

import argparse

from mm.command import CommandParser
from mm.medical.volumes.load import load_volume
from mm.medical.volumes.volume import Volume


def add_source(parser: CommandParser) -> None:
    """The scan and how to read it."""
    parser.add_argument("scan", metavar="SCAN", help="NIfTI file, DICOM file or folder, or a zip of these")
    add_reading(parser)


def add_reading(parser: CommandParser) -> None:
    """How to read scans."""
    parser.add_argument("--series", help="number of the DICOM series, where there are several")
    parser.add_argument(
        "--intensity",
        choices=("hu", "grey", "any"),
        default="hu",
        help="what the values are: hu (default), grey (0..255 pictures such as M3D), any (unchecked, MR)",
    )
    parser.add_argument(
        "--missing", choices=("refuse", "interpolate"), default="refuse", help="what to do about missing slices"
    )


def load(arguments: argparse.Namespace, scan: str | None = None) -> Volume:
    """The scan that the options name."""
    return load_volume(
        scan or arguments.scan, arguments.series, intensity=arguments.intensity, missing=arguments.missing
    )
