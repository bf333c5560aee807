"""Vision-infused layer normalisation (ViLN): a pretrained norm whose affine parameters get a delta per token.

    ViLN(h | V) = (gamma + dgamma) * xhat + (beta + dbeta) = norm(h) + dgamma * xhat + dbeta

The second form is the one computed: norm(h) comes from the untouched pretrained module in its own rounding, the delta
branch is added in float32 and rounded once. So zero deltas give the pretrained result bit for bit, and deltas below the
resolution of a large bfloat16 weight are not lost (gamma + dgamma would lose them).

xhat is h standardised the way the norm does it: RMS norms (Llama, Qwen, Gemma) do not subtract the mean, LayerNorm
does. RMS norms have no shift of their own; dbeta is added all the same.

Source: arXiv:2506.16691, abstract (additive, token-wise, vision-conditioned deltas on both affine parameters).
Deviation: how the authors treat the missing shift of RMS norms is not known; subtracting a mean would change the
language model, so none is subtracted.
Dims: B context rows, K text rows per context row, N text tokens, D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mm.backbone.graft import graft
from mm.encoders.lavi.conditioners.base import SiteConditioner
from mm.encoders.lavi.stage import Stage

NormKind = Literal["rms", "rms1p", "layer"]


class ViLN:
    """Mixin that is grafted onto one pretrained norm; `viln` says what modulates it."""

    viln: Modulation

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., D) as before and, while a visual context is in force, add the visual delta."""
        plain = super().forward(hidden_states)  # type: ignore[misc]
        return self.viln(self, hidden_states, plain)  # type: ignore[arg-type]


class Modulation:
    """The visual part of one norm. A plain object, so that the conditioner stays out of the norm's state dict."""

    def __init__(
        self, conditioner: SiteConditioner, stage: Stage, *, kind: NormKind, layer: int, site: str, relative: bool
    ) -> None:
        self.conditioner, self.stage = conditioner, stage
        self.kind, self.layer, self.site, self.relative = kind, layer, site, relative

    def __call__(self, norm: nn.Module, hidden_states: Tensor, plain: Tensor) -> Tensor:
        """norm(h) plus the delta of the context in force; `plain` itself when there is none."""
        frame = self.stage.frame
        if frame is None or self.stage.delta_scale == 0.0:
            return plain
        rows = frame.context.batch_size
        if plain.shape[0] % rows:
            raise ValueError(
                f"the visual context has {rows} rows, the text batch {plain.shape[0]}; pass one row of context per text"
            )
        # Beams of one sample share its pictures: put behind each other on the token axis, they read memory once.
        tokens = plain.reshape(rows, -1, plain.shape[-1])  # (B, K*N, D)
        scale, shift = self.conditioner(tokens, frame.context.memory[self.layer], frame.view.mask)
        branch = self.branch(norm, hidden_states.reshape(tokens.shape), scale, shift)
        if frame.recorder is not None:
            frame.recorder.record(self, norm, hidden_states, plain, scale, shift, frame)
        result = (tokens.to(branch.dtype) + self.stage.delta_scale * branch).to(plain.dtype)
        if frame.view.gate is not None:
            result = torch.where(frame.view.gate.unsqueeze(-1), result, tokens)
        return result.reshape(plain.shape)

    def branch(self, norm: nn.Module, hidden_states: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """dgamma * xhat + dbeta in float32 (or wider, if the model is); a missing delta counts as zero."""
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        parts = []
        if scale is not None:
            scale = scale.to(wide)
            if self.relative:
                scale = scale * effective_weight(norm, self.kind)
            parts.append(scale * standardised(hidden_states, norm, self.kind))
        if shift is not None:
            parts.append(shift.to(wide))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def standardised(hidden_states: Tensor, norm: nn.Module, kind: NormKind) -> Tensor:
    """xhat in float32 or wider, (..., D): h / sqrt(mean(h^2) + eps), for LayerNorm with the mean taken off first."""
    hidden = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    if kind == "layer":
        hidden = hidden - hidden.mean(dim=-1, keepdim=True)
    return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + epsilon(norm))


def epsilon(norm: nn.Module) -> float:
    """The constant under the square root of a norm, whatever its class calls it.

    Raises:
        ValueError: the norm has none of the known attributes.
    """
    for name in ("variance_epsilon", "eps", "epsilon"):
        value = getattr(norm, name, None)
        if value is not None:
            return float(value)
    raise ValueError(
        f"{type(norm).__name__} has no attribute variance_epsilon, eps or epsilon; LaVi cannot modulate it"
    )


def effective_weight(norm: nn.Module, kind: NormKind) -> Tensor | float:
    """gamma in float32: the stored weight, 1 + weight for Gemma, 1 for norms without affine parameters."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return 1.0
    return 1.0 + weight.float() if kind == "rms1p" else weight.float()


def modulate(norm: nn.Module, modulation: Modulation) -> nn.Module:
    """Turn one norm into a ViLN in place; `mm.backbone.graft.ungraft` undoes it.

    Raises:
        ValueError: the norm is modulated already, or cannot be (no epsilon, replaced forward).
    """
    epsilon(norm)
    graft(norm, ViLN)
    norm.viln = modulation  # type: ignore[assignment]
    return norm
