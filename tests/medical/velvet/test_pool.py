"""The pool of phantoms: the same patients as elsewhere, noise of the same strength, twins side by side."""

from __future__ import annotations

import pytest
import torch

from mm.data.split import Split
from mm.medical.phantom_reports import report
from mm.medical.phantoms import render
from mm.medical.velvet.data import phantom_tokenizer, twin_case, windowed
from mm.medical.velvet.pool import PhantomPool, shard, windowed_with_noise, write_pool

SIZE = 24


@pytest.fixture(scope="module")
def patients():
    return shard(range(10), SIZE)


@pytest.fixture
def pool(patients):
    pool = PhantomPool(seed=3)
    pool.add(patients)
    return pool


def test_a_shard_holds_the_training_patients_without_noise(patients):
    cases = [twin_case(Split("train").seed(number)) for number in range(10)]
    tokens = phantom_tokenizer()([report(case) for case in cases], length=patients["input_ids"].shape[1])
    assert torch.equal(tokens.input_ids, patients["input_ids"])
    noisy = torch.stack([windowed(render(case, SIZE).hu) for case in cases])
    clean = torch.stack([windowed(volume[0].numpy()) for volume in patients["hu"]])
    assert 0.001 < (noisy - clean).abs().mean() < 0.02


def test_noise_is_as_strong_as_in_the_phantoms(patients):
    cases = [twin_case(Split("train").seed(number)) for number in range(10)]
    generator = torch.Generator().manual_seed(0)
    clean = torch.stack([windowed(volume[0].numpy()) for volume in patients["hu"]])
    theirs = (torch.stack([windowed(render(case, SIZE).hu) for case in cases]) - clean).std()
    ours = torch.stack([windowed_with_noise(patients["hu"], generator) - clean for _ in range(8)]).std()
    assert ours == pytest.approx(theirs, rel=0.25)


def test_batches_pair_twins_that_differ_in_one_word(pool):
    batch = pool.batch(8)
    assert batch["volume"].shape == (8, 1, SIZE, SIZE, SIZE) and batch["volume"].min() == 0 == 1 - batch["volume"].max()
    differ = (batch["input_ids"][0::2] != batch["input_ids"][1::2]).sum(1)
    assert differ.tolist() == [1, 1, 1, 1]
    assert batch["attention_mask"].any(0).all(), "columns without any token must be cut off"


def test_without_twins_patients_are_drawn_alone_and_noise_is_fresh(pool, patients):
    batches = [pool.batch(64, twins=False) for _ in range(2)]
    ids = {tuple(row.tolist()) for row in batches[0]["input_ids"]}
    assert len(ids) == 10
    row = patients["input_ids"][3, : batches[0]["input_ids"].shape[1]]
    same = batches[0]["volume"][(batches[0]["input_ids"] == row).all(1)]
    assert len(same) > 1 and not torch.equal(same[0], same[1])


def test_files_are_read_once_and_kept(tmp_path):
    paths = list(write_pool(tmp_path, 6, SIZE, workers=1, per_file=4))
    times = [path.stat().st_mtime_ns for path in paths]
    pool = PhantomPool()
    assert len(paths) == 2 and pool.read(tmp_path) == 6 and pool.read(tmp_path) == 6
    assert list(write_pool(tmp_path, 6, SIZE, workers=1, per_file=4)) == paths
    assert [path.stat().st_mtime_ns for path in paths] == times
    with pytest.raises(ValueError, match="twins"):
        next(write_pool(tmp_path, 5, SIZE))
