"""Linear probe: a linear classifier on frozen picture features.

Dims: B pictures, W width of the features, C classes.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927): learning rate 0.1, 20 epochs, batches of 512, on mean patches.
Deviation: the paper names neither optimiser nor scaling; here SGD with momentum 0.9 and a cosine to zero, on features
standardised with the training set's mean and deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.metrics.scores import accuracy


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the classifier is trained."""

    lr: float = 0.1
    """Learning rate at the start."""
    epochs: int = 20
    """Passes over the training pictures."""
    batch_size: int = 512
    """Pictures per step."""
    momentum: float = 0.9
    """Of the optimiser."""
    seed: int = 0
    """Of the order of the pictures; the classifier starts at zero."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"lr, epochs and batch_size must be positive, got {self}")


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, config: ProbeConfig | None = None
) -> dict[str, Any]:
    """Train on one set, count right answers on another.

    Args:
        train: Features, (B, W).
        train_labels: Classes, (B,) int from 0.
        test: Features of other pictures, (B', W).
        test_labels: Their classes.
        config: How to train.

    Returns:
        `top1` on the test pictures, `train_top1`, and the sizes.

    Raises:
        ValueError: nothing to learn from, or a test class that training does not have.
    """
    config = config or ProbeConfig()
    if not len(train) or not len(test) or not set(test_labels.tolist()) <= set(train_labels.tolist()):
        missing = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
        raise ValueError(
            f"a probe needs training and test pictures of the same classes; got {len(train)} and {len(test)}, "
            f"classes only in the test: {missing[:10]}"
        )
    mean, deviation = train.float().mean(dim=0), train.float().std(dim=0).clamp(min=1e-6)
    train, test = (train.float() - mean) / deviation, (test.float() - mean) / deviation
    probe = _trained(train, train_labels, int(train_labels.max()) + 1, config)
    with torch.no_grad():
        return {
            "top1": accuracy(probe(test), test_labels),
            "train_top1": accuracy(probe(train), train_labels),
            "train_images": len(train),
            "test_images": len(test),
            "classes": len(train_labels.unique()),
        }


def _trained(features: Tensor, labels: Tensor, classes: int, config: ProbeConfig) -> nn.Linear:
    probe = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.SGD(probe.parameters(), lr=config.lr, momentum=config.momentum)
    steps = config.epochs * -(-len(features) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for part in torch.randperm(len(features), generator=order).split(config.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(probe(features[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    return probe
