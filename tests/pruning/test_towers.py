"""Opened block by block, every encoder still computes what its library computes."""

from __future__ import annotations

import pytest
import torch

from mm.pruning import FlowCut
from mm.pruning.ragged import unpad_rows
from mm.pruning.towers import open_tower
from mm.vision import wrap_tower

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def everything(module, pixel_values, **inputs):
    """Features when nothing may be dropped."""
    return FlowCut(target_tokens=10**6).encode(module, pixel_values, **inputs)


@torch.no_grad()
@pytest.mark.parametrize(("name", "layer"), [("clip", -2), ("siglip", -1)])
def test_transformers_bit_identical(tiny, name, layer):
    model, pixel_values = getattr(tiny, name)(), tiny.pictures()
    out = everything(model, pixel_values)
    depth = model.config.num_hidden_layers
    caught = []
    block = model.encoder.layers[depth - 1 if layer == -1 else depth - 2]
    hook = block.register_forward_hook(lambda _module, _args, output: caught.append(output))
    model(pixel_values)
    hook.remove()
    hidden = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    torch.testing.assert_close(out.tokens, hidden[:, 1:] if layer == -2 else hidden, **EXACT)
    assert torch.equal(out.keep_indices, torch.arange(144).expand(2, 144))


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm", "dinov2", "timm_siglip", "open_clip", "clip"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_wrapped_towers(tiny, name, layer):
    tower, pixel_values = wrap_tower(getattr(tiny, name)(), layer=layer), tiny.pictures()
    expected = tower(pixel_values)
    out = everything(tower, pixel_values)
    torch.testing.assert_close(out.tokens, expected.tokens, **CLOSE)
    if expected.cls is not None:
        torch.testing.assert_close(out.cls, expected.cls, **CLOSE)
    pruned = FlowCut(target_tokens=9).encode(tower, pixel_values)
    assert pruned.tokens.shape == (2, 9, 32) and bool(pruned.tokens.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("version", ["2", "2.5"])
@pytest.mark.parametrize("grids", [[(8, 8)], [(8, 12), (4, 4), (6, 10)]])
def test_qwen_pictures_of_any_size(tiny, version, grids):
    model = tiny.qwen(version)
    pixel_values, grid = tiny.qwen_patches(grids)
    expected = model(pixel_values, grid_thw=grid).pooler_output
    out = everything(model, pixel_values, image_grid_thw=grid)
    torch.testing.assert_close(torch.cat(unpad_rows(out.tokens, out.keep)), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("version", ["2", "2.5"])
def test_qwen_batch_equals_alone(tiny, version):
    """Rows of unequal pictures: padding, windows and cuts of one must not touch the other."""
    model, grids = tiny.qwen(version), [(8, 12), (6, 6)]
    pixel_values, grid = tiny.qwen_patches(grids)
    both = FlowCut(target_tokens=5).encode(model, pixel_values, image_grid_thw=grid)
    assert both.tokens.shape == (2, 5, 24)
    start = 0
    for row, (h, w) in enumerate(grids):
        alone = FlowCut(target_tokens=5).encode(
            model, pixel_values[start : start + h * w], image_grid_thw=grid[row : row + 1]
        )
        start += h * w
        assert torch.equal(both.keep_indices[row], alone.keep_indices[0])
        torch.testing.assert_close(both.tokens[row], alone.tokens[0], **CLOSE)
        torch.testing.assert_close(both.scores[row, : h * w // 4], alone.scores[0], **CLOSE)


def test_two_towers_in_one_process_and_nothing_left_behind(tiny):
    first, second = tiny.clip(seed=1), tiny.clip(seed=2, num_hidden_layers=4)
    before = [(type(m), dict(vars(m)), m.forward.__func__) for tower in (first, second) for m in tower.modules()]
    with torch.no_grad():
        lone = FlowCut(target_tokens=20).encode(first, tiny.pictures()).tokens
        FlowCut(target_tokens=7).encode(second, tiny.pictures())
        again = FlowCut(target_tokens=20).encode(first, tiny.pictures()).tokens
    torch.testing.assert_close(lone, again, **EXACT)
    after = [(type(m), dict(vars(m)), m.forward.__func__) for tower in (first, second) for m in tower.modules()]
    assert [entry[0] for entry in before] == [entry[0] for entry in after]
    assert [entry[1].keys() for entry in before] == [entry[1].keys() for entry in after]
    assert [entry[2] for entry in before] == [entry[2] for entry in after]


def test_what_is_no_encoder():
    with pytest.raises(ValueError, match="Linear has no vision encoder that can be pruned; supported are CLIP"):
        open_tower(torch.nn.Linear(2, 2))


def test_qwen_needs_its_grid(tiny):
    with pytest.raises(ValueError, match="needs image_grid_thw"):
        FlowCut(target_tokens=4).encode(tiny.qwen(), torch.zeros(16, 96))


def test_qwen_is_read_at_its_end(tiny):
    with pytest.raises(ValueError, match="read after its last block only"):
        open_tower(tiny.qwen(), layer=-2)
