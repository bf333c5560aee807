"""`mm medical info`: what a scan is, before anything is computed from it."""

from __future__ import annotations

from mm.command import OK, CommandParser, emit_json, emit_table
from mm.medical.command.source import add_source, load


def run(argv: list[str]) -> int:
    """Run `mm medical info`."""
    parser = CommandParser(
        "medical info",
        about="Shape, spacing, axis order, intensities and doubts of a scan; lists the DICOM series of a folder.",
        example="mm medical info dicom_folder/ --picture panel.png --window lung",
        json_output=True,
    )
    add_source(parser)
    parser.add_argument("--picture", metavar="FILE", help="write a picture in three planes")
    parser.add_argument("--window", help="window of the picture: soft_tissue, lung, brain, bone, abdomen, wide")
    arguments = parser.parse_args(argv)

    from mm.medical.volumes.dicom_series import SeveralSeriesError
    from mm.medical.volumes.windows import window_named

    if arguments.window:
        window_named(arguments.window)
    try:
        volume = load(arguments)
    except SeveralSeriesError as several:
        if arguments.picture:
            raise
        if arguments.json:
            emit_json({"series": several.series})
        else:
            emit_table(
                [{**row, "pixel_mm": " x ".join(map(str, row["pixel_mm"]))} for row in several.series],
                title="several series: choose one with --series NUMBER",
            )
        return OK
    found = volume.summary()
    if arguments.picture:
        from mm.medical.volumes.panel import save_panel

        save_panel(arguments.picture, volume, window=arguments.window)
    if arguments.json:
        emit_json(found)
    else:
        notes = found.pop("notes")
        emit_table([{"what": key, "value": _plain(value)} for key, value in found.items()])
        for note in notes:
            print(f"note: {note}")
    return OK


def _plain(value: object) -> str:
    return " x ".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
