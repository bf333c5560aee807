"""Feature cache: bytes that depend on the keys alone, unique keys, ragged features, damage that is named."""

import json
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from lightning import LightningModule, Trainer

from mm.training import FeatureCache, FeatureJob, FeatureWriter
from mm.training.feature_shards import digest, shard_path


class Features(LightningModule):
    """Squares and a ragged count for every key; may fail at one key."""

    def __init__(self, fail_at: str | None = None):
        super().__init__()
        self.fail_at = fail_at
        self.seen = []

    def predict_step(self, batch, batch_idx):
        if self.fail_at in batch:
            raise RuntimeError("power cut")
        self.seen += batch
        return {"keys": batch, "features": features(batch)}


def features(keys):
    numbers = torch.tensor([float(key[1:]) for key in keys])
    return {
        "square": torch.stack([numbers, numbers**2], dim=1),
        "count": [torch.arange(int(n)) for n in numbers],
    }


def compute(folder, keys, *, fail_at=None, workers=0, **job):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FeatureWriter()],
    )
    module = Features(fail_at)
    loader = FeatureJob(folder, keys, **{"shard_items": 8} | job).loader(list, batch_size=3, workers=workers)
    trainer.predict(module, loader, return_predictions=False)
    return module.seen


def by_hand(folder, keys, **job):
    job = FeatureJob(folder, keys, **{"shard_items": 8} | job)
    collector = job.collector()
    for batch in job.batches(3):
        collector.add(batch, features(batch))
    return collector.close()


KEYS = [f"k{n}" for n in range(30)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_key_comes_back(tmp_path):
    compute(tmp_path, KEYS)
    cache = FeatureCache(tmp_path)
    assert list(cache) == KEYS and len(cache) == 30
    assert cache["k7"]["square"].tolist() == [7.0, 49.0]
    assert cache["k3"]["count"].tolist() == [0, 1, 2] and cache["k0"]["count"].shape == (0,)
    assert "k31" not in cache and 7 not in cache
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    with pytest.raises(KeyError, match="k31"):
        cache["k31"]


def test_gather_crosses_shards_and_picks_rows(tmp_path):
    compute(tmp_path, KEYS)
    cache = FeatureCache(tmp_path)
    keys = ["k29", "k0", "k8", "k0", "k9"]
    assert cache.gather(keys, "square").tolist() == [[29.0, 841.0], [0.0, 0.0], [8.0, 64.0], [0.0, 0.0], [9.0, 81.0]]
    picked = torch.tensor([[1], [0], [1], [1], [0]])
    assert cache.gather(keys, "square", picked).tolist() == [[841.0], [0.0], [64.0], [0.0], [9.0]]
    assert cache.gather(["k1", "k3"], "square", picked[:2]).tolist() == [[1.0], [3.0]]
    buffer = torch.full((5, 2), -1.0)
    assert cache.gather(keys, "square", out=buffer) is buffer and buffer[4].tolist() == [9.0, 81.0]
    with pytest.raises(ValueError, match=r"out must be contiguous torch.float32 \(2, 2\)"):
        cache.gather(["k1", "k2"], "square", out=buffer)
    with pytest.raises(ValueError, match="differs in shape"):
        cache.gather(["k1"], "count")
    with pytest.raises(ValueError, match="no feature 'cube'; it holds count, square"):
        cache.gather(["k1"], "cube")
    with pytest.raises(KeyError, match="k77"):
        cache.gather(["k1", "k77"], "square")


def test_long_rows_are_copied_like_short_ones(tmp_path):
    values = torch.randn(5, 3, 2000, generator=torch.Generator().manual_seed(0)).bfloat16()  # rows of 4000 and 12000 B
    collector = FeatureJob(tmp_path, KEYS[:5], shard_items=2).collector()
    collector.add(KEYS[:5], {"x": values, "y": values.repeat(1, 1, 2)})
    cache, order = FeatureCache(tmp_path), [4, 0, 3, 3, 1]
    keys, picked = [KEYS[index] for index in order], torch.tensor([[2, 0], [1, 1], [0, 2], [2, 1], [0, 1]])
    for name, wanted in (("x", values), ("y", values.repeat(1, 1, 2))):
        assert torch.equal(cache.gather(keys, name), wanted[order])
        assert torch.equal(cache.gather(keys, name, picked), wanted[order][torch.arange(5)[:, None], picked])


def test_interrupted_and_restarted_gives_the_same_bytes(tmp_path):
    compute(tmp_path / "whole", KEYS)
    with pytest.raises(RuntimeError, match="power cut"):
        compute(tmp_path / "cut", KEYS, fail_at="k21")
    assert list(FeatureCache(tmp_path / "cut")) == KEYS[:16]  # whole shards only
    assert compute(tmp_path / "cut", KEYS) == KEYS[16:]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
import torch
from mm.training import feature_shards
from mm.training.feature_job import FeatureJob

save = feature_shards.save_file

def killed(tensors, path):
    save(tensors, path)
    if "000002" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)

feature_shards.save_file = killed
job = FeatureJob(sys.argv[1], [f"k{n}" for n in range(30)], shard_items=8)
collector = job.collector()
for batch in job.batches(3):
    numbers = torch.tensor([float(key[1:]) for key in batch])
    counts = [torch.arange(int(n)) for n in numbers]
    collector.add(batch, {"square": torch.stack([numbers, numbers**2], dim=1), "count": counts})
"""


def test_killed_while_it_writes_a_shard_gives_the_same_bytes(tmp_path):
    by_hand(tmp_path / "whole", KEYS)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut")]
    died = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert list(FeatureCache(tmp_path / "cut")) == KEYS[:16]
    assert any(path.is_dir() for path in (tmp_path / "cut").iterdir())  # what the kill left behind
    by_hand(tmp_path / "cut", KEYS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_what_one_writes(tmp_path, world):
    by_hand(tmp_path / "one", KEYS, shard_items=4)
    jobs = [FeatureJob(tmp_path / "many", KEYS, shard_items=4, rank=rank, world=world) for rank in range(world)]
    assert sum(len(job) for job in jobs) == 30
    for rank in reversed(range(world)):  # the last comes first, so that the others plan over a half-filled folder
        by_hand(tmp_path / "many", KEYS, shard_items=4, rank=rank, world=world)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_loading_processes_and_the_trainer_change_nothing(tmp_path):
    by_hand(tmp_path / "hand", KEYS)
    compute(tmp_path / "trainer", KEYS, workers=2)
    assert contents(tmp_path / "trainer") == contents(tmp_path / "hand")


def test_new_keys_are_appended_and_old_ones_stay(tmp_path):
    by_hand(tmp_path, KEYS[:10])
    before = contents(tmp_path)
    by_hand(tmp_path, KEYS[5:20])
    assert before.items() <= contents(tmp_path).items()
    assert list(FeatureCache(tmp_path)) == KEYS[:20]


def test_a_shard_without_its_index_entry_is_written_again(tmp_path):
    by_hand(tmp_path / "whole", KEYS)
    by_hand(tmp_path / "cut", KEYS[:8])
    shard_path(tmp_path / "cut", 1).write_bytes(b"half a shard")
    by_hand(tmp_path / "cut", KEYS)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_shard_is_named_and_computed_anew_alone(tmp_path, damage):
    by_hand(tmp_path, KEYS)
    whole = contents(tmp_path)
    path = shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:100]) if damage == "cut" else path.unlink()
    cache = FeatureCache(tmp_path)
    assert cache["k1"]["square"].tolist() == [1.0, 1.0]  # the other shards can be read
    message = "100 of .* bytes" if damage == "cut" else "the file is missing"
    with pytest.raises(ValueError, match=f"features-000001.safetensors: damaged shard .{message}"):
        cache["k9"]
    assert cache.missing(KEYS) == KEYS[8:16] and list(cache.check()) == ["features-000001.safetensors"]
    assert FeatureJob(tmp_path, [], shard_items=99).tasks[0].keys == tuple(KEYS[8:16])  # its keys are still known
    assert compute(tmp_path, KEYS) == KEYS[8:16]
    assert contents(tmp_path) == whole


def test_a_flipped_byte_is_found_by_its_checksum(tmp_path):
    by_hand(tmp_path, KEYS)
    assert FeatureCache(tmp_path).check() == {}
    data = bytearray(shard_path(tmp_path, 2).read_bytes())
    data[-1] ^= 1
    shard_path(tmp_path, 2).write_bytes(data)
    assert FeatureCache(tmp_path).check() == {"features-000002.safetensors": "the checksum differs"}


def test_another_identity_is_refused_and_named(tmp_path):
    by_hand(tmp_path, KEYS, identity={"model": "a", "layer": 3}, about={"weights": "folder/a"})
    assert FeatureCache(tmp_path).identity == {"model": "a", "layer": 3}
    assert by_hand(tmp_path, KEYS, identity={"model": "a", "layer": 3}) == 0
    with pytest.raises(ValueError, match=r"layer: 3 there, 4 asked for.*made with weights folder/a"):
        FeatureJob(tmp_path, KEYS, identity={"model": "a", "layer": 4})
    with pytest.raises(ValueError, match="model: 'a' there, None asked for"):
        FeatureCache(tmp_path, identity={"layer": 3})


def test_repeated_keys_are_computed_once(tmp_path):
    assert FeatureCache(tmp_path).missing(["k2", "k1", "k2", "k1"]) == ["k2", "k1"]
    assert compute(tmp_path, ["k2", "k1", "k2"]) == ["k2", "k1"]
    assert FeatureCache(tmp_path).missing(["k1", "k3"]) == ["k3"]


def test_keys_may_be_any_text(tmp_path):
    keys = ["", 'a "quote"', "ليل", "\ud83d", "🦊" * 5000, "a\nb"]
    job = FeatureJob(tmp_path, keys)
    collector = job.collector()
    collector.add(keys, {"x": torch.arange(6)})
    cache = FeatureCache(tmp_path)
    assert list(cache) == keys and [int(cache[key]["x"]) for key in keys] == list(range(6))


def test_keys_that_share_half_a_digest_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("mm.training.feature_shards.digest", lambda key: b"same half"[:8] + digest(key)[8:])
    by_hand(tmp_path, KEYS)
    cache = FeatureCache(tmp_path)
    assert cache.gather(KEYS[::-1], "square")[:, 0].tolist() == [float(n) for n in reversed(range(30))]
    assert "k99" not in cache


def test_a_reader_travels_to_worker_processes(tmp_path):
    by_hand(tmp_path, KEYS)
    cache = pickle.loads(pickle.dumps(FeatureCache(tmp_path)))
    assert cache["k7"]["square"].tolist() == [7.0, 49.0]


def test_parquet_index(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    by_hand(tmp_path / "cache", KEYS)
    FeatureCache(tmp_path / "cache").write_parquet(tmp_path / "index.parquet")
    table = parquet.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["key"] for row in table] == KEYS
    assert table[9] == {"key": "k9", "shard": "features-000001.safetensors", "row": 1}


def test_unfinished_shards_are_not_written_and_counted(tmp_path):
    job = FeatureJob(tmp_path, KEYS, shard_items=8)
    collector = job.collector()
    collector.add(KEYS[:10], features(KEYS[:10]))
    assert (collector.written, collector.close()) == (8, 22)
    assert list(FeatureCache(tmp_path)) == KEYS[:8]


def test_what_does_not_fit_is_refused(tmp_path):
    collector = FeatureJob(tmp_path, ["a", "b", "c"], shard_items=2).collector()
    with pytest.raises(ValueError, match="2 keys, but 3 rows of feature 'x'"):
        collector.add(["a", "b"], {"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="features of 'd' came"):
        collector.add(["d"], {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="has the features y, others have x"):
        collector.add(["a"], {"x": torch.zeros(1)})
        collector.add(["b"], {"y": torch.zeros(1)})
    with pytest.raises(ValueError, match="0 <= rank < world"):
        FeatureJob(tmp_path, [], rank=2, world=2)


def test_the_writer_wants_the_loader_of_its_own_process(tmp_path):
    with pytest.raises(ValueError, match="process 1 of 2, this is process 0 of 1"):
        compute(tmp_path, KEYS, rank=1, world=2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[FeatureWriter()])
    with pytest.raises(ValueError, match="needs the loader of a job"):
        trainer.predict(Features(), torch.utils.data.DataLoader(["k1"]))


def test_batches_of_similar_cost_come_together(tmp_path):
    job = FeatureJob(tmp_path, ["k333", "k1", "k22", "k4444", "k55555", "k6"], shard_items=4)
    assert list(job.batches(2, cost=len)) == [["k1", "k22"], ["k333", "k4444"], ["k6", "k55555"]]


def test_entries_say_what_the_files_hold(tmp_path):
    by_hand(tmp_path, KEYS, identity={"model": "a"})
    entry = json.loads((tmp_path / "features-000003.json").read_text())
    assert entry["keys"] == KEYS[24:] and entry["bytes"] == shard_path(tmp_path, 3).stat().st_size
    assert FeatureCache(tmp_path).identity == {"model": "a"}
