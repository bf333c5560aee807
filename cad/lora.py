"""Low-rank adapters for OpenECAD: the published recipe for a finished TinyLLaVA model.

Every linear layer of the language model's blocks and of the vision tower gets an adapter, except in heads; the
projector is trained whole; embeddings and everything else stay as they are.
Source: paper section 5 (rank 128, scale 256 / 128, dropout 0.05, no biases), LoRA (arXiv:2106.09685).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mm.checkpoint import CONFIG_FILE, config_from_dict, read_json, read_tensors, write_aside, write_json
from mm.extras import require
from mm.vlm import VisionLanguageModel

ADAPTERS_FILE = "adapters.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained of a finished model."""

    rank: int = 128
    """Rank r of the updates."""
    alpha: int = 256
    """Updates are scaled by alpha / rank."""
    dropout: float = 0.05
    """Dropout on the adapters' input."""
    tower: bool = True
    """Whether the vision tower gets adapters."""
    projector: bool = True
    """Whether the projector is trained, as a whole."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "rank must be at least 1, alpha above 0 and dropout in [0, 1), got "
                f"{self.rank}, {self.alpha} and {self.dropout}"
            )


class Adapters:
    """The trainable part of a model. It changes the model in place until `merge`.

    Args:
        model: Any host of `mm.vlm`; nothing but adapters and, if wanted, its projector keeps gradients.
        config: What is trained.

    Raises:
        ImportError: peft is not installed.
    """

    def __init__(self, model: VisionLanguageModel, config: AdapterConfig) -> None:
        require("peft", extra="train", purpose="LoRA")
        self.model, self.config = model, config
        model.requires_grad_(False)
        model.backbone.freeze().lora(rank=config.rank, alpha=config.alpha, dropout=config.dropout)
        self._tower: Any = None
        if config.tower:
            self._tower = self._adapt_tower()
        else:
            model.tower.freeze()
        model.projector.requires_grad_(config.projector)

    def _adapt_tower(self) -> Any:
        """The `peft.PeftModel` around the tower's own module, which stays where it is."""
        peft = require("peft", extra="train", purpose="LoRA")
        module = self.model.tower.module
        names = [n for n, part in module.named_modules() if isinstance(part, nn.Linear) and "head" not in n]
        if not names:
            raise ValueError(f"the tower {type(module).__name__} has no linear layer to adapt; set tower to false")
        config = self.config
        found = peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names, bias="none"
        )
        return peft.get_peft_model(module, found)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names in the model and parameters that are trained."""
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    def merge(self) -> VisionLanguageModel:
        """Add the updates to the weights; the model then has its old layout and computes the same up to rounding."""
        self.model.backbone.merge_lora()
        if self._tower is not None:
            self._tower.merge_and_unload()
        return self.model

    def save(self, path: str | Path) -> Path:
        """Write what was trained and nothing else: a small file to keep beside the published weights."""
        with write_aside(path) as folder:
            folder.mkdir()
            write_json(folder / CONFIG_FILE, asdict(self.config))
            state = {name: value.detach().contiguous().cpu() for name, value in self.parameters()}
            save_file(state, folder / ADAPTERS_FILE, metadata={"format": "pt"})
        return Path(path)


def load_adapters(model: VisionLanguageModel, path: str | Path) -> Adapters:
    """Put saved adapters onto the model that they were trained for.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: they belong to another model; the tensors are named.
    """
    folder = Path(path)
    config = config_from_dict(AdapterConfig, read_json(folder / CONFIG_FILE), source=str(folder / CONFIG_FILE))
    tensors = read_tensors(folder / ADAPTERS_FILE)
    adapters = Adapters(model, config)
    own = dict(adapters.parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise ValueError(f"{folder}: not the adapters of this model; {len(wrong)} tensors differ: {wrong[:6]}")
    _copy(own, tensors)
    return adapters


@torch.no_grad()
def _copy(own: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    for name, value in own.items():
        value.copy_(tensors[name])
