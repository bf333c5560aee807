"""`mm medical deidentify`: cleaned copies and a report."""

from __future__ import annotations

from pathlib import Path

from mm.command import FAILED, OK, CommandParser, emit_json, emit_table

ABOUT = """Write copies of DICOM or NIfTI files without what names a person, under hashed names, and report what was
changed. An aid that follows the DICOM Basic Profile; compliance is not claimed: check the result."""


def run(argv: list[str]) -> int:
    """Run `mm medical deidentify`."""
    parser = CommandParser(
        "medical deidentify", about=ABOUT, example="mm medical deidentify dicom_folder/ --out clean/", json_output=True
    )
    parser.add_argument("source", metavar="SOURCE", help="file or folder")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder to write into")
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="secret of 16 bytes or more: runs with one key give the same pseudonyms (default: drawn and forgotten)",
    )
    parser.add_argument(
        "--allow-burned-in",
        action="store_true",
        help="also write screenshots and ultrasound, which may show text",
    )
    arguments = parser.parse_args(argv)

    from mm.medical.volumes.deidentify import Deidentifier

    key = Path(arguments.key_file).read_bytes().strip() if arguments.key_file else None
    cleaner = Deidentifier(key=key, allow_burned_in=arguments.allow_burned_in)
    report = cleaner.run(arguments.source, arguments.out)
    found = report.as_dict()
    if arguments.json:
        emit_json(found)
        return OK if report.written else FAILED
    if not report.written:
        raise ValueError(f"no file was written: {'; '.join(found['refused']) or 'there is none'}")
    if found["changes"]:
        emit_table(found["changes"], title="changed")
    print(f"{report.written} files written")
    for reason, count in found["refused"].items():
        print(f"{count} files not written: {reason}")
    for line in (*found["warnings"], found["note"]):
        print(f"note: {line}")
    return OK
