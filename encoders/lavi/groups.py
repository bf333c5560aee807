"""What is trained, and at which learning rate.

Stage 1 (align): projector and conditioners. Stage 2 (instruct): the language model as well, fully or through its LoRA
weights.
Deviation: the paper's recipe is unknown; stages and rates follow the baselines it compares with (LLaVA-1.5).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from mm.encoders.lavi.lavi import Lavi

Language = Literal["frozen", "lora", "full"]


def set_trainable(lavi: Lavi, language: Language = "frozen") -> None:
    """Choose which parameters get gradients; the visual path always does.

    Args:
        lavi: The model.
        language: "frozen" (text-only behaviour provably unchanged), "lora" (only what peft added) or "full".

    Raises:
        ValueError: "lora" without LoRA weights in the language model.
    """
    if language not in ("frozen", "lora", "full"):
        raise ValueError(f"language must be 'frozen', 'lora' or 'full', got {language!r}")
    named = list(lavi.language_model.named_parameters())
    if language == "lora" and not any(_is_lora(name) for name, _ in named):
        raise ValueError("language='lora', but the language model holds no LoRA weights; wrap it with peft first")
    for name, parameter in named:
        parameter.requires_grad_(language == "full" or (language == "lora" and _is_lora(name)))
    for module in (lavi.visual_proj, lavi.cond):
        module.requires_grad_(True)


def parameter_groups(
    lavi: Lavi,
    *,
    lr: float = 1e-3,
    out_lr: float | None = None,
    language_lr: float = 2e-5,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Optimiser groups of everything that requires a gradient; each parameter stands in exactly one.

    Args:
        lr: Projector and conditioners (stage 1: 1e-3, stage 2: 1e-4).
        out_lr: The zero-initialised output projections; None takes `lr`.
        language_lr: Language model or LoRA weights.
        weight_decay: Applied to matrices only; vectors and embeddings of the visual path get none.

    Returns:
        Groups with keys name, params, lr, weight_decay; empty groups are left out.
    """
    rates = {"visual": lr, "output": lr if out_lr is None else out_lr, "language": language_lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in lavi.named_parameters():
        if parameter.requires_grad:
            part = "language" if name.startswith("language_model.") else "output" if ".out_proj." in name else "visual"
            decays = parameter.ndim > 1 and not name.endswith("_emb")
            groups.setdefault((part, decays), []).append(parameter)
    return [
        {
            "name": part if decays else f"{part} (no decay)",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]


def _is_lora(name: str) -> bool:
    return "lora_" in name
