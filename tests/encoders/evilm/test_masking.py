"""Masks: shares, structure, seeds."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.evilm.masking import attended_keep, block_keep, mask_words, random_keep, tube_keep, video_keep


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("frames", "share"), [(4, 0.151), (1, 0.081), (8, 0.27)])
def test_blocks_hide_the_published_share(frames, share):
    keep = block_keep((20_000, frames, 7, 7), seeded())
    assert (~keep).float().mean().item() == pytest.approx(share, abs=0.003)


def test_one_block_is_one_box_of_at_most_three_cells():
    hidden = ~block_keep((500, 1, 7, 7), seeded())[:, 0]
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.sum((1, 2)), rows * columns)
    assert set(rows.tolist()) == {1, 2, 3} == set(columns.tolist())


@pytest.mark.parametrize("shape", [(50, 1, 1, 1), (50, 2, 2, 3), (50, 3, 7, 1)])
def test_blocks_fit_small_grids(shape):
    keep = block_keep(shape, seeded())
    assert keep.shape == shape and (~keep).flatten(1).any(1).all()


def test_random_and_tube_hide_their_ratio():
    assert (~random_keep((500, 4, 7, 7), seeded(), 0.4)).float().mean() == pytest.approx(0.4, abs=0.01)
    tube = tube_keep((2000, 4, 7, 7), seeded(), 0.4)
    assert (~tube).float().mean() == pytest.approx(0.4, abs=0.01)
    assert torch.equal(tube, tube[:, :1].expand_as(tube)) and not torch.equal(tube[0], tube[1])


def test_each_sample_draws_its_own_kind_and_the_seed_decides():
    shape = (400, 4, 7, 7)
    keep = video_keep(shape, seeded(1), ("tube", "bm"), 0.0)  # tubes of ratio 0 hide nothing, blocks always something
    untouched = keep.flatten(1).all(1).float().mean()
    assert untouched == pytest.approx(0.5, abs=0.08)
    assert torch.equal(keep, video_keep(shape, seeded(1), ("tube", "bm"), 0.0))
    assert not torch.equal(keep, video_keep(shape, seeded(2), ("tube", "bm"), 0.0))
    with pytest.raises(ValueError, match="attended_keep"):
        video_keep(shape, seeded(), ("am",))


def test_words_are_masked_but_never_special_ones():
    ids = torch.randint(0, 40, (400, 30), generator=seeded())
    masked, labels = mask_words(ids, special=(0, 1, 2), mask_id=3, generator=seeded())
    chosen = labels != -100
    assert not (chosen & (ids <= 3)).any()
    assert (masked[chosen] == 3).all() and torch.equal(masked[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    assert chosen[ids > 3].float().mean() == pytest.approx(0.15, abs=0.01)


def test_attended_places_are_hidden_more_often():
    batch, video, words = 4000, 14, 6
    received = torch.ones(batch, video + words)
    received[:, 2], received[:, video + 3] = 8.0, 8.0
    maskable = torch.ones(batch, video + words, dtype=torch.bool)
    maskable[:, 0] = maskable[:, video] = False
    keep = attended_keep(received, maskable, words, seeded(), ratio=0.2)
    share = (~keep).float().mean(0)
    assert share[0] == share[video] == 0
    assert share[2] > 2 * share[5] and share[video + 3] > 2 * share[video + 4]
    exact = (~keep)[(~keep)[:, video + 3]].sum(1)  # a word was drawn: mostly the exact number of places
    assert (exact == 4).float().mean() > 0.8
