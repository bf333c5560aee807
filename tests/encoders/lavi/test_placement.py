"""Placeholders come out of the text and become positions."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.lavi import strip_placeholders

IMAGE = 60


def batch():
    ids = torch.tensor([[IMAGE, 5, 6, IMAGE, 7, 0, 0], [8, 9, 10, 11, 12, IMAGE, 13]])
    return ids, ids != 0


def test_placeholders_are_dropped_and_counted():
    ids, mask = batch()
    placed = strip_placeholders(ids, IMAGE, attention_mask=mask, labels=ids.clone())
    assert placed.input_ids.tolist() == [[5, 6, 7, 0, 0, 0], [8, 9, 10, 11, 12, 13]]
    assert placed.attention_mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert placed.image_starts.tolist() == [[0, 2], [5, 0]]
    assert placed.labels.tolist() == [[5, 6, 7, -100, -100, -100], [8, 9, 10, 11, 12, 13]]


def test_kept_placeholders_see_their_own_image():
    ids, mask = batch()
    placed = strip_placeholders(ids, IMAGE, attention_mask=mask, keep=True, padding_side="left")
    assert placed.input_ids[0].tolist() == [0, 0, IMAGE, 5, 6, IMAGE, 7]
    assert placed.image_starts.tolist() == [[0, 3], [5, 0]]


def test_text_only_rows_have_no_images():
    placed = strip_placeholders(torch.tensor([[4, 5, 6]]), IMAGE)
    assert placed.image_starts.shape == (1, 0) and placed.input_ids.tolist() == [[4, 5, 6]]
    with pytest.raises(ValueError, match="padding_side"):
        strip_placeholders(torch.tensor([[4]]), IMAGE, padding_side="middle")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_change_who_sees_what(toolbox, side):
    lavi = toolbox.lavi()
    image_ids = torch.arange(16).div(8, rounding_mode="floor").expand(2, 16)
    ids, mask = batch()
    placed = strip_placeholders(ids, IMAGE, attention_mask=mask, padding_side=side)
    visual = toolbox.encode(lavi, image_ids=image_ids).placed(placed.image_starts)
    positions = (placed.attention_mask.long().cumsum(1) - 1).clamp_min(0)
    both = lavi(placed.input_ids, attention_mask=placed.attention_mask.long(), position_ids=positions, visual=visual)
    for row in range(2):
        text = ids[row : row + 1, mask[row]]
        alone = strip_placeholders(text, IMAGE)
        mine = toolbox.encode(lavi, image_ids=image_ids).index([row])
        starts = torch.nn.functional.pad(alone.image_starts, (0, 2 - alone.image_starts.shape[1]))
        expected = lavi(alone.input_ids, visual=mine.placed(starts)).logits[0]
        torch.testing.assert_close(both.logits[row, placed.attention_mask[row]], expected, rtol=1e-5, atol=2e-5)
