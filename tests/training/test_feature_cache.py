"""Feature cache: bytes that do not depend on interruptions, unique keys, ragged features."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from mm.training.feature_cache import FeatureCache, FeatureWriter


class Features(LightningModule):
    """Squares and a ragged count for every key; may fail at one key."""

    def __init__(self, fail_at: str | None = None):
        super().__init__()
        self.fail_at = fail_at

    def predict_step(self, batch, batch_idx):
        if self.fail_at in batch:
            raise RuntimeError("power cut")
        numbers = torch.tensor([float(key[1:]) for key in batch])
        return {
            "keys": batch,
            "features": {
                "square": torch.stack([numbers, numbers**2], dim=1),
                "count": [torch.arange(int(n)) for n in numbers],
            },
        }


def compute(folder, keys, *, fail_at=None, batch=4, shard_items=8):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FeatureWriter(folder, shard_items=shard_items)],
    )
    loader = DataLoader(FeatureCache(folder).missing(keys), batch_size=batch, collate_fn=list)
    trainer.predict(Features(fail_at), loader, return_predictions=False)


KEYS = [f"k{n}" for n in range(30)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_key_comes_back(tmp_path):
    compute(tmp_path, KEYS)
    cache = FeatureCache(tmp_path)
    assert list(cache) == KEYS and len(cache) == 30
    assert cache["k7"]["square"].tolist() == [7.0, 49.0]
    assert cache["k3"]["count"].tolist() == [0, 1, 2]
    assert "k31" not in cache
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_interrupted_and_restarted_gives_the_same_bytes(tmp_path):
    compute(tmp_path / "whole", KEYS)
    with pytest.raises(RuntimeError, match="power cut"):
        compute(tmp_path / "cut", KEYS, fail_at="k21")
    assert list(FeatureCache(tmp_path / "cut")) == KEYS[:16]  # whole shards only
    compute(tmp_path / "cut", KEYS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_shard_without_its_index_entry_is_written_again(tmp_path):
    compute(tmp_path / "whole", KEYS)
    compute(tmp_path / "cut", KEYS[:8])
    orphan = tmp_path / "cut" / "features-0000-000001.safetensors"
    orphan.write_bytes(b"half a shard")
    compute(tmp_path / "cut", KEYS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_repeated_keys_are_computed_once(tmp_path):
    cache = FeatureCache(tmp_path)
    assert cache.missing(["k2", "k1", "k2", "k1"]) == ["k2", "k1"]
    compute(tmp_path, ["k2", "k1", "k2"])
    assert FeatureCache(tmp_path).missing(["k1", "k3"]) == ["k3"]


def test_repeated_keys_in_the_stream_are_dropped_and_counted(tmp_path, caplog):
    writer = FeatureWriter(tmp_path, shard_items=4)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, callbacks=[writer])
    trainer.predict(Features(), DataLoader(["k1", "k2", "k1", "k3", "k2", "k4", "k5"], batch_size=2, collate_fn=list))
    assert list(FeatureCache(tmp_path)) == ["k1", "k2", "k3", "k4", "k5"]
    assert (writer.written, writer.skipped) == (5, 2)


def test_rows_that_do_not_count_alike_are_refused(tmp_path):
    writer = FeatureWriter(tmp_path)
    with pytest.raises(ValueError, match="2 keys, but 3 rows of feature 'x'"):
        writer.write_on_batch_end(None, None, {"keys": ["a", "b"], "features": {"x": torch.zeros(3)}}, None, None, 0, 0)
