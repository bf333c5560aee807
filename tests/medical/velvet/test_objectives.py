"""Masked words, mined pairs, views, and the losses put together."""

from __future__ import annotations

import pytest
import torch

from mm.medical.velvet.config import VelvetConfig
from mm.medical.velvet.corruption import CorruptionConfig, corrupt, draw_boxes, make_views
from mm.medical.velvet.masking import mask_words
from mm.medical.velvet.mining import mine_pairs
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.objectives import WEIGHTS, ObjectiveConfig, pretraining_losses
from mm.medical.velvet.volume_views import global_volume, local_volume, quarter_turns
from tests.medical.velvet.conftest import small_text, small_vision


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- masked words ----------------------------------------------------------------------------------------------------


def test_masking_spares_special_tokens_and_takes_its_share():
    config = small_text()
    row = torch.tensor([2, 34, *range(5, 34), 35, *range(5, 30), 3, 0, 0])
    ids = row.expand(400, -1)
    masked, labels = mask_words(ids, config, seeded())
    chosen = labels != -100
    special = (ids <= 4) | (ids >= config.first_sentence_id)
    assert not chosen[special].any() and torch.equal(masked[special], ids[special])
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    share = chosen[~special].float().mean()
    assert 0.14 < share < 0.16
    shown = masked[chosen]
    assert 0.78 < (shown == config.mask_id).float().mean() < 0.82
    kept = (shown == ids[chosen]).float().mean()
    assert 0.08 < kept < 0.13  # a tenth, and the few random ids that hit
    assert (shown >= config.first_sentence_id).any(), "random ids come from the whole vocabulary"


# --- mined pairs -----------------------------------------------------------------------------------------------------


def test_mining_never_takes_the_diagonal_and_prefers_the_similar():
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.9, 0.0], [0.0, 0.0, 0.9]])
    texts = []
    for seed in range(200):
        pairs = mine_pairs(similarity, 0.1, generator=seeded(seed))
        assert torch.equal(pairs.volume[:3], pairs.text[:3])
        assert (pairs.volume[3:] != pairs.text[3:]).all()
        assert pairs.labels.tolist() == [1] * 3 + [0] * 6
        assert pairs.volume[3:6].tolist() == [0, 1, 2] and pairs.text[6:].tolist() == [0, 1, 2]
        texts.append(pairs.text[3:6])
    first = torch.stack(texts)[:, 0]
    assert (first == 1).float().mean() > 0.95 and (first == 2).sum() >= 0


def test_mining_with_equal_reports_and_alone():
    similarity = torch.zeros(2, 2)
    assert mine_pairs(similarity[:1, :1], 0.1) is None
    same = torch.ones(2, 2, dtype=torch.bool)
    assert mine_pairs(similarity, 0.1, positives=same, generator=seeded()).labels.tolist() == [1, 1] + [-100] * 4


# --- views -----------------------------------------------------------------------------------------------------------


def test_views_keep_the_turned_crop_as_target():
    crops = torch.rand(4, 1, 20, 20, 20, generator=seeded(1))
    views = make_views(crops, seeded())
    assert views.corrupted.shape == views.target.shape == (8, 1, 20, 20, 20)
    both = torch.cat([crops, crops])
    assert torch.equal(quarter_turns(views.target, (4 - views.turns) % 4), both), "the turn does not undo the view"
    assert not torch.equal(views.corrupted, views.target)
    assert len(set(map(tuple, views.turns.view(2, 4).T.tolist()))) > 1, "views must draw their own turns"
    again = make_views(crops, seeded())
    assert torch.equal(again.corrupted, views.corrupted)


def test_corruption_stays_within_its_bounds():
    crops = torch.full((6, 1, 32, 32, 32), 2.0)
    shares = []
    for seed in range(10):
        changed = corrupt(crops, seeded(seed)) != crops  # noise lies in 0 .. 1, pasted boxes equal or noisy
        shares += changed.flatten(1).float().mean(1).tolist()
    # at most two passes of 30 % and a last box of a quarter edge each
    assert 0 < max(shares) < 2 * (0.3 + 0.25**3) and min(shares) < 0.1
    assert torch.equal(corrupt(crops, seeded(), CorruptionConfig(largest_share=0.0)), crops)


def test_boxes_have_the_published_edges():
    config = CorruptionConfig()
    boxes = [box for seed in range(20) for box in draw_boxes((96, 96, 96), seeded(seed), config)]
    edges = torch.tensor([[high - low for low, high in zip(*box, strict=True)] for box in boxes])
    starts = torch.tensor([box[0] for box in boxes])
    assert edges.max() == 23 and edges[(starts < 72).all(1)].min() == 4 and starts.max() == 91
    assert all(min(end - start for start, end in zip(*box, strict=True)) > 0 for box in boxes)


def test_axial_plane_is_another_plane():
    volume = torch.rand(1, 1, 4, 4, 4, generator=seeded())
    turn = torch.tensor([1])
    published, axial = quarter_turns(volume, turn), quarter_turns(volume, turn, "axial")
    torch.testing.assert_close(published[0, 0].sum((1, 2)), volume[0, 0].sum((1, 2)), msg="the first axis stays")
    torch.testing.assert_close(axial[0, 0].sum((0, 1)), volume[0, 0].sum((0, 1)), msg="the last axis stays")
    assert not torch.equal(published, axial)
    with pytest.raises(ValueError, match="equal axes, got 4 and 5"):
        quarter_turns(torch.zeros(1, 1, 4, 4, 5), turn)


def test_local_volume_pads_what_is_short_and_stays_inside():
    scan = torch.arange(2 * 30 * 30.0).view(1, 2, 30, 30) + 1
    crop = local_volume(scan, 16, seeded())
    assert crop.shape == (1, 16, 16, 16) and crop[:, 7:9].min() >= 1
    assert (crop == scan.min()).sum() >= 14 * 16 * 16
    places = {float(local_volume(scan, 16, seeded(seed))[0, 7, 0, 0]) for seed in range(10)}
    assert len(places) > 5


def test_global_volume_keeps_the_whole_plane():
    scan = torch.zeros(1, 30, 40, 5)
    scan[0, 0, 0], scan[0, -1, -1] = 4.0, 8.0
    cube = global_volume(scan, 10)
    assert cube.shape == (1, 10, 10, 10)
    torch.testing.assert_close(cube.mean(), scan.mean())


# --- all together ----------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(small_tokenizer):
    tokens = small_tokenizer([["No cyst.", "liver normal"], ["left kidney cysts."], ["large liver", "the right."]])
    return {"volume": torch.rand(3, 1, 32, 32, 32, generator=seeded()), **tokens.to_dict()}


@pytest.fixture
def model(small_tokenizer):
    torch.manual_seed(0)
    text = small_tokenizer.text_config(small_text())
    return VelvetModel(VelvetConfig(vision=small_vision(), text=text, contrastive_width=8), tokenizer=small_tokenizer)


def test_every_loss_is_there_and_reaches_every_parameter(model, batch):
    batch |= make_views(batch["volume"], seeded()).__dict__
    total, losses = pretraining_losses(model, batch, ObjectiveConfig(mask_share=0.5), seeded())
    assert tuple(losses) == WEIGHTS
    torch.testing.assert_close(total, sum(losses.values()))
    total.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_weights_scale_and_switch_off(model, batch):
    off = dict.fromkeys(WEIGHTS, 0.0) | {"report": 3.0}
    total, losses = pretraining_losses(model, batch, ObjectiveConfig(**off), seeded())
    assert list(losses) == ["report"]
    torch.testing.assert_close(total, 3 * losses["report"])


def test_a_loss_without_its_part_is_refused(model, batch):
    with pytest.raises(ValueError, match="corrupted, target and turns"):
        pretraining_losses(model, batch, ObjectiveConfig(), seeded())
    plain = VelvetModel(VelvetConfig(vision=small_vision(), text=small_text(fusion_layers=0), vision_heads=False))
    with pytest.raises(ValueError, match=r"fused_words and match is on.*text\.fusion_layers"):
        pretraining_losses(plain, batch, ObjectiveConfig(views=0, rotation=0, reconstruction=0), seeded())
    with pytest.raises(ValueError, match="must not be negative"):
        ObjectiveConfig(word=-1.0)


def test_one_batch_can_be_learned(model, batch):
    config = ObjectiveConfig(views=0, rotation=0, reconstruction=0, text_words=0, label_smoothing=0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    totals = []
    for _ in range(40):
        total, losses = pretraining_losses(model, batch, config, seeded(1))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.5 * totals[0], losses
