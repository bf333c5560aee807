"""Training from stores: which rows a picture gets, that they are drawn fairly and again after a resume."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from PIL import Image

from mm.encoders.flame.module import FlameModule
from mm.encoders.flame.presets import flame_tiny
from mm.encoders.flame.store_data import StoredPairs, StoredPairsConfig, StoredRows
from mm.encoders.flame.store_rows import HalfRows
from mm.training import FeatureJob

WIDTH = 128


def write_store(folder, captions, facets, tower="t", shift=0):
    """A store whose row for (caption number, facet) is the unit vector number 10 * caption + facet + shift."""
    identity = {"text_tower": tower, "template": "x", "facets": facets, "width": WIDTH}
    collector = FeatureJob(folder, captions, identity=identity | HalfRows().identity()).collector()
    numbers = 10 * torch.arange(len(captions))[:, None] + torch.arange(facets) + shift
    collector.add(captions, HalfRows().encode(F.one_hot(numbers, WIDTH).float()) | {"norms": torch.ones(numbers.shape)})
    return str(folder)


@pytest.fixture
def recorded(tmp_path):
    """Eight pictures with a raw and a long caption each, in two stores."""
    raw, long = ([f"{kind} {number}" for number in range(8)] for kind in ("raw", "long"))
    rows = []
    for number in range(8):
        Image.fromarray(np.full((20, 20, 3), 30 * number, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [raw[number], long[number]]})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stores = (write_store(tmp_path / "raw", raw, 1), write_store(tmp_path / "long", long, 4, shift=1))
    return StoredPairsConfig(train=str(tmp_path / "t.jsonl"), stores=stores, positives=3, batch_size=4, train_batches=6)


def batches(config, count=6, done=None):
    data = StoredPairs(config, flame_tiny().processor)
    if done:
        data.load_state_dict(done)
    loader, found = data.train_dataloader(), []
    for batch in loader:
        loader.confirm()
        found.append((batch, data.state_dict()))
        if len(found) == count:
            return found


def test_rows_belong_to_the_picture_and_never_repeat(recorded):
    seen = set()
    for batch, _ in batches(recorded):
        assert batch["texts"].shape == (4, 3, WIDTH) and batch["texts"].dtype == torch.float32
        picture = (batch["pixel_values"][:, 0].mean(dim=(1, 2)) * 0.26862954 + 0.48145466) * 255 / 30  # grey level
        numbers = batch["texts"].argmax(dim=-1)
        assert torch.equal(numbers // 10, picture.round().long()[:, None].expand(4, 3))
        assert all(len(row.unique()) == 3 for row in numbers)
        torch.testing.assert_close(batch["texts"].norm(dim=-1), torch.ones(4, 3))
        seen |= set((numbers % 10).flatten().tolist())
    assert seen == {0, 1, 2, 3, 4}  # the raw caption's row and all facets of the long one


def test_draws_are_fair():
    rows = StoredRows.__new__(StoredRows)
    rows.stores, rows.width = [], 1
    rows.of = lambda captions: [(0, "x", facet) for facet in range(5)]
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5)

    class Counting:
        def rows(self, captions, facets):
            counts.index_add_(0, facets[:, 0], torch.ones(len(facets)))
            return torch.ones(len(facets), 1, 1)

    rows.stores = [Counting()]
    rows.draw([["x"]] * 2000, 2, generator)
    assert counts.sum() == 4000 and (counts / 800 - 1).abs().max() < 0.1


def test_draws_follow_the_seed_and_go_on_after_a_resume(recorded):
    whole = batches(recorded)
    again = batches(recorded)
    assert all(torch.equal(a["texts"], b["texts"]) for (a, _), (b, _) in zip(whole, again, strict=True))
    resumed = batches(recorded, 3, done=whole[2][1])
    for (a, _), (b, _) in zip(whole[3:], resumed, strict=True):
        assert torch.equal(a["texts"], b["texts"]) and torch.equal(a["pixel_values"], b["pixel_values"])
    assert not torch.equal(whole[0][0]["texts"].sum(dim=(0, 1)), whole[2][0]["texts"].sum(dim=(0, 1)))


def test_pictures_without_stored_captions_are_named_or_counted(recorded, tmp_path):
    from dataclasses import replace

    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"image": "2.png", "captions": []})
    lines[5] = json.dumps({"image": "5.png", "captions": ["never embedded"]})
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    ordered = replace(recorded, shuffle=0)
    with pytest.raises(ValueError, match=r"t.jsonl: line 3: the picture has no caption"):
        batches(ordered)
    counting = StoredPairs(replace(ordered, on_error="count"), flame_tiny().processor).reader("train")
    assert len(list(counting)) == 6
    assert "stores hold 0 rows of this picture's 1 captions, 3 are drawn" in counting.errors[1]


def test_stores_that_do_not_fit_are_refused(recorded, tmp_path):
    from dataclasses import replace

    other = write_store(tmp_path / "other", ["x"], 2, tower="u")
    with pytest.raises(ValueError, match=r"different text towers \(u and t\)"):
        batches(replace(recorded, stores=(*recorded.stores, other)))
    with pytest.raises(ValueError, match="no store was named"):
        batches(replace(recorded, stores=()))
    with pytest.raises(ValueError, match="positives must be at least 1"):
        replace(recorded, positives=0)


def test_a_module_trains_from_stores(recorded):
    module = FlameModule(preset="tiny")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **options)
    before = module.model.head[0].weight.detach().clone()
    trainer.fit(module, StoredPairs(recorded))
    assert trainer.global_step == 2 and module.model.head[0].weight.isfinite().all()
    assert not torch.equal(module.model.head[0].weight, before)
    vision = FlameModule(vision=flame_tiny(text_width=64).config)
    with pytest.raises(ValueError, match="the stores have 128 channels, the model has 64"):
        Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **options).fit(
            vision, StoredPairs(recorded)
        )
