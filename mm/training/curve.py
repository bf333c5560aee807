"""The loss curve as a CSV file that survives a kill: rows are appended, a resumed run drops those it will repeat."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mm.checkpoint import write_aside


class CurveLogger(Logger):
    """Appends one row per logged step to `metrics.csv`.

    Lightning's CSV logger starts a new file for every process and rewrites it in memory; this one continues a file.

    Args:
        folder: Where `metrics.csv` stands.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Always "curve"."""
        return "curve"

    @property
    def version(self) -> str:
        """One file per run folder, hence no version."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the file."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        """The file."""
        return self.path

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration is saved as a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; a new column rewrites the file once."""
        row = {"step": step, **{key: value for key, value in metrics.items() if key != "epoch"}}
        columns = self._known_columns()
        new = [key for key in row if key not in columns]
        if new:
            self._rewrite(self.rows(), [*columns, *new])
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns or []).writerow(row)

    @rank_zero_only
    def start(self, step: int) -> None:
        """Begin at an optimiser step: keep rows up to it, drop later ones; step 0 begins an empty file."""
        kept = [row for row in self.rows() if int(row["step"]) <= step] if step else []
        self._rewrite(kept, self._known_columns() if kept else [])

    def rows(self) -> list[dict[str, str]]:
        """Rows so far; a row that a kill cut off is left out."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and (row["step"] or "").isdigit()]

    def _known_columns(self) -> list[str]:
        if self._columns is None:
            self._columns = []
            if self.path.is_file():
                with self.path.open(newline="", encoding="utf-8") as file:
                    self._columns = next(csv.reader(file), [])
        return self._columns

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        self._columns = columns
        with write_aside(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            if columns:
                writer.writeheader()
            writer.writerows(rows)
