"""Train a decoder cheaply: low-rank adapters on its linear layers, and recomputed activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from mm.backbone.graft import grafted_children, grafted_parameters
from mm.backbone.spec import BackboneSpec
from mm.extras import require


def add_lora(
    model: nn.Module, spec: BackboneSpec, *, rank: int, alpha: float, dropout: float, targets: Sequence[str]
) -> Any:
    """Put low-rank adapters into `model`, in place; only they and grafted parts stay trainable.

    Returns:
        The `peft.PeftModel` around `model` (for saving, switching off, merging).

    Raises:
        ImportError: peft is not installed.
        ValueError: no linear layer has one of the target names.
    """
    peft = require("peft", extra="train", purpose="LoRA")
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    chosen = {name: m for name, m in linear.items() if name.rpartition(".")[2] in targets}
    found = {name.rpartition(".")[2] for name in chosen}
    if set(targets) - found:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(
            f"lora: no linear layer named {', '.join(sorted(set(targets) - found))}; this {spec.family} model has "
            f"{', '.join(known)}"
        )
    attached = {id(m) for child in grafted_children(model) for m in child.modules()}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        # A graft may call its own layers q_proj or the like; they are trained fully, not adapted.
        exclude_modules=[name for name, m in chosen.items() if id(m) in attached] or None,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in chosen.values()),
        bias="none",
    )
    trainable = [(p, p.requires_grad) for p in grafted_parameters(model)]
    wrapper = peft.get_peft_model(model, config)
    for parameter, flag in trainable:
        parameter.requires_grad_(flag)
    return wrapper


def added_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that do not belong to the language model itself: grafted ones and low-rank adapters."""
    yield from grafted_parameters(model)
    yield from (parameter for name, parameter in model.named_parameters() if ".lora_" in name)


def added_modules(model: Any) -> Iterator[nn.Module]:
    """Modules that do not belong to the language model itself: grafted children and adapter dropout."""
    yield from grafted_children(model)
    yield from (module.lora_dropout for module in model.modules() if hasattr(module, "lora_dropout"))


def set_checkpointing(model: Any, enabled: bool) -> None:
    """Recompute block activations in the backward pass instead of keeping them, always without re-entrant autograd.

    The re-entrant variant loses gradients of tensors that reach a block from the side (a visual context) in silence.
    """
    with warnings.catch_warnings():
        # The old name works in every 5.x release; the new one only in the latest.
        warnings.simplefilter("ignore", FutureWarning)
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()


def check_checkpointing(block: nn.Module) -> None:
    """Refuse checkpointing that somebody else switched on in its re-entrant form.

    Raises:
        ValueError: it is on, and re-entrant.
    """
    if not (block.training and getattr(block, "gradient_checkpointing", False)):
        return
    function = getattr(block, "_gradient_checkpointing_func", None)
    if isinstance(function, partial) and function.keywords.get("use_reentrant", True):
        raise ValueError(
            "gradient checkpointing is on with use_reentrant=True, which loses gradients of grafted parts; switch "
            "it on by LanguageBackbone.gradient_checkpointing() or pass use_reentrant=False"
        )


def keep_recomputing(block: nn.Module, mode: bool) -> None:
    """Let a frozen block (in evaluation mode) still recompute: Hugging Face ties that to the block's training flag.

    Raises:
        ValueError: the block itself applies dropout by that flag (OPT), which would come on with it.
    """
    if not getattr(block, "gradient_checkpointing", False):
        return
    dropout = getattr(block, "dropout", 0.0)
    if mode and isinstance(dropout, float) and dropout > 0:
        raise ValueError(
            f"{type(block).__name__} drops out with p={dropout} whenever it recomputes activations, so it cannot "
            "be frozen and checkpointed; set dropout=0.0 in the model's config"
        )
    block.training = mode
