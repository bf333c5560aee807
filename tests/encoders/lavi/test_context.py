"""The visual context follows the batch, is stored without loss and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.lavi import VisualContext


def same(left: VisualContext, right: VisualContext) -> bool:
    a, b = left.tensors(), right.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture
def full(toolbox):
    """A context with every optional part."""
    lavi = toolbox.lavi()
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[1] = False
    mask[2, 8:] = False
    image_ids = torch.arange(16).div(8, rounding_mode="floor").expand(3, 16)
    visual = toolbox.encode(lavi, batch=3, mask=mask, tile_ids=image_ids, frame_ids=image_ids + 1, image_ids=image_ids)
    return lavi, visual.placed(torch.tensor([[0, 2], [0, 0], [1, 3]]))


def test_index_expand_and_cat_move_whole_rows(full):
    _, visual = full
    assert same(visual.expand(2), visual.index([0, 0, 1, 1, 2, 2]))
    assert same(VisualContext.cat([visual.index([2]), visual.index([0, 1])]), visual.index([2, 0, 1]))
    assert same(visual.reorder(torch.tensor([1, 0, 2])).index([1, 0, 2]), visual)
    assert visual.present.tolist() == [True, False, True]
    assert visual.without(torch.tensor([True, False, False])).present.tolist() == [False, False, True]


def test_cat_pads_shorter_contexts_with_masked_slots(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids(batch=2)
    short = lavi.encode_vision(toolbox.features(1, seed=1))
    long = lavi.encode_vision(toolbox.features(1, tiles=3, seed=2))
    joined = VisualContext.cat([short, long])
    assert joined.num_slots == 48 and joined.mask.sum(1).tolist() == [16, 48]
    logits = lavi(ids, visual=joined).logits
    torch.testing.assert_close(logits[:1], lavi(ids[:1], visual=short).logits, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits[1:], lavi(ids[1:], visual=long).logits, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("conditioner", ["attention", "conv"])
def test_appended_frames_equal_one_longer_clip(toolbox, conditioner):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids()
    clip = toolbox.features(tiles=3)
    frames = torch.arange(48).div(16, rounding_mode="floor").expand(2, 48)
    whole = lavi.encode_vision(clip, frame_ids=frames, grid=toolbox.grid)
    first = lavi.encode_vision(clip[:, :32], frame_ids=frames[:, :32], grid=toolbox.grid)
    later = lavi.encode_vision(clip[:, 32:], frame_ids=frames[:, 32:], grid=toolbox.grid)
    stream = first.append(later)
    torch.testing.assert_close(lavi(ids, visual=stream).logits, lavi(ids, visual=whole).logits, rtol=1e-5, atol=2e-5)
    assert torch.equal(stream.frame_ids, whole.frame_ids)
    assert not torch.allclose(lavi(ids, visual=first).logits, lavi(ids, visual=whole).logits, atol=1e-3)


def test_a_row_without_frames_gets_its_first_by_appending(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    empty = torch.tensor([[False], [True]]).expand(2, 16)
    first = lavi.encode_vision(toolbox.features(seed=1), empty)
    second = lavi.encode_vision(toolbox.features(seed=2))
    masked = lavi.encode_vision(toolbox.features(seed=2), torch.ones(2, 16, dtype=torch.bool))
    for later in (second, masked):
        logits = lavi(ids, visual=first.append(later)).logits
        torch.testing.assert_close(logits[:1], lavi(ids, visual=second).logits[:1], rtol=1e-5, atol=2e-5)
    assert first.append(first).present.tolist() == [False, True]


@pytest.mark.parametrize("conditioner", ["mlp", "film"])
def test_conditioners_that_merge_pictures_say_so(toolbox, conditioner):
    lavi = toolbox.lavi(conditioner=conditioner)
    visual = toolbox.encode(lavi)
    with pytest.raises(ValueError, match="merges all frames"):
        visual.append(visual)
    with pytest.raises(ValueError, match="merges all pictures"):
        visual.placed(torch.zeros(2, 1, dtype=torch.long))


def test_saved_context_is_bit_equal(full, toolbox, tmp_path):
    lavi, visual = full
    loaded = VisualContext.load(visual.save(tmp_path / "image.safetensors"))
    assert same(visual, loaded) and loaded.fingerprint == visual.fingerprint
    ids = toolbox.ids(batch=3)
    assert torch.equal(lavi(ids, visual=loaded).logits, lavi(ids, visual=visual).logits)


def test_damaged_or_foreign_context_files_are_named(full, tmp_path):
    _, visual = full
    path = visual.save(tmp_path / "image.safetensors")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"image\.safetensors: not a readable"):
        VisualContext.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a visual context"):
        VisualContext.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no such visual context"):
        VisualContext.load(tmp_path / "absent.safetensors")


def test_fingerprints_tell_pictures_and_places_apart(toolbox):
    lavi = toolbox.lavi()
    image_ids = torch.zeros(2, 16, dtype=torch.long)
    visual = toolbox.encode(lavi, image_ids=image_ids)
    assert visual.fingerprint == toolbox.encode(lavi, image_ids=image_ids).fingerprint
    others = [
        toolbox.encode(lavi, seed=1, image_ids=image_ids),
        visual.index([1, 0]),
        visual.placed(torch.zeros(2, 1, dtype=torch.long)),
        visual.without(torch.tensor([True, False])),
    ]
    assert len({visual.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_to_casts_the_memory_and_leaves_masks(full):
    _, visual = full
    half = visual.to(dtype=torch.bfloat16)
    assert {t.dtype for entry in half.memory.values() for t in entry} == {torch.bfloat16}
    assert half.mask.dtype == torch.bool and half.image_ids.dtype == torch.long
    assert half.cache_bytes * 2 == visual.cache_bytes


def test_joining_what_does_not_belong_together_is_refused(toolbox):
    lavi, other = toolbox.lavi(), toolbox.lavi(layers="every:1")
    visual = toolbox.encode(lavi)
    with pytest.raises(ValueError, match="different adapters"):
        VisualContext.cat([visual, toolbox.encode(other)])
    with pytest.raises(ValueError, match="at least one"):
        VisualContext.cat([])
    with pytest.raises(ValueError, match="1 rows of frames to 2 rows"):
        visual.append(visual.index([0]))
    ids = torch.zeros(2, 16, dtype=torch.long)
    with pytest.raises(ValueError, match="only some of the contexts"):
        visual.append(toolbox.encode(lavi, frame_ids=ids))
    placed = toolbox.encode(lavi, image_ids=ids).placed(torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="append first"):
        placed.append(placed)
    with pytest.raises(ValueError, match="pass image_ids"):
        visual.placed(torch.zeros(2, 1, dtype=torch.long))
