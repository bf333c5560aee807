"""DeepCAD's accuracy of commands and parameters on its padded vectors of 256 levels.

Source: DeepCAD (Wu et al. 2021, arXiv:2105.09492), section 5.1, tolerance eta = 3.
Dims: n rows, 17 columns (command, 16 parameters).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LINE, ARC, CIRCLE, END, START, EXTRUDE = range(6)
COLUMNS = {LINE: (1, 2), ARC: (1, 2, 3, 4), CIRCLE: (1, 2, 5), EXTRUDE: tuple(range(6, 17))}
"""Command -> the columns of its parameters."""
EXACT = (4, 15, 16)
"""Columns that are choices, not sizes: arc direction, operation, extent type."""
TOLERANCE = 3
ROWS = 60
"""Rows of a padded vector."""


def padded(vector: NDArray[np.int64], rows: int = ROWS) -> NDArray[np.int64]:
    """A vector filled up with end rows, (rows, 17).

    Raises:
        ValueError: it has more rows.
    """
    if len(vector) > rows:
        raise ValueError(f"the vector has {len(vector)} rows, DeepCAD's hold {rows}")
    filler = np.full((rows - len(vector), 17), -1, dtype=np.int64)
    filler[:, 0] = END
    return np.concatenate([vector, filler])


def vector_accuracy(predicted: NDArray[np.int64], reference: NDArray[np.int64]) -> dict[str, float]:
    """`acc_cmd`: share of rows with the right command; `acc_param`: share of right parameters where the command is.

    Args:
        predicted, reference: Vectors of at most 60 rows, (n, 17).
    """
    found, true = padded(np.asarray(predicted)), padded(np.asarray(reference))
    same = found[:, 0] == true[:, 0]
    right = []
    for row in np.flatnonzero(same):
        for column in COLUMNS.get(int(true[row, 0]), ()):
            difference = abs(int(found[row, column]) - int(true[row, column]))
            right.append(difference == 0 if column in EXACT else difference < TOLERANCE)
    return {"acc_cmd": float(same.mean()), "acc_param": float(np.mean(right)) if right else 0.0}
