"""A training module and a data module of a few numbers, for tests of the machinery around them."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mm.checkpoint import Pretrained
from mm.training.module import OptimizerConfig, TrainingModule


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Sizes of the toy network."""

    width: int = 8
    """Hidden channels."""
    dropout: float = 0.2
    """Share of hidden channels that is dropped in training."""


class ToyModel(Pretrained, nn.Module):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(4, config.width), nn.LayerNorm(config.width), nn.Dropout(config.dropout))
        self.head = nn.Linear(config.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(self.frozen(x)))


OPTIMIZER = OptimizerConfig(lr=0.05, warmup=0.1)


class ToyModule(TrainingModule):
    def __init__(
        self,
        width: int = 8,
        dropout: float = 0.2,
        ragged: bool = False,
        pause_s: float = 0.0,
        optimizer: OptimizerConfig = OPTIMIZER,
    ) -> None:
        super().__init__(ToyModel(ToyConfig(width=width, dropout=dropout)), optimizer)
        self.ragged, self.pause_s = ragged, pause_s

    def compute_loss(self, batch: dict) -> tuple[Tensor, dict]:
        time.sleep(self.pause_s)
        error = (self.model(batch["x"]) - batch["y"]).square()
        if self.ragged:  # like answers of different length: samples with a negative first number have no term
            kept = (batch["x"][:, :1] > 0).float()
            return (error * kept).sum() / kept.sum().clamp(min=1), {"weight": kept.sum()}
        return error.mean(), {"visual_tokens_per_sample": 3.0}

    def predict_step(self, batch: dict, batch_idx: int) -> list[dict]:
        return [{"answer": round(value, 4)} for value in self.model(batch["x"]).flatten().tolist()]


def sample(index: int) -> dict:
    x = torch.randn(4, generator=torch.Generator().manual_seed(index))
    return {"x": x, "y": x.sum(dim=0, keepdim=True)}


class Stream(IterableDataset):
    """Endless samples from a position on; every process takes its share of each global batch."""

    def __init__(self, start: int, batch: int, rank: int, world: int) -> None:
        self.start, self.batch, self.rank, self.world = start, batch, rank, world

    def __iter__(self) -> Iterator[dict]:
        share = self.batch // self.world
        step = self.start
        while True:
            for k in range(share):
                yield sample(step * self.batch + self.rank * share + k)
            step += 1


class ToyData(LightningDataModule):
    def __init__(self, batch: int = 4, train: str = "") -> None:
        super().__init__()
        self.batch, self.position = batch, 0

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        stream = Stream(self.position, self.batch, trainer.global_rank, trainer.world_size)
        return DataLoader(stream, batch_size=self.batch // trainer.world_size)

    def _held_out(self) -> DataLoader:
        return DataLoader([sample(-1 - k) for k in range(6)], batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = _held_out

    def state_dict(self) -> dict:
        return {"position": self.trainer.fit_loop.epoch_loop.batch_progress.total.ready}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]


def write_config(path: Path, **sections: object) -> Path:
    """A run configuration over the toy classes, with sections replaced or added."""
    base = {
        "model": {"class_path": "toy.ToyModule"},
        "data": {"class_path": "toy.ToyData"},
        "trainer": {"max_steps": 20, "accelerator": "cpu", "logger": False, "log_every_n_steps": 1, "devices": 1},
        "save_every": 5,
    }
    path.write_text(json.dumps(base | sections))  # JSON is YAML
    return path


def job(words: list[str], log: Path) -> None:
    """The `mm` program in a process of its own; what it prints goes to a file."""
    from mm.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(words))
