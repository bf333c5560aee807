"""Your own scans with their reports, as records: a text file beside each scan, or a table. Reports are scrubbed.

scans/patient_1/before.nii.gz      scans/patient_1/before.txt
scans/patient_2/ct/*.dcm           scans.csv: scan, report, patient
"""

from __future__ import annotations

from pathlib import Path

from mm.medical.datasets import Record, existing, hashed, needed, rows
from mm.medical.tasks.cases import ScanCase, find_cases
from mm.medical.volumes.deidentify_text import scrub_report

SCAN_COLUMNS = ("scan", "image", "imagepath", "volumename", "file")
REPORT_COLUMNS = ("report", "text", "caption", "findings", "findingsen")
PATIENT_COLUMNS = ("patient", "patientid", "study", "case")


def read_own_scans(folder: str | Path, table: str | Path | None = None) -> list[Record]:
    """Scans of a folder; the report is `NAME.txt` beside `NAME.nii.gz` (or beside the folder `NAME` of a DICOM scan).

    The patient of a scan is the first folder on its way, so scans of one person go into one folder; scans that lie in
    the folder itself are patients of their own.

    Args:
        folder: Scans.
        table: CSV instead of text files, see `read_table`.

    Raises:
        FileNotFoundError: nothing there, or a scan of the table is missing.
        ValueError: no scan, a report without a sentence, a missing column.
    """
    folder = Path(folder)
    if table is not None:
        return read_table(table, folder)
    return [
        Record(image=case.path, patient=hashed(_patient(case, folder)), report=scrub_report(case.report())[0])
        for case in find_cases(folder)
    ]


def read_table(path: str | Path, root: str | Path) -> list[Record]:
    """Rows of a table with the columns scan (or image), report, and patient if there is one.

    Args:
        path: CSV with a header; names are compared without case, spaces and underscores.
        root: Folder that paths start from.

    Raises:
        FileNotFoundError: a scan is missing.
        ValueError: a column is missing.
    """
    root = Path(root)
    records = []
    for line, row in rows(Path(path)):
        name = needed(row, line, *SCAN_COLUMNS)
        image = existing(root if root.is_dir() else root.parent, name, f"scan of line {line}")
        report = next((row[column].strip() for column in REPORT_COLUMNS if row.get(column, "").strip()), "")
        patient = next((row[column].strip() for column in PATIENT_COLUMNS if row.get(column, "").strip()), "")
        first = Path(name).parts[0] if len(Path(name).parts) > 1 else name
        records.append(Record(image=image, patient=hashed(patient or first), report=scrub_report(report)[0]))
    return records


def _patient(case: ScanCase, folder: Path) -> str:
    """First folder on the way to a scan, or the scan itself."""
    parts = case.path.relative_to(folder).parts
    return parts[0] if parts else "."
