"""Fine-tuning a finished vision-language model on CAD programs, with low-rank adapters."""

from __future__ import annotations

from pathlib import Path

from mm.cad.lora import AdapterConfig, Adapters
from mm.cad.manner import PUBLISHED
from mm.cad.model import trained_host
from mm.training.answers import AnswerModule
from mm.training.module import OptimizerConfig
from mm.vlm import VisionLanguageModel

ADAPTERS = "adapters"
"""Folder of the trained part, inside the folder of the run."""


class CadLoraModule(AnswerModule):
    """Train adapters on an OpenECAD or TinyLLaVA model. At the end they are saved alone and added to the weights.

    Args:
        start: Weights to start from: a shipped name, a folder or a hub id, in the layout of this toolkit, TinyLLaVA
            (OpenECAD among them) or LLaVA.
        adapters: What is trained.
        checkpointing: Recompute the language model's activations in the backward pass instead of keeping them.
        optimizer: Optimiser and schedule; the paper's are in the packaged configuration `cad/lora`.
    """

    model: VisionLanguageModel
    max_new_tokens = PUBLISHED.max_new_tokens

    def __init__(
        self,
        start: str = "openecad_tiny",
        adapters: AdapterConfig | None = None,
        checkpointing: bool = False,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        model = trained_host(start)
        super().__init__(model, optimizer)
        self.adapters = Adapters(model, adapters or AdapterConfig())
        if checkpointing:
            model.backbone.gradient_checkpointing()
        model.train()
        self.visual_tokens_in_sequence = model.tokens_per_picture

    def on_fit_end(self) -> None:
        """Keep the trained part, then hand the whole model back in its old layout."""
        if self.trainer.is_global_zero:
            self.adapters.save(Path(self.trainer.default_root_dir) / ADAPTERS)
        self.adapters.merge()
