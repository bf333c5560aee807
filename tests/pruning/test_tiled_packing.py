"""Tokens of tiles in the reading order of the whole picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mm.pruning.hosts import open_host


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (30, 64), (64, 64), (20, 90)])
def test_all_tokens_equal_the_library_without_line_breaks(tiny, size):
    """Nothing dropped: our packing is that of the library, its newline embeddings taken out."""
    host = open_host(tiny.vlm("next"))
    views = host._views([size], None)[0]
    side = 8
    numbers = torch.arange(views * side * side, dtype=torch.float32).view(views, -1, 1)
    index = [torch.arange(side * side)] * views
    marker = torch.tensor([-7.0])
    library, _ = host.core.pack_image_features(
        [numbers], torch.tensor([size]), vision_feature_select_strategy="default", image_newline=marker
    )
    expected = library[0][library[0] != marker]
    newline = host.core.image_newline
    host.core.image_newline = nn.Parameter(marker)
    try:
        found = host._pack(list(numbers), index, size)[:, 0]
    finally:
        host.core.image_newline = newline
    torch.testing.assert_close(found, expected)
    assert host._stock_count(size, views) == len(library[0])


def test_some_tokens_keep_that_order_and_the_border_goes(tiny):
    host = open_host(tiny.vlm("next"))
    size = (60, 40)
    views = host._views([size], None)[0]
    numbers = torch.arange(views * 64, dtype=torch.float32).view(views, -1, 1)
    whole = host._pack(list(numbers), [torch.arange(64)] * views, size)[:, 0].tolist()
    generator = torch.Generator().manual_seed(0)
    index = [torch.randperm(64, generator=generator)[:20].sort().values for _ in range(views)]
    some = host._pack([row[kept] for row, kept in zip(numbers, index, strict=True)], index, size)[:, 0].tolist()
    chosen = {float(numbers[view, place, 0]) for view, kept in enumerate(index) for place in kept.tolist()}
    assert some == [number for number in whole if number in chosen]
    assert len(some) < 20 * views  # the border of this picture is padded


def test_a_token_without_a_place_leads_and_stays(tiny):
    host = open_host(tiny.vlm("next"))
    index = [torch.tensor([-1, 3])] * 5
    features = [torch.tensor([[100.0 + view], [view]]) for view in range(5)]
    packed = host._pack(features, index, (64, 64))[:, 0].tolist()
    assert packed[:2] == [100.0, 0.0] and packed[2:6] == [101.0, 102.0, 103.0, 104.0] and len(packed) == 10
