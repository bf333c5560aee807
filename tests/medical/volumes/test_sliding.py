"""Sliding windows: the labels of MONAI's inference, in a slab of memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.medical.volumes import sliding_labels
from mm.medical.volumes.windows import WINDOWS

pytest.importorskip("monai")


class Scores(torch.nn.Module):
    """Three classes that look at neighbours, so that windows disagree near their borders."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv3d(1, 3, 5, padding=2)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_equal_to_monai(blend, overlap):
    from monai.inferers import sliding_window_inference

    image = torch.randn(21, 18, 30, generator=torch.Generator().manual_seed(1))
    model = Scores().eval()
    ours = sliding_labels(image, model, window=(8, 8, 8), overlap=overlap, blend=blend, batch=3)
    with torch.no_grad():
        theirs = sliding_window_inference(image[None, None], (8, 8, 8), 3, model, overlap=overlap, mode=blend)
    expected = theirs[0].argmax(0).numpy()
    assert (ours != expected).mean() < 2e-3  # MONAI places the same windows; sums differ in the last bit at ties
    assert len(np.unique(ours)) == 3


def test_a_short_scan_is_padded_and_windows_are_scaled():
    image = np.full((5, 20, 6), -1000, np.int16)
    image[2, 3, 4] = 200
    seen = []

    def predict(x):
        seen.append(x)
        return torch.cat([1 - x, x], 1)

    labels = sliding_labels(image, predict, window=(8, 8, 8), scale=WINDOWS["abdomen"])
    assert labels.shape == image.shape and labels.sum() == 1 and labels[2, 3, 4] == 1
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 and x.shape[2:] == (8, 8, 8) for x in seen)


def test_every_window_is_reported():
    calls = []
    sliding_labels(
        np.zeros((9, 9, 20), np.float32),
        lambda x: x,
        window=(8, 8, 8),
        batch=5,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1][0] == calls[-1][1] == 2 * 2 * 3 and [d for d, _ in calls] == sorted(d for d, _ in calls)


def test_scores_of_all_classes_are_never_held_for_the_whole_scan(monkeypatch):
    """Largest tensor that lives through the run: a slab of window depth, not the scan's depth."""
    depth, classes = 256, 12
    image = np.zeros((16, 16, depth), np.int16)
    scores = torch.zeros(1, classes, 16, 16, 16)
    sizes = []
    zeros = torch.zeros

    def spy(*shape, **options):
        found = zeros(*shape, **options)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(torch, "zeros", spy)
    sliding_labels(image, lambda x: scores.clone(), window=(16, 16, 16), batch=1)
    assert max(sizes) == classes * 16 * 16 * 16 < classes * 16 * 16 * depth


def test_wrong_sizes_are_refused():
    image = np.zeros((8, 8, 8), np.float32)
    with pytest.raises(ValueError, match="overlap"):
        sliding_labels(image, lambda x: x, window=(4, 4, 4), overlap=1.0)
    with pytest.raises(ValueError, match="three axes"):
        sliding_labels(image[None], lambda x: x)
    with pytest.raises(ValueError, match="must return scores"):
        sliding_labels(image, lambda x: x[..., :-1], window=(4, 4, 4))
    with pytest.raises(ValueError, match="at most 256"):
        sliding_labels(image, lambda x: x.expand(-1, 300, -1, -1, -1), window=(4, 4, 4))
