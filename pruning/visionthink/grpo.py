"""The GRPO loss over trajectories of several turns: generated tokens count, observations do not.

    L = mean over tokens of -min(rho A, clip(rho, 1 - l, 1 + h) A) + beta KL - gamma H
    rho = exp(log p - log p_old),  KL = exp(D) - D - 1 with D = log p_ref - log p (k3), clamped to +-10

The mask at position t gates log p(token t | tokens before t): the first token of a second turn is trained, the first
token of an observation is not.
Dims: B rows, L response tokens, V vocabulary.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), equation 3; GRPO (Shao et al. 2024, arXiv:2402.03300).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

KL_CLAMP = 10.0
KlKind = Literal["kl", "abs", "mse", "low_var_kl"]


class GrpoLoss(NamedTuple):
    """Scalars of one step; only `total` is meant for `backward`."""

    total: Tensor
    policy: Tensor
    kl: Tensor
    entropy: Tensor
    clip_fraction: Tensor
    """Share of tokens whose gradient the clipping cut off."""
    drift: Tensor
    """Mean of log p_old - log p: how far the policy has moved since the rollout."""


def token_log_probs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it came from.

    Args:
        logits: (B, N, V); position t - 1 predicts token t.
        ids: (B, N).
        temperature: Divides the logits.

    Returns:
        Log-probabilities (B, N - 1) of tokens 1..N-1 and entropies (B, N - 1) in nats, float32.
    """
    log_p = (logits[:, :-1].float() / temperature).log_softmax(-1)  # (B, N - 1, V)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, ids[:, 1:, None]).squeeze(-1), entropy


def kl_estimate(log_prob: Tensor, reference: Tensor, kind: KlKind = "low_var_kl") -> Tensor:
    """Per-token estimate of the divergence from the reference, same shape as the inputs.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "kl":
        return log_prob - reference
    if kind == "abs":
        return (log_prob - reference).abs()
    if kind == "mse":
        return 0.5 * (log_prob - reference).square()
    if kind == "low_var_kl":
        difference = reference - log_prob
        return (difference.exp() - difference - 1).clamp(-KL_CLAMP, KL_CLAMP)
    raise ValueError(f"unknown kind {kind!r}; choose kl, abs, mse or low_var_kl")


def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ref_log_prob: Tensor | None = None,
    entropy: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coeff: float = 0.001,
    entropy_coeff: float = 0.001,
    agg: Literal["seq_mean", "token_mean"] = "seq_mean",
) -> GrpoLoss:
    """Clipped policy gradient with a divergence penalty and an entropy bonus.

    Args:
        log_prob: Of the response tokens under the policy, (B, L); carries the gradient.
        old_log_prob: The same when the rollout was scored, (B, L).
        advantages: (B,) or (B, L), see `grpo_advantages`.
        mask: True at generated tokens, (B, L); attention times multi-turn mask.
        ref_log_prob: Under the frozen first model, (B, L); None leaves the divergence out.
        entropy: Of the policy at each token, (B, L); None leaves the bonus out.
        clip_low, clip_high: Range of the ratio, 1 - clip_low to 1 + clip_high.
        kl_coeff, entropy_coeff: Weights of divergence and entropy.
        agg: "seq_mean" averages rows of token means, as in the paper; "token_mean" averages all tokens alike.

    Returns:
        Scalars; a row without any generated token does not take part.

    Raises:
        ValueError: shapes that do not fit, or an unknown aggregation.
    """
    if agg not in ("seq_mean", "token_mean"):
        raise ValueError(f"unknown agg {agg!r}; choose 'seq_mean' or 'token_mean'")
    if not log_prob.shape == old_log_prob.shape == mask.shape:
        raise ValueError(
            "log_prob, old_log_prob and mask must be (B, L), got "
            f"{tuple(log_prob.shape)}, {tuple(old_log_prob.shape)}, {tuple(mask.shape)}"
        )
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    keep = mask.bool()

    def mean(values: Tensor) -> Tensor:
        return masked_mean(values.expand_as(log_prob), keep, agg)

    ratio = (log_prob - old_log_prob).exp()
    plain, clipped = -ratio * advantages, -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    policy = mean(torch.maximum(plain, clipped))
    kl = mean(kl_estimate(log_prob, ref_log_prob)) if ref_log_prob is not None else policy.new_zeros(())
    spread = mean(entropy) if entropy is not None else policy.new_zeros(())
    total = policy + kl_coeff * kl - entropy_coeff * spread
    cut = mean((clipped > plain).float().detach())
    return GrpoLoss(total, policy, kl, spread, cut, mean((old_log_prob - log_prob).detach()))


def masked_mean(values: Tensor, keep: Tensor, agg: Literal["seq_mean", "token_mean"]) -> Tensor:
    """Mean of values (B, L) where `keep` (B, L) is True; 0 where nothing is kept at all."""
    kept = torch.where(keep, values, 0.0)  # not a product: masked values may be infinite
    if agg == "token_mean":
        return kept.sum() / keep.sum().clamp_min(1)
    counts = keep.sum(1)  # (B,)
    rows = kept.sum(1) / counts.clamp_min(1)
    return rows.sum() / (counts > 0).sum().clamp_min(1)
