"""The trunk against timm's 2-D Swin, and window attention against loops over explicit coordinates."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from mm.encoders.evilm import Swin3D, Swin3DConfig
from mm.encoders.evilm.convert import inflate_swin2d
from mm.encoders.evilm.swin3d import WindowAttention

SIZES = {"embed_dim": 8, "depths": (2, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture
def picture_swin() -> SwinTransformer:
    torch.manual_seed(0)
    module = SwinTransformer(img_size=128, window_size=4, num_classes=0, **SIZES).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def inflated(picture_swin: SwinTransformer, temporal_pad: str) -> Swin3D:
    config = Swin3DConfig(**SIZES, window=(8, 4, 4), temporal_pad=temporal_pad, drop_path=0.0)
    trunk = Swin3D(config).eval()
    inflate_swin2d(trunk, picture_swin.state_dict(), source="timm")
    return trunk


@pytest.mark.parametrize("frames", [1, 3])
def test_a_still_clip_through_inflated_weights_is_the_picture_model(picture_swin, frames):
    picture = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = picture_swin.forward_features(picture)
        found = inflated(picture_swin, "replicate")(picture[:, None].expand(-1, frames, -1, -1, -1))
    assert found.shape == (1, frames, 4, 4, 64)
    for frame in range(frames):
        torch.testing.assert_close(found[:, frame], expected, atol=1e-4, rtol=1e-4)


def test_zero_padding_disturbs_the_last_frame_and_nothing_else(picture_swin):
    still = torch.randn(1, 1, 3, 128, 128).expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        embedded = inflated(picture_swin, "zero").patch_embed(still)
    torch.testing.assert_close(embedded[:, 0], embedded[:, 1], atol=1e-6, rtol=1e-6)
    assert (embedded[:, 1] - embedded[:, 2]).abs().max() > 0.1


def brute_force(module: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Every pair of places: same window of the shifted volume, not torn apart by the shift, bias by distance."""
    dims, out = x.shape[1:4], torch.zeros_like(x[0])
    fits = [size <= side for size, side in zip(dims, module.window, strict=True)]
    shift = [0 if fit else step for fit, step in zip(fits, module.shift, strict=True)]
    side = [size if fit else width for size, fit, width in zip(dims, fits, module.window, strict=True)]
    q, k, v = module.qkv(x[0]).unflatten(-1, (3, module.num_heads, -1)).unbind(-3)

    def window(place):
        """Window of a place: cut at shift, shift + side, ...; what lies before the first cut stays by itself."""
        return tuple((p - s) // w for p, s, w in zip(place, shift, side, strict=True))

    places = list(product(*map(range, dims)))
    for one in places:
        others = [other for other in places if window(other) == window(one)]
        rows = []
        for other in others:
            index = 0
            for a, b, width in zip(one, other, module.window, strict=True):
                index = index * (2 * width - 1) + a - b + width - 1
            rows.append((q[one] * k[other]).sum(-1) * q.shape[-1] ** -0.5 + module.table[index])
        weight = torch.stack(rows).softmax(0)  # (others, heads)
        out[one] = module.proj((weight[..., None] * torch.stack([v[other] for other in others])).sum(0).flatten())
    return out[None]


@pytest.mark.parametrize("dims", [(2, 4, 6), (3, 2, 5), (1, 1, 3), (5, 3, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_is_attention_inside_windows(dims, shifted):
    torch.manual_seed(0)
    module = WindowAttention(8, 2, (2, 3, 3), shifted)
    torch.nn.init.normal_(module.table)
    x = torch.randn(1, *dims, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x), brute_force(module, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (33, 65), (20, 130)])
def test_any_size_gives_one_place_per_cell(height, width):
    trunk = Swin3D(Swin3DConfig(**SIZES, window=(8, 4, 4)))
    out = trunk(torch.randn(1, 2, 3, height, width))
    assert out.shape == (1, 2, -(-height // 32), -(-width // 32), 64) and out.isfinite().all()
