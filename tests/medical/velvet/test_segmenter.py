"""The segmentation network: any size in, the encoder's weights taken strictly, small enough to ship."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("monai")

from mm.medical.phantoms import LABELS, phantom
from mm.medical.velvet.presets import TINY_SEGMENTER, TINY_VISION, velvet_tiny_segmenter
from mm.medical.velvet.segmenter import Segmenter, SegmenterConfig
from mm.medical.velvet.vision import VisionEncoder
from mm.medical.volumes.volume import Volume


@pytest.fixture(scope="module")
def segmenter():
    return velvet_tiny_segmenter()


def test_an_odd_size_is_padded_behind_and_cut_again(segmenter):
    volume = torch.rand(1, 1, 33, 40, 32, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(1, 1, 64, 64, 32)
    padded[:, :, :33, :40] = volume
    with torch.no_grad():
        found, whole = segmenter(volume), segmenter(padded)
    assert found.shape == (1, len(LABELS), 33, 40, 32)
    assert torch.equal(found, whole[:, :, :33, :40])


def test_it_starts_from_an_encoder_and_refuses_another_size(segmenter):
    encoder, other = VisionEncoder(TINY_VISION), velvet_tiny_segmenter(seed=1)
    report = other.take_encoder(encoder)
    for name, value in encoder.swin.state_dict().items():
        assert torch.equal(other.network.swinViT.state_dict()[name], value)
    assert "swinViT" not in report.new and "decoder5" in report.new
    with pytest.raises(ValueError, match="reshaped"):
        Segmenter(SegmenterConfig(vision=TINY_VISION)).take_encoder(
            VisionEncoder(TINY_VISION.__class__(embed_dim=24, depths=(1, 1, 2, 1), num_heads=(2, 4, 4, 8)))
        )


def test_the_tiny_weights_fit_into_four_megabytes(segmenter):
    assert 2 * sum(value.numel() for value in segmenter.state_dict().values()) < 4e6


def test_a_scan_reaches_the_network_on_its_grid(segmenter):
    scan = phantom(3, size=48)  # 8 mm per voxel
    prepared = segmenter.grid.prepare(Volume.from_array(scan.hu, scan.affine))
    assert prepared.image.shape == (1, 64, 64, 64) and prepared.spacing == pytest.approx((6.0, 6.0, 6.0))
    assert float(prepared.image.min()) == 0.0 and float(prepared.image.max()) == 1.0


def test_round_trip_through_a_folder(segmenter, tmp_path):
    segmenter.save_pretrained(tmp_path / "model")
    again = Segmenter.from_pretrained(tmp_path / "model")
    volume = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(segmenter(volume), again(volume))
    assert again.config == TINY_SEGMENTER and again.labels == LABELS


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": ("background",)}, "labels"),
        ({"window": "moon"}, "window"),
        ({"patch": 50}, "patch"),
        ({"vision": TINY_VISION.__class__(embed_dim=16, num_heads=(2, 2, 2, 2))}, "multiples of 12"),
    ],
)
def test_a_wrong_setting_is_named(changes, word):
    with pytest.raises(ValueError, match=word):
        SegmenterConfig(**changes)
