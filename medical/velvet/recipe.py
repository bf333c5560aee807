"""How `velvet_tiny` is made: pre-training on a pool of phantoms for a given time, scored along the way.

    python -m mm.medical.velvet.recipe --out runs/velvet --seconds 1500
    python -m mm.medical.velvet.recipe --pool runs/pool --patients 40000 --workers 4   # only draw the pool

One process may draw the pool while another trains on what is there already.
Dims: B samples.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import config_from_dict, load_state
from mm.medical.velvet.captured import CapturedStep, step
from mm.medical.velvet.centre import centre_levels
from mm.medical.velvet.config import VelvetConfig
from mm.medical.velvet.data import phantom_tokenizer
from mm.medical.velvet.evaluate import all_scores
from mm.medical.velvet.graft import graft_vision
from mm.medical.velvet.held_out import HeldOut, held_out
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.objectives import ObjectiveConfig, pretraining_losses
from mm.medical.velvet.pool import PhantomPool, longest_report, write_pool
from mm.medical.velvet.presets import tiny_config

OBJECTIVE = ObjectiveConfig(views=0.0, rotation=0.0, reconstruction=0.0, mask_share=0.3)
"""Without the views of crops: they cost two more passes of the vision encoder per step."""
TRIAL = 7
"""Part of the test split that runs are scored on along the way; the shipped figures are of part 0."""
LONGEST = longest_report()
"""Tokens of the longest report that phantoms can have; one shape for all batches."""


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """One training run."""

    seconds: float = 1500.0
    """Length of the run; the schedule follows the clock."""
    batch_size: int = 64
    """Samples per step (B), twins side by side."""
    lr: float = 2e-3
    """Peak rate of AdamW; warm-up over the first twentieth, then a cosine to a hundredth."""
    weight_decay: float = 0.02
    """Of matrices and vectors alike, as published."""
    easy: float = 0.15
    """Share of the run without twins: the contrast first tells patients apart, then one word."""
    seed: int = 0
    """Of weights, batches, masked words and negatives."""
    eager: bool = False
    """Launch every operation from Python on a GPU, too."""
    report_every: float = 60.0
    """Seconds between two lines of scores."""
    objective: ObjectiveConfig = field(default_factory=lambda: OBJECTIVE)
    """Weights of the losses."""


def train(model: VelvetModel, pool: PhantomPool, config: RecipeConfig, *, out: Path, more: Path | None = None) -> None:
    """Train in place, keep the weights in `out/model` and the scores in `out/scores.jsonl` along the way.

    Args:
        model: On the device of the pool.
        pool: Patients.
        config: Settings.
        out: Folder of the run.
        more: Folder with further files of the pool, looked at every hundred steps.
    """
    learn = _learner(model, pool, config)
    data = held_out(TRIAL, 128, model.config.vision.volume_size)
    begun, due, steps = time.perf_counter(), config.report_every, 0
    running: dict[str, float] = {}
    while (spent := time.perf_counter() - begun) < config.seconds:
        done = spent / config.seconds
        if more is not None and steps % 100 == 0:
            pool.read(more)
        batch = pool.batch(config.batch_size, twins=done >= config.easy, length=LONGEST)
        losses = learn(batch, config.lr * rate(done))
        steps += 1
        if steps % 20 == 0:
            for name, value in losses.items():
                running[name] = 0.8 * running.get(name, float(value)) + 0.2 * float(value)
        if spent > due:
            due += config.report_every
            keep(model, out, _row(spent, steps, pool) | running | scores(model, data))
    keep(model, out, _row(config.seconds, steps, pool) | running | scores(model, data))


def _learner(
    model: VelvetModel, pool: PhantomPool, config: RecipeConfig
) -> Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]:
    """(batch, learning rate) -> losses, after one optimiser step; recorded as a CUDA graph on a GPU."""
    gpu = pool.device.type == "cuda" and not config.eager
    generator = None if gpu else torch.Generator().manual_seed(config.seed)
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(
        parameters,
        lr=torch.tensor(1e-8, device=pool.device) if gpu else config.lr,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        capturable=gpu,
    )

    def compute(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return pretraining_losses(model, batch, config.objective, generator)

    captured = None
    if gpu:
        captured = CapturedStep(compute, parameters, optimizer, pool.batch(config.batch_size, length=LONGEST))

    def learn(batch: Mapping[str, Tensor], lr: float) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].fill_(lr) if gpu else lr
        return captured(batch) if captured else step(compute, parameters, optimizer, batch)

    return learn


def rate(done: float, warmup: float = 0.05, floor: float = 0.01) -> float:
    """Share of the peak rate when this share of the run is done."""
    if done < warmup:
        return done / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _row(seconds: float, step: int, pool: PhantomPool) -> dict[str, Any]:
    return {"seconds": round(seconds), "step": step, "patients": len(pool)}


def scores(model: VelvetModel, data: HeldOut) -> dict[str, float]:
    """The scores of `mm.medical.velvet.evaluate`, on other held-out patients than those of the shipped figures."""
    model.eval()
    found = all_scores(model, data)
    model.train()
    return found


def keep(model: VelvetModel, out: Path, row: dict[str, Any]) -> None:
    """Save the weights, print and append a line of scores."""
    model.save_pretrained(out / "model", dtype=torch.float16)
    row = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    print(json.dumps(row), file=sys.stderr, flush=True)
    with (out / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def changed(config: VelvetConfig, changes: dict[str, Any]) -> VelvetConfig:
    """A config with some fields replaced, nested ones as nested dictionaries."""
    data = asdict(config)
    for name, value in ({"vision_heads": False} | changes).items():
        data[name] = data.get(name, {}) | value if isinstance(value, dict) else value
    return config_from_dict(VelvetConfig, data, source="--model")


def started(folder: Path, changes: dict[str, Any]) -> VelvetModel:
    """A trained model under a config of which some fields are replaced; the tensors must still fit."""
    trained = VelvetModel.from_pretrained(folder)
    model = VelvetModel(changed(trained.config, changes), tokenizer=trained.tokenizer)
    load_state(model, trained.state_dict(), source=str(folder))
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument("--pool", type=Path, help="folder of the pool (default: OUT/pool)")
    parser.add_argument(
        "--patients", type=int, default=8000, help="size of the pool; 0 takes what another process draws"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--set", default="{}", help='fields of RecipeConfig as JSON, for instance {"seconds": 60}')
    parser.add_argument("--objective", default="{}", help="fields of ObjectiveConfig as JSON")
    parser.add_argument("--model", default="{}", help="fields of VelvetConfig as JSON")
    parser.add_argument("--start", type=Path, help="go on from the model in this folder")
    parser.add_argument("--vision", type=Path, help="with the vision encoder of the model in this folder")
    arguments = parser.parse_args(argv)
    if arguments.pool is None and arguments.out is None:
        parser.error("give --out, --pool or both")
    pool_folder = arguments.pool or arguments.out / "pool"
    torch.manual_seed(0)
    model = VelvetModel(changed(tiny_config(), json.loads(arguments.model)), tokenizer=phantom_tokenizer())
    if arguments.start:
        model = started(arguments.start, json.loads(arguments.model))
    if arguments.patients:
        for path in write_pool(
            pool_folder, arguments.patients, model.config.vision.volume_size, workers=arguments.workers
        ):
            print(path.name, file=sys.stderr, flush=True)
    if arguments.out is None:
        return 0
    settings = json.loads(arguments.set)
    objective = ObjectiveConfig(**(asdict(OBJECTIVE) | json.loads(arguments.objective)))
    config = RecipeConfig(**settings, objective=objective)
    pool = PhantomPool(arguments.device, config.seed)
    while not pool.read(pool_folder):
        time.sleep(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    model.to(arguments.device)
    if arguments.vision:
        donor = VelvetModel.from_pretrained(arguments.vision, device=arguments.device)
        graft_vision(model, donor, pool.batch(256, twins=False))
    elif not arguments.start:
        centre_levels(model, pool.batch(64, twins=False))
    train(model, pool, config, out=arguments.out, more=pool_folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
