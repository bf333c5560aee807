"""How much a kind of token says about a sound: a linear classifier on the time average of its codewords.

Dims: B sounds, N token pairs, D width.
Source: paper section V (semantic probing on frozen, averaged features); there a two-layer MLP on the HEAR tasks.
Deviation: logistic regression, which shows what is linearly there.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor


def averaged(embeddings: Tensor, tokens: Tensor) -> np.ndarray:
    """Mean over the tokens that there are: (B, N, D) and (B, N, 2), padded with -1 -> (B, D)."""
    present = (tokens[..., 0] >= 0).to(embeddings.dtype)[..., None]
    return ((embeddings * present).sum(1) / present.sum(1).clamp(min=1)).detach().float().cpu().numpy()


def probe_accuracy(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], *, strength: float = 1.0
) -> float:
    """Share of test sounds whose label a linear classifier names, 0 to 1.

    Args:
        train: Features (B, D) and labels (B,).
        test: The same of other sounds.
        strength: Inverse regularisation.

    Raises:
        ValueError: only one label in the training part.
    """
    if len(np.unique(train[1])) < 2:
        raise ValueError("a probe needs at least two labels in its training part")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
    return float(model.fit(*train).score(*test))
