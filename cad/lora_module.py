"""Fine-tuning a finished vision-language model on CAD programs, with low-rank adapters."""

from __future__ import annotations

from pathlib import Path

from mm.cad.lora import AdapterConfig, Adapters
from mm.cad.model import MAX_NEW_TOKENS
from mm.checkpoint import CONFIG_FILE, load, read_json, resolve
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
    max_new_tokens = MAX_NEW_TOKENS

    def __init__(
        self,
        start: str = "openecad_tiny",
        adapters: AdapterConfig | None = None,
        checkpointing: bool = False,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        model = finished(start)
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


def finished(start: str) -> VisionLanguageModel:
    """A trained host of this toolkit (in its own class), or of a published layout.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: another kind of model, or one without a tokenizer to read programs with.
    """
    folder = resolve(start)
    ours = "model_class" in read_json(folder / CONFIG_FILE)
    model = load(folder) if ours else VisionLanguageModel.from_pretrained(folder)
    if not isinstance(model, VisionLanguageModel):
        raise ValueError(f"{start}: a {type(model).__name__} has no separate tower and projector to adapt")
    if model.processor.tokenizer.eos_token_id is None:
        raise ValueError(f"{start}: the tokenizer has no end-of-text token; a program could not be ended")
    return model
