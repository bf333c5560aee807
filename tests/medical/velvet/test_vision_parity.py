"""Self-supervised heads, turns, corruption and the global volume against numbers of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.medical.velvet.corruption import paste, paste_noise, unit_range
from mm.medical.velvet.heads import DeconvDecoder, InterpolatingDecoder
from mm.medical.velvet.loss import reconstruction_loss, rotation_loss, view_contrast_loss
from mm.medical.velvet.volume_views import global_volume, quarter_turns, slice_numbers
from tests.medical.velvet.conftest import read

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def weights(vision, prefix):
    prefix = f"weights.{prefix}."
    return {key.removeprefix(prefix): value for key, value in vision.all.items() if key.startswith(prefix)}


def linear(vision, name):
    state = weights(vision, name)
    layer = torch.nn.Linear(*state["weight"].shape[::-1])
    layer.load_state_dict(state)
    return layer


def test_heads_and_losses(vision):
    pooled = [vision.get(f"features.{view}").flatten(1) for view in ("first", "second")]
    contrast, rotation = linear(vision, "contras_head"), linear(vision, "rot_head")
    first, second = (contrast(view) for view in pooled)
    torch.testing.assert_close(first, vision.get("expected.embed.first"), **CLOSE)
    torch.testing.assert_close(second, vision.get("expected.embed.second"), **CLOSE)
    torch.testing.assert_close(view_contrast_loss(first, second), vision.get("expected.loss.contrast")[0], **CLOSE)
    logits = rotation(torch.cat(pooled))
    torch.testing.assert_close(logits, vision.get("expected.rotation_logits"), **CLOSE)
    found = rotation_loss(logits, vision.get("target.rotation"))
    torch.testing.assert_close(found, vision.get("expected.loss.rotation")[0], **CLOSE)


def test_transposed_convolutions(vision):
    decoder = DeconvDecoder(16, 1, steps=vision.meta["upsampling"])
    state = weights(vision, "recon_bottleneck")
    decoder.load_state_dict({k.replace("up_blocks", "up").replace("out_layer", "out"): v for k, v in state.items()})
    features = torch.cat([vision.get("features.first"), vision.get("features.second")])
    found = decoder(features)
    torch.testing.assert_close(found, vision.get("expected.reconstruction"), **CLOSE)
    loss = reconstruction_loss(found, vision.get("target.volume"))
    torch.testing.assert_close(loss, vision.get("expected.loss.reconstruction_l1")[0], **CLOSE)


def test_interpolating_decoder(vision):
    decoder = InterpolatingDecoder(16, 1, steps=3)
    names = {"up_blocks.0.0": "up.0", "up_blocks.1.0": "up.1", "up_blocks.2.0": "up.2", "out_layer": "out"}
    state = {}
    for key, value in weights(vision, "unet").items():
        name, _, leaf = key.rpartition(".")
        state[f"{names[name]}.{leaf}"] = value
    decoder.load_state_dict(state)
    torch.testing.assert_close(decoder(vision.get("features.unet")), vision.get("expected.unet"), **CLOSE)


def test_quarter_turns(vision):
    found = quarter_turns(vision.get("rotate.volume"), vision.get("rotate.turns"))
    assert torch.equal(found, vision.get("expected.rotate"))
    back = quarter_turns(found, (4 - vision.get("rotate.turns")) % 4)
    assert torch.equal(back, vision.get("rotate.volume"))


def test_corruption_replays_the_recorded_boxes(vision):
    """Noise first, then boxes of the partner as it stands at that moment, sample after sample."""
    result = vision.get("corrupt.volume").numpy().copy()
    for step in vision.meta["corruption"]["steps"]:
        number = step["sample"]
        noise = [unit_range(vision.get(f"corrupt.noise.{index}").numpy()) for index in step["noise_index"]]
        paste_noise(result[number], step["noise_boxes"], noise)
        if step["partner"] != number:
            paste(result[number], result[step["partner"]], step["swap_boxes"])
    torch.testing.assert_close(torch.from_numpy(result), vision.get("expected.corrupt"), rtol=1e-6, atol=1e-6)


def test_one_voxel_of_noise_is_finite():
    assert unit_range(np.array([[[3.0]]])).item() == 0.0


def test_global_volume():
    fixture = read("velvet_global_volume")
    found = global_volume(fixture.get("volume")) / 255
    stride = fixture.meta["stride"]
    assert found.shape == (1, 96, 96, 96)
    torch.testing.assert_close(
        found[:, ::stride, ::stride, ::stride], fixture.get("expected.subsampled"), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(found.mean(), fixture.get("expected.mean")[0], rtol=1e-5, atol=1e-6)
    profile = found.mean(dim=(0, 1, 2))
    torch.testing.assert_close(profile, fixture.get("expected.last_axis_profile"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", range(6))
def test_slices(row):
    import json

    from tests.medical.velvet.conftest import DATA

    case = json.loads((DATA / "velvet_text.json").read_text())["slice_sampling"][row]
    assert slice_numbers(case["depth"], 96).tolist() == case["slices"]
