"""Pre-training on your own reports: the tiny sizes, or the paper's, over a vocabulary of your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mm.medical.velvet.config import VelvetConfig
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.module import VelvetModule
from mm.medical.velvet.objectives import ObjectiveConfig
from mm.medical.velvet.presets import tiny_config
from mm.medical.velvet.tokenizer import SentenceTokenizer
from mm.training.module import OptimizerConfig, TrainingModule


class OwnVelvetModule(VelvetModule):
    """`VelvetModule` whose words come from a file.

    Args:
        vocabulary: `vocab.txt` from `mm medical vocabulary`, or of a BERT.
        size: "tiny", or "paper" for Bt + Sv.
        objective: Weights of the losses.
        config: Fields of `VelvetConfig` that differ from the size.
        max_tokens: Longest report.
        seed: Of the random weights, the masked words and the negatives.
        optimizer: Optimiser and schedule.
    """

    def __init__(
        self,
        vocabulary: str = "vocab.txt",
        size: str = "tiny",
        objective: ObjectiveConfig | None = None,
        config: dict[str, Any] | None = None,
        max_tokens: int = 512,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if not Path(vocabulary).is_file():
            raise FileNotFoundError(
                f"{vocabulary}: no such vocabulary; write one with `mm medical vocabulary SCANS --out {vocabulary}`"
            )
        if size not in ("tiny", "paper"):
            raise ValueError(f"size must be tiny or paper, got {size!r}")
        tokenizer = SentenceTokenizer.from_file(vocabulary, max_tokens=max_tokens)
        chosen = tiny_config(**(config or {})) if size == "tiny" else replace(VelvetConfig.preset(), **(config or {}))
        chosen = replace(chosen, text=tokenizer.text_config(chosen.text))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = VelvetModel(chosen, tokenizer=tokenizer)
        TrainingModule.__init__(self, model.train(), optimizer)  # VelvetModule would build a model of its own words
        self.objective = objective or ObjectiveConfig()
        self.seed = seed
