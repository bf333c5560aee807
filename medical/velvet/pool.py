"""A pool of phantoms without noise, drawn once; every batch adds fresh noise where the pool lies (on the GPU, say).

Drawing takes 5 to 10 ms per phantom and core, a training step on a GPU far less: a pool keeps it busy. Patients come in
twins as in `mm.medical.velvet.data`, side by side.
Dims: P patients, B samples, N edge of a volume, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm.checkpoint import write_aside
from mm.data.split import Split
from mm.medical.phantom_reports import NORMAL, TEMPLATES, report
from mm.medical.phantoms import CHOICES, FIELD_OF_VIEW_MM, Case, render
from mm.medical.velvet.data import MAX_TOKENS, WINDOW_HU, phantom_tokenizer, twin_case

QUIET = {"noise": 0.0, "streaks": 0.0}
"""What `quiet` takes out of a patient; `disturbed` puts such things back."""
NOISE_HU, STREAKS_HU = (8.0, 22.0), (0.0, 14.0)
"""As `mm.medical.phantoms.draw_anatomy` draws them."""


def quiet(case: Case) -> Case:
    """The same patient without noise and streaks."""
    return replace(case, anatomy={**case.anatomy, **QUIET})


def shard(numbers: Sequence[int], size: int) -> dict[str, Tensor]:
    """The training patients of these numbers: `hu` (P, 1, N, N, N) int16 and the fields of `TokenBatch` (P, L)."""
    cases = [twin_case(Split("train").seed(number)) for number in numbers]
    scans = np.stack([render(quiet(case), size).hu for case in cases])
    tokens = phantom_tokenizer()([report(case) for case in cases], length=MAX_TOKENS)
    return {"hu": torch.from_numpy(scans)[:, None], **tokens.to_dict()}


def write_pool(
    folder: str | Path, patients: int, size: int, *, workers: int = 2, per_file: int = 500
) -> Iterator[Path]:
    """Draw a pool into files, one after another; files that exist are kept.

    Args:
        folder: Where the files go.
        patients: P, even.
        size: Voxels per edge.
        workers: Processes.
        per_file: Patients per file, even.

    Yields:
        Each file when it is there.
    """
    if patients % 2 or per_file % 2:
        raise ValueError(f"patients come in twins: {patients} and {per_file} must be even")
    starts = range(0, patients, per_file)
    parts = [range(start, min(start + per_file, patients)) for start in starts]
    paths = [Path(folder) / f"phantoms_{size}_{part.start:07d}_{part.stop:07d}.safetensors" for part in parts]
    if workers < 2:
        yield from map(partial(_write, size=size), parts, paths)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(_write, size=size), parts, paths)


def _write(part: Sequence[int], path: Path, size: int) -> Path:
    if not path.is_file():
        with write_aside(path) as temporary:
            save_file(shard(part, size), temporary)
    return path


class PhantomPool:
    """Patients in memory.

    Args:
        device: Where they lie and where batches are made.
        seed: Of the choice of patients and of their noise.
    """

    def __init__(self, device: str | torch.device = "cpu", seed: int = 0) -> None:
        self.device = torch.device(device)
        self.choice = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(self.device).manual_seed(seed)
        self.patients: dict[str, Tensor] = {}
        self.files: set[Path] = set()

    def __len__(self) -> int:
        return len(self.patients["hu"]) if self.patients else 0

    def read(self, folder: str | Path) -> int:
        """Take the files that are new in a folder; how many patients there are then."""
        paths = sorted(set(Path(folder).glob("phantoms_*.safetensors")) - self.files)
        self.add(*map(load_file, paths))
        self.files.update(paths)
        return len(self)

    def add(self, *shards: dict[str, Tensor]) -> None:
        """Take what `shard` gave."""
        for name in shards[0] if shards else ():
            old = [self.patients[name]] if self.patients.get(name) is not None else []
            self.patients[name] = torch.cat([*old, *(part[name].to(self.device) for part in shards)])

    def batch(self, size: int, *, twins: bool = True, length: int | None = None) -> dict[str, Tensor]:
        """A random batch with fresh noise.

        Args:
            size: Samples (B), even with twins.
            twins: Patients side by side with their twins, or each alone.
            length: Tokens to keep, at least those of the longest report; None cuts to it.

        Returns:
            `volume` (B, 1, N, N, N) in 0 .. 1 and the fields of `TokenBatch` (B, length).
        """
        pairs = torch.randint(len(self) // 2, (size // 2 if twins else size,), generator=self.choice)
        if twins:
            rows = torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()
        else:
            rows = 2 * pairs + torch.randint(2, (size,), generator=self.choice)
        index = rows.to(self.device)
        found = {name: value[index] for name, value in self.patients.items()}
        volume = windowed_with_noise(found.pop("hu"), self.noise)
        length = length or int(found["attention_mask"].sum(1).max())
        return {"volume": volume, **{name: value[:, :length] for name, value in found.items()}}


def longest_report() -> int:
    """Tokens of the longest report that a phantom can have: every place with the longer of its wordings."""
    total = 1
    for place, wordings in TEMPLATES.items():
        words = {name: values[0] for name, values in CHOICES[place].items()}
        texts = [text.format(**words) for text in wordings] + list(NORMAL.get(place, ()))
        total += max(int(phantom_tokenizer()([[text]]).attention_mask.sum()) - 1 for text in texts)
    return total


def windowed_with_noise(hu: Tensor, generator: torch.Generator) -> Tensor:
    """Add what a scanner adds, with strengths of its own for each volume, and window.

    Args:
        hu: (B, 1, N, N, N), HU, drawn without noise (`quiet`).
        generator: Draws noise and streaks, on the device of `hu`.

    Returns:
        (B, 1, N, N, N) float32 in 0 .. 1.
    """
    count, size, device = len(hu), hu.shape[-1], hu.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator, device=device)

    axis = (torch.arange(size, device=device) - (size - 1) / 2) * (FIELD_OF_VIEW_MM / size)
    x, y, z = axis[:, None, None], axis[None, :, None], axis[None, None, :]
    angle, wave = uniform(0, torch.pi), uniform(22, 40)
    stripes = torch.cos((angle.cos() * x + angle.sin() * y) * (2 * torch.pi / wave))
    slab = torch.exp(-(((z - uniform(-150, 150)) / 30) ** 2))
    noise = torch.randn(hu.shape, generator=generator, device=device) * uniform(*NOISE_HU)
    low, high = WINDOW_HU
    disturbed = hu.float() + noise + uniform(*STREAKS_HU) * stripes * slab
    return ((disturbed - low) / (high - low)).clamp(0, 1)
