"""Does pre-training help segmentation? A SwinUNETR on phantoms, from the pre-trained encoder and from random weights.

python -m mm.medical.velvet.transfer --model velvet_tiny --seeds 3
python -m mm.medical.velvet.transfer --model velvet_tiny --scans 200 --steps 500 --batch-size 4 --out runs/segmenter
Dims: B scans, X voxels per edge.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoint import load
from mm.command import emit_json, emit_table
from mm.data.split import Split, SplitName
from mm.extras import require
from mm.medical.phantoms import LABELS, Phantom, draw_case, render
from mm.medical.velvet.data import windowed
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.presets import TINY_SEGMENTER
from mm.medical.velvet.segmenter import Segmenter
from mm.medical.velvet.vision import VisionEncoder

logger = logging.getLogger(__name__)

GOOD = 0.8
"""Dice that every organ must reach."""


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How a segmentation network is trained."""

    size: int = 64
    """Edge of the scans, voxels; a multiple of 32."""
    scans: int = 32
    """Labelled scans to learn from."""
    held_out: int = 16
    """Scans to score on."""
    steps: int = 300
    """Optimiser steps."""
    every: int = 20
    """Steps between two scores."""
    batch_size: int = 2
    """Scans per step (B)."""
    lr: float = 5e-3
    """Peak rate of AdamW."""


@cache
def labelled_scans(split: SplitName, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Volumes (B, 1, X, X, X) in 0 .. 1 and label maps (B, 1, X, X, X) int64 of the first patients of a split."""
    scans = [render(draw_case(Split(split).seed(2 * number)), size) for number in range(count)]
    labels = torch.stack([torch.from_numpy(scan.labels.astype("int64"))[None] for scan in scans])
    return _images(scans), labels


def _images(scans: Sequence[Phantom]) -> Tensor:
    """Windowed volumes (B, 1, X, X, X)."""
    return torch.stack([windowed(scan.hu) for scan in scans])


@dataclass(frozen=True)
class Learnt:
    """A trained network and how it got there."""

    network: Segmenter
    rows: list[dict[str, float]]
    """One row per score: step, Dice of every organ, mean and worst."""

    @property
    def steps_to_good(self) -> float:
        """First step at which every organ reaches `GOOD`, infinite if none."""
        return next((row["step"] for row in self.rows if row["worst"] >= GOOD), float("inf"))


def learn(
    encoder: VisionEncoder,
    *,
    pretrained: bool,
    seed: int,
    config: TransferConfig,
    device: str = "cpu",
    out: str | None = None,
) -> Learnt:
    """Train one network and score it along the way.

    Args:
        encoder: Gives the sizes, and the weights if `pretrained`.
        pretrained: Copy the encoder; False leaves the network random.
        seed: Of the random weights and the order of scans.
        config: Data and optimiser.
        device: Where to train.
        out: Folder that the weights are written to with every score.
    """
    torch.manual_seed(seed)
    network = Segmenter(replace(TINY_SEGMENTER, vision=encoder.config))
    if pretrained:
        network.take_encoder(encoder)
    network.to(device).train()
    images, labels = (part.to(device) for part in labelled_scans("train", config.scans, config.size))
    held_out = tuple(part.to(device) for part in labelled_scans("validation", config.held_out, config.size))
    losses = require("monai.losses", extra="medical", purpose="Segmentation")
    loss_of = losses.DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for step in range(1, config.steps + 1):
        picked = torch.randint(config.scans, (config.batch_size,), generator=generator).to(device)
        loss = loss_of(network(images[picked]), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % config.every == 0 or step == config.steps:
            rows.append({"step": step, **dice(network, *held_out)})
            if out is not None:
                network.save_pretrained(out, dtype=torch.float16)
                logger.info("step %d: worst organ %.3f", step, rows[-1]["worst"])
    return Learnt(network.eval(), rows)


@torch.no_grad()
def dice(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Dice of every organ over all voxels of all scans, 2 |A and B| / (|A| + |B|), their mean and the worst."""
    network.eval()
    found = torch.cat([network(part).argmax(1, keepdim=True) for part in images.split(4)])
    network.train()
    scores = {}
    for value, name in enumerate(LABELS[1:], 1):
        ours, truth = found == value, labels == value
        scores[name] = (2 * (ours & truth).sum() / (ours.sum() + truth.sum()).clamp(min=1)).item()
    return scores | {"mean": sum(scores.values()) / len(scores), "worst": min(scores.values())}


def evaluate(model: Segmenter, *, seed: int, count: int = 16) -> dict[str, float]:
    """Dice of every organ on patients of the test split, for `mm zoo verify`.

    Args:
        model: With weights.
        seed: Which patients; parts do not overlap.
        count: Patients.
    """
    first = seed * count
    scans = [render(draw_case(Split("test").seed(2 * (first + number))), model.config.patch) for number in range(count)]
    labels = torch.stack([torch.from_numpy(scan.labels.astype("int64"))[None] for scan in scans])
    return {f"dice_{name}": value for name, value in dice(model, _images(scans), labels).items()}


def compare(
    encoder: VisionEncoder, seeds: int, config: TransferConfig, device: str
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, float]]]]:
    """One row per seed: steps to a Dice of 0.8 everywhere and the final worst organ, both ways; and the curves."""
    table, curves = [], {}
    for seed in range(seeds):
        row: dict[str, Any] = {"seed": seed}
        for start in ("pretrained", "random"):
            found = learn(encoder, pretrained=start == "pretrained", seed=seed, config=config, device=device)
            curves[f"{start} {seed}"] = found.rows
            row |= {f"{start}_steps": found.steps_to_good, f"{start}_worst": found.rows[-1]["worst"]}
        table.append(row)
    return table, curves


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="velvet_tiny", help="shipped name or model folder (default: velvet_tiny)")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind (default: 3)")
    for name in ("scans", "steps", "every", "batch_size", "lr"):
        default = getattr(TransferConfig, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--out", help="train one network from the pre-trained encoder and write it to this folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="machine-readable output with the curves")
    arguments = parser.parse_args(argv)
    model = load(arguments.model)
    if not isinstance(model, VelvetModel):
        raise ValueError(f"{arguments.model} holds a {type(model).__name__}, not a VelvetModel")
    fields = {name: getattr(arguments, name) for name in ("scans", "steps", "every", "batch_size", "lr")}
    config = TransferConfig(**fields)
    curves: dict[str, list[dict[str, float]]] = {}
    table: list[dict[str, Any]]
    if arguments.out:
        found = learn(model.vision, pretrained=True, seed=0, config=config, device=arguments.device, out=arguments.out)
        table = [dict(row) for row in found.rows]
    else:
        table, curves = compare(model.vision, arguments.seeds, config, arguments.device)
    if arguments.json:
        emit_json({"config": asdict(config), "table": table, "curves": curves})
    else:
        emit_table(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
