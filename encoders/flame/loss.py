"""Contrastive losses with several texts per image, on one device and over many.

    sigmoid:  L = -1 / (B P) sum_i sum_j log sigmoid(y_ij (s <v_i, t_j> + b)),   y_ij = 1 if floor(j / P) = i else -1
    NCE:      L = (mean over p of CE(image -> texts {j = p mod P}) + CE(text -> images)) / 2

Any facet of a caption is a positive of the one image vector. The sum of the sigmoid loss is divided by the number of
texts, not of images.
Dims: B images per process, P texts per image, T = B P texts (sample by sample), D width, R processes.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927) and its published code; P = 1 is SigLIP (arXiv:2303.15343) and CLIP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

Exchange = Literal["ring", "gather"]


def multi_positive_sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float = 0.0,
    *,
    exchange: Exchange = "ring",
    chunk: int | None = None,
) -> Tensor:
    """Every image against every text, each pair a yes/no question.

    Under an initialised process group the texts of all processes take part. The average over processes of this loss,
    and of its gradients, is the loss of the joined batch on one device.

    Args:
        images: Unit vectors, (B, D).
        texts: Unit vectors, (B, P, D) or (B * P, D) with the P texts of an image behind each other.
        scale: Multiplier of the similarities, exp(logit_scale) > 0.
        bias: Added to the logits.
        exchange: "ring" passes texts on from process to process and never holds more than two blocks; "gather" holds
            all. Same result.
        chunk: Images per block of logits, to bound memory; None takes all at once.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: widths differ, or the texts are no multiple of the images.
    """
    texts, positives = _flat(images, texts)
    own = _positive_pairs(len(images), positives, images.device)
    total = _pair_sum(images, texts, scale, bias, own, chunk)
    for foreign in _foreign(texts, exchange):
        total = total + _pair_sum(images, foreign, scale, bias, None, chunk)
    return total / len(texts)


def multi_positive_nce_loss(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """Cross-entropy both ways: every image picks its text among one text of each image, every text picks its image.

    Under an initialised process group the candidates of all processes take part; the average over processes is the
    loss of the joined batch on one device.

    Args:
        images: Unit vectors, (B, D).
        texts: Unit vectors, (B, P, D) or (B * P, D) with the P texts of an image behind each other.
        scale: Multiplier of the similarities, exp(logit_scale) > 0.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: widths differ, or the texts are no multiple of the images.
    """
    texts, positives = _flat(images, texts)
    images, texts = images.float(), texts.float()
    count, first = len(images), _rank() * len(images)
    every_image, every_text = _gathered(images), _gathered(texts)
    right = first + torch.arange(count, device=images.device)  # (B,)
    strided = every_text.unflatten(0, (-1, positives))  # (R B, P, D)
    logits = scale * torch.einsum("bd,cpd->pbc", images, strided)  # (P, B, R B)
    to_text = F.cross_entropy(logits.flatten(0, 1), right.repeat(positives))
    to_image = F.cross_entropy(scale * texts @ every_image.T, right.repeat_interleave(positives))
    return (to_text + to_image) / 2


def _flat(images: Tensor, texts: Tensor) -> tuple[Tensor, int]:
    """Texts as (B P, D), and P."""
    texts = texts.flatten(0, 1) if texts.ndim == 3 else texts
    if not len(images) or len(texts) % len(images) or texts.shape[-1] != images.shape[-1]:
        raise ValueError(
            "need images (B, D) and texts (B, P, D) or (B * P, D) of the same width, "
            f"got {tuple(images.shape)} and {tuple(texts.shape)}"
        )
    return texts, len(texts) // len(images)


def _positive_pairs(images: int, positives: int, device: torch.device) -> Tensor:
    """True where a text belongs to an image, (B, B P) bool."""
    return torch.eye(images, dtype=torch.bool, device=device).repeat_interleave(positives, dim=1)


def _pair_sum(
    images: Tensor, texts: Tensor, scale: Tensor | float, bias: Tensor | float, own: Tensor | None, chunk: int | None
) -> Tensor:
    """Minus the sum of log sigmoid over all pairs; without `own` every pair is a negative."""
    total = images.new_zeros((), dtype=torch.float32)
    size = chunk or len(images)
    for first in range(0, len(images), size):
        logits = scale * (images[first : first + size].float() @ texts.float().T) + bias  # (b, B P)
        signed = -logits if own is None else logits.where(own[first : first + size], -logits)
        total = total - F.logsigmoid(signed).sum()
    return total


# --- several processes -------------------------------------------------------------------------------------------


def _world() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _rank() -> int:
    return distributed.get_rank() if _world() > 1 else 0


def _foreign(texts: Tensor, exchange: Exchange) -> Iterator[Tensor]:
    """The texts of all other processes, one block after the other, with gradients back to their owners."""
    if exchange not in ("ring", "gather"):
        raise ValueError(f"exchange must be 'ring' or 'gather', got {exchange!r}")
    if exchange == "gather" and _world() > 1:
        blocks = _gathered(texts).unflatten(0, (_world(), -1))
        yield from (block for rank, block in enumerate(blocks) if rank != _rank())
        return
    for _ in range(_world() - 1):
        texts = _PassOn.apply(texts)  # type: ignore[no-untyped-call]
        yield texts


class _PassOn(torch.autograd.Function):
    """Send a block to the next process and take that of the previous one; gradients travel back."""

    @staticmethod
    def forward(ctx: Any, block: Tensor) -> Tensor:
        return _exchanged(block, step=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _exchanged(gradient, step=-1)


def _exchanged(block: Tensor, step: int) -> Tensor:
    world, rank = _world(), _rank()
    block, taken = block.contiguous(), torch.empty_like(block)
    pair = [
        distributed.P2POp(distributed.isend, block, (rank + step) % world),
        distributed.P2POp(distributed.irecv, taken, (rank - step) % world),
    ]
    for request in distributed.batch_isend_irecv(pair):
        request.wait()
    return taken


def _gathered(rows: Tensor) -> Tensor:
    """Rows of all processes in order of rank, with gradients back to their owners; the rows themselves if alone."""
    if _world() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))
