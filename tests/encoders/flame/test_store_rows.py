"""Compressed rows, the authors' layout, and the speed of the reader."""

import pytest
import torch
import torch.nn.functional as F

from mm.encoders.flame.store import FacetStore
from mm.encoders.flame.store_bench import compare as race
from mm.encoders.flame.store_bench import rows as bench_rows
from mm.encoders.flame.store_compress import compare, compress, nearest
from mm.encoders.flame.store_official import LABELS, read_sample, samples
from mm.encoders.flame.store_rows import HalfRows, Int8Rows, ProductRows, lloyd
from mm.training import FeatureJob

WIDTH = 32


def some_rows(count, facets=2, seed=0):
    """Unit rows in loose groups, as texts are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, WIDTH, generator=generator)
    rows = centres[torch.randint(20, (count, facets), generator=generator)]
    return F.normalize(rows + 0.5 * torch.randn(count, facets, WIDTH, generator=generator), dim=-1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    keys = [f"caption {number}" for number in range(300)]
    identity = {"text_tower": "t", "template": "short", "facets": 2, "width": WIDTH}
    collector = FeatureJob(folder, keys, identity=identity | HalfRows().identity(), shard_items=128).collector()
    values = some_rows(300)
    collector.add(keys, HalfRows().encode(values) | {"norms": torch.arange(600.0).view(300, 2)})
    return FacetStore(folder)


@pytest.mark.parametrize(("codec", "least"), [(Int8Rows(), 0.9999), (None, 0.8)])
def test_codecs_give_back_unit_rows_close_to_the_originals(codec, least):
    rows = some_rows(400)
    codec = codec or ProductRows.fit(rows.flatten(0, 1), part=8)
    back = codec.decode(codec.encode(rows))
    assert back.shape == rows.shape and back.dtype == torch.float16
    torch.testing.assert_close(back.float().norm(dim=-1), torch.ones(400, 2), atol=2e-3, rtol=0)
    assert F.cosine_similarity(back.float(), rows, dim=-1).min() > least


def test_int8_error_is_half_a_step():
    rows = some_rows(50)
    stored = Int8Rows().encode(rows)
    back = stored["codes"].float() * stored["scale"][..., None]
    assert ((back - rows).abs() <= rows.abs().amax(dim=-1, keepdim=True) / 254 + 1e-7).all()
    assert stored["codes"].abs().amax(dim=-1).eq(127).all()


def test_product_rows_of_few_different_rows_are_exact():
    rows = some_rows(200, facets=1)[:, 0].repeat(2, 1)  # 200 different rows fit into 256 codewords per part
    codec = ProductRows.fit(rows, part=8, rounds=15)
    assert F.cosine_similarity(codec.decode(codec.encode(rows)).float(), rows, dim=-1).mean() > 0.999


def test_lloyd_lowers_the_error_and_uses_every_codeword():
    values = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    start = torch.cat([values[:30], values[:1] + 100])  # nobody chooses the last
    errors = [torch.cdist(values, lloyd(values, start, rounds)).min(dim=1).values.square().mean() for rounds in (1, 12)]
    assert errors[1] < errors[0]
    chosen = torch.cdist(values, lloyd(values, start, 12)).argmin(dim=1)
    assert len(chosen.unique()) == 31


@pytest.mark.parametrize(("kind", "size", "loss"), [("int8", 0.75, 0.03), ("product", 0.75, 0.6)])
def test_a_compressed_store_is_smaller_and_says_what_it_lost(tmp_path, store, kind, size, loss):
    small = compress(store, tmp_path, kind, part=8)
    assert list(small) == list(store) and small.template == "short"
    captions = list(store)[:5]
    assert torch.equal(small.norms(captions), store.norms(captions))
    picked = torch.tensor([[1], [0], [1], [1], [0]])
    assert torch.equal(
        small.rows(captions, picked), small.rows(captions).gather(1, picked[..., None].expand(-1, -1, 32))
    )
    found = compare(store, small, queries=200)
    assert found["bytes_ratio"] < size and 0 <= found["recall_loss_at_10"] < loss and found["searched"] == 600
    assert found["recall_at_10"] > 0.1 and found["recall_loss_at_10"] == 1 - found["recall_at_10"]
    with pytest.raises(ValueError, match="compress the original"):
        compress(small, tmp_path / "again", "int8")
    with pytest.raises(ValueError, match="can't be read into out"):
        small.rows(captions, out=torch.empty(5, 2, 32).half())


def test_the_measured_loss_is_that_of_the_neighbours(tmp_path, store):
    """Scrambled rows lose nearly all neighbours: the measure can fail."""
    captions = list(store)
    collector = FeatureJob(tmp_path, captions, identity=store.identity, shard_items=512).collector()
    collector.add(captions, HalfRows().encode(some_rows(300, seed=9)) | {"norms": store.norms(captions)})
    found = compare(store, FacetStore(tmp_path), queries=100)
    assert found["recall_at_10"] < 0.2 and found["cosine_mean"] < 0.3
    assert compare(store, store, queries=100)["recall_at_10"] == 1.0


def test_neighbours_are_of_other_captions():
    base = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.5], [0.0, 1.0]]), dim=-1)
    owner = torch.tensor([0, 0, 1, 2])
    assert nearest(base[:1], base, owner, owner[:1], k=2).tolist() == [[2, 3]]


def test_compressing_goes_on_and_refuses_what_does_not_fit(tmp_path, store):
    compress(store, tmp_path, "int8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "features-000000.safetensors").unlink()
    compress(store, tmp_path, "int8")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="rows: 'int8' there, 'product' asked for"):
        compress(store, tmp_path, "product")
    with pytest.raises(ValueError, match="a width that 7 divides"):
        compress(store, tmp_path / "x", "product", part=7)
    with pytest.raises(ValueError, match="at least 256 rows"):
        ProductRows.fit(some_rows(20)[:, 0])


def test_the_authors_files_are_read(tmp_path):
    rows = some_rows(11, facets=1)[:, 0].half()
    (tmp_path / "00000").mkdir()
    torch.save(rows, tmp_path / "00000" / "000001.pth")
    ((key, path),) = samples(tmp_path)
    assert key == "000001" and torch.equal(read_sample(path), rows)
    assert len(LABELS) == 11 and LABELS[0] == ("raw", 0) and LABELS[4] == ("long", 0)
    torch.save(rows[:7], path)
    with pytest.raises(ValueError, match=r"expected a tensor of 11 rows, found \(7, 32\)"):
        read_sample(path)
    torch.save({"code": print}, path)
    with pytest.raises(ValueError, match="not a readable tensor file"):
        read_sample(path)
    with pytest.raises(FileNotFoundError, match=r"no \.pth files"):
        samples(tmp_path / "none")


def test_the_reader_is_twenty_times_as_fast_as_one_file_per_sample():
    files, ours = race(width=128, samples=96, batch=64, repeats=7)
    assert files["speedup"] == 1.0 and ours["speedup"] > 20, (files, ours)
    with pytest.raises(ValueError, match="on the CPU"):
        bench_rows(device="cuda")
