"""The published files (hub id haoheliu/SemantiCodec) and their names for our tensors.

`encoder.ckpt` and `decoder.ckpt` are plain state dicts, the semantic codebook is an `.npy` beside them. Everything is
read without pickled objects, every name is accounted for, and what is left out is reported by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNUSED_ENCODER = (
    r"audiomae\.model\.(mask_token|decoder_(embed|pos_embed|blocks|norm|pred)\b.*)|quantizer\._codebook\.initted"
)
"""AudioMAE's reconstruction half, needed for its own pretraining alone, and a flag of the quantiser library."""
ENCODER_RENAMES = (
    (r"audiomae\.model\.(.*)", r"audiomae.\1"),
    (r"encoder\.((?:weight|bias)_[ih]h_l\d+(?:_reverse)?)", r"acoustic.lstm.\1"),
    (r"encoder_output_linear\.weight", r"acoustic.project.weight"),
    (r"quantizer\._codebook\.embed", r"quantizer.codebook"),
    (r"quantizer\._codebook\.cluster_size", r"quantizer.cluster_size"),
    (r"quantizer\._codebook\.embed_avg", r"quantizer.cluster_sum"),
)
"""Published name -> ours; the whole name must match."""


@dataclass
class Report:
    """What happened to every tensor of a file."""

    loaded: dict[str, str] = field(default_factory=dict)
    """Published name -> our name."""
    left_out: list[str] = field(default_factory=list)
    """Published tensors without a use here, by design."""
    unknown: list[str] = field(default_factory=list)
    """Published tensors that no rule knows; a load with any of these stops."""

    def summary(self) -> str:
        """One line."""
        return f"{len(self.loaded)} tensors loaded, {len(self.left_out)} left out, {len(self.unknown)} unknown"


def rename(
    tensors: Mapping[str, Tensor], renames: tuple[tuple[str, str], ...], unused: str, *, source: str
) -> tuple[dict[str, Tensor], Report]:
    """Our names for published tensors.

    Args:
        tensors: Published state dict.
        renames: Pairs of a pattern for the whole name and its replacement.
        unused: Pattern of names that are left out on purpose.
        source: Named in the error.

    Raises:
        ValueError: names that no rule knows; all are listed.
    """
    found: dict[str, Tensor] = {}
    report = Report()
    for name, value in tensors.items():
        if re.fullmatch(unused, name):
            report.left_out.append(name)
            continue
        ours = next((re.sub(rule, to, name) for rule, to in renames if re.fullmatch(rule, name)), None)
        if ours is None:
            report.unknown.append(name)
        else:
            found[ours] = value
            report.loaded[name] = ours
    if report.unknown:
        shown = ", ".join(report.unknown[:12]) + (" ..." if len(report.unknown) > 12 else "")
        raise ValueError(f"{source}: {len(report.unknown)} tensors are not part of the published layout: {shown}")
    return found, report


def encoder_state(tensors: Mapping[str, Tensor], *, source: str = "encoder.ckpt") -> tuple[dict[str, Tensor], Report]:
    """State of `SemantiCodecEncoder` from `encoder.ckpt`, without the semantic codebooks.

    The quantiser's tables carry a leading axis of one codebook, which goes.

    Raises:
        ValueError: names that are not part of the published layout.
    """
    found, report = rename(tensors, ENCODER_RENAMES, UNUSED_ENCODER, source=source)
    for name in ("quantizer.codebook", "quantizer.cluster_size", "quantizer.cluster_sum"):
        if name in found:
            found[name] = found[name].squeeze(0)
    found["quantizer.steps"] = torch.zeros((), dtype=torch.int64)
    return found, report


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a published `.ckpt`; nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the published models hold encoder.ckpt and decoder.ckpt")
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for damaged or unsafe files
        raise ValueError(f"{path}: cannot be read as a plain state dict ({error})") from error
    data = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"{path}: expected a state dict of tensors")
    return data


def read_codebook(path: str | Path, width: int) -> Tensor:
    """A semantic codebook (V, D) from `.npy`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a table of finite numbers of that width.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such codebook file (expected codebook_<half the vocabulary>_0.npy)")
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy table ({error})") from error
    if table.ndim != 2 or table.shape[1] != width:
        raise ValueError(f"{path}: a codebook for this token rate has {width} columns, found shape {table.shape}")
    return torch.from_numpy(table.astype(np.float32))
