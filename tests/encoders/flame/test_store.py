"""Store of text embeddings: what comes out is what the tower gives, whoever wrote it, or it is refused by name."""

import hashlib
import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from mm.encoders.flame.evaluation.retrieval import text_scores
from mm.encoders.flame.positives import draw_positives
from mm.encoders.flame.store import FacetStore, identity_of
from mm.encoders.flame.store_writer import ShardEmbedder, embed_rows, fill, shard_items, store_job
from mm.encoders.flame.tower import TextTowerConfig
from mm.training import FeatureJob
from mm.training.feature_shards import shard_path

HARD = [
    '"',
    '""\'"',
    "🦊🌙 👩‍👩‍👧",
    "قطة سوداء على كرسي",
    "חתול שחור",
    'a dog" . After thinking step by step , this image description means in just one word:"',
    'Detailed Image description : " means in just one word:"',
    "<s></s><unk>",
    "a\tb",
    "word " * 10_000,
]
"""Captions that break parsers: quotes alone, emoji, right to left, the template's own words, special tokens, length."""
PLAIN = [f"picture {number} of a red circle" for number in range(9)]


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    """The fixture's language model as a folder on disk."""
    folder = tmp_path_factory.mktemp("language-model")
    text.model.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tower(encoder):
    return encoder(max_tokens=64)


def build(folder, captions, tower, template="short", **options):
    job = store_job(folder, captions, tower, template, **{"shard_items": 4} | options)
    assert fill(job, tower, batch_size=4) == len(job)
    return FacetStore(folder)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(("template", "facets"), [("long", 7), ("short", 3), ("single", 1)])
def test_rows_are_what_the_tower_gives(tmp_path, tower, template, facets):
    store = build(tmp_path, PLAIN, tower, template)
    raw = tower.encode(PLAIN, template)
    assert store.rows(PLAIN).shape == (9, facets, tower.width) and store.rows(PLAIN).dtype == torch.float16
    torch.testing.assert_close(store.rows(PLAIN).float(), F.normalize(raw, dim=-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(store.rows(PLAIN).float().norm(dim=-1), torch.ones(9, facets), atol=2e-3, rtol=0)
    torch.testing.assert_close(store.norms(PLAIN), raw.norm(dim=-1), atol=1e-4, rtol=1e-4)
    whole = tower.encode(PLAIN, template, reduce="mean", normalize=True)
    torch.testing.assert_close(store.embed(PLAIN), whole, atol=1e-3, rtol=0)


def test_the_mean_is_that_of_rows_with_their_lengths(tmp_path, tower):
    raw = tower.encode(PLAIN[:3], "short")
    lengths = torch.tensor([1.0, 30.0, 0.1])
    tower.encode = lambda *_, **__: raw * lengths[None, :, None]
    store = build(tmp_path, PLAIN[:3], tower)
    wanted = F.normalize((raw * lengths[None, :, None]).mean(dim=1), dim=-1)
    torch.testing.assert_close(store.embed(PLAIN[:3]), wanted, atol=1e-3, rtol=0)
    assert (store.embed(PLAIN[:3]) - F.normalize(store.rows(PLAIN[:3]).float().mean(dim=1), dim=-1)).abs().max() > 0.05


@pytest.mark.parametrize("number", range(len(HARD)))
def test_hard_captions_are_stored_like_others(tmp_path, tower, number):
    store = build(tmp_path, [*PLAIN[:3], HARD[number]], tower, shard_items=8)
    alone = F.normalize(tower.encode([HARD[number]], "short"), dim=-1)
    torch.testing.assert_close(store.rows([HARD[number]]).float(), alone, atol=1e-3, rtol=0)
    assert list(store)[-1] == HARD[number]


def test_equal_captions_are_embedded_once(tmp_path, tower):
    asked = []
    encode = tower.encode
    tower.encode = lambda captions, **options: asked.extend(captions) or encode(captions, **options)
    store = build(tmp_path, [*PLAIN, *PLAIN[::-1], PLAIN[0]], tower)
    assert sorted(asked) == sorted(PLAIN) and len(store) == 9
    assert torch.equal(store.rows([PLAIN[2], PLAIN[8], PLAIN[2]])[0], store.rows([PLAIN[2]])[0])


def test_picked_rows(tmp_path, tower):
    store = build(tmp_path, PLAIN, tower, "long")
    picked = draw_positives(9, 7, 4, torch.Generator().manual_seed(0))
    every = store.rows(PLAIN)
    found = store.rows(PLAIN, picked)
    assert all(torch.equal(found[i, p], every[i, picked[i, p]]) for i in range(9) for p in range(4))


@pytest.mark.parametrize("change", ["layer", "templates", "weights"])
def test_another_tower_is_refused(tmp_path, encoder, tower, text, change):
    build(tmp_path, PLAIN, tower)
    if change == "weights":
        weight = text.model.model.layers[0].mlp.up_proj.weight
        kept = weight.detach().clone()
        weight.data[0, 0] += 1.0
    other = encoder(max_tokens=64, **{"layer": {"layer": 2}, "templates": {"templates": "world"}}.get(change, {}))
    try:
        with pytest.raises(ValueError, match=r"computed with something else .*text_tower: '\w+' there, '\w+' asked"):
            FacetStore(tmp_path, tower=other)
        with pytest.raises(ValueError, match="computed with something else"):
            store_job(tmp_path, PLAIN, other, "short")
    finally:
        if change == "weights":
            weight.data.copy_(kept)
    assert FacetStore(tmp_path, tower=tower, template="short").facets == 3


def test_another_template_is_refused(tmp_path, tower):
    build(tmp_path, PLAIN, tower)
    with pytest.raises(ValueError, match="template: 'short' there, 'long' asked for"):
        FacetStore(tmp_path, template="long")
    with pytest.raises(ValueError, match="facets: 3 there, 7 asked for"):
        store_job(tmp_path, PLAIN, tower, "long")


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no embedding store there"):
        FacetStore(tmp_path)
    FeatureJob(tmp_path, [], identity={"model": "audio"}).collector()
    with pytest.raises(ValueError, match="holds other features than text embeddings"):
        FacetStore(tmp_path)


def test_a_truncated_shard_is_named_and_rebuilt_alone(tmp_path, tower):
    store = build(tmp_path, PLAIN, tower)
    whole = contents(tmp_path)
    path = shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-10])
    store = FacetStore(tmp_path)
    assert torch.isfinite(store.rows(PLAIN[:4])).all()
    with pytest.raises(ValueError, match=r"features-000001.safetensors: damaged shard .*run the command"):
        store.rows(PLAIN)
    job = store_job(tmp_path, [], tower, "short", shard_items=4)  # without the list of captions, too
    assert [task.keys for task in job.tasks] == [tuple(PLAIN[4:8])]
    fill(job, tower, batch_size=4)
    assert contents(tmp_path) == whole


def test_all_ways_of_writing_give_the_same_bytes(tmp_path, folder):
    config = TextTowerConfig(language=str(folder), layer="4", max_tokens=64)
    options = {"template": "short", "batch_size": 4}
    actor = ShardEmbedder(str(tmp_path / "actors"), config, **options)
    build(tmp_path / "one", PLAIN, actor.tower, about=dict(vars(config)))
    for rank in (1, 0):
        build(tmp_path / "two", PLAIN, actor.tower, rank=rank, world=2, about=dict(vars(config)))
    job = store_job(tmp_path / "actors", PLAIN, actor.tower, "short", shard_items=4, about=dict(vars(config)))
    other = ShardEmbedder(str(tmp_path / "actors"), dict(vars(config)), **options)
    items = json.loads(json.dumps(shard_items(job)))  # they travel between machines
    done = [callable_(item) for callable_, item in zip((other, actor, other), reversed(items), strict=True)]
    assert sorted(row["written"] for row in done) == [1, 4, 4]
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "actors")


def test_actors_of_ray_write_the_same_bytes(tmp_path, folder):
    ray = pytest.importorskip("ray", reason="the same callable runs without Ray in the test above")
    config = dict(vars(TextTowerConfig(language=str(folder), layer="4", max_tokens=64)))
    options = {"folder": str(tmp_path / "ray"), "config": config, "template": "short", "batch_size": 4}
    tower = ShardEmbedder(**options).tower
    build(tmp_path / "one", PLAIN, tower, about=config)
    job = store_job(tmp_path / "ray", PLAIN, tower, "short", shard_items=4, about=config)
    rows = ray.data.from_items(shard_items(job)).map(ShardEmbedder, fn_constructor_kwargs=options, concurrency=1)
    assert sum(row["written"] for row in rows.take_all()) == 9
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")


def test_an_actor_refuses_the_store_of_another_tower(tmp_path, folder, tower):
    build(tmp_path, PLAIN, tower)
    with pytest.raises(ValueError, match="computed with something else"):
        ShardEmbedder(str(tmp_path), {"language": str(folder), "layer": "2"}, template="short")


def test_embeddings_that_are_not_finite_are_refused(tower):
    good = tower.encode(PLAIN[:2], "short")
    good[1, 2, 0] = torch.inf
    tower.encode = lambda *_, **__: good
    with pytest.raises(ValueError, match="'picture 1 of a red circle' is not finite"):
        embed_rows(tower, PLAIN[:2], "short")
    good[1] = 0
    with pytest.raises(ValueError, match="not finite or zero"):
        embed_rows(tower, PLAIN[:2], "short")


def test_the_store_serves_retrieval_like_the_tower(tmp_path, tower):
    store = build(tmp_path, PLAIN, tower)
    images = F.normalize(torch.randn(4, tower.width, generator=torch.Generator().manual_seed(0)), dim=-1)
    stored = store.rows(PLAIN).float() * store.norms(PLAIN)[..., None]
    for way in ("mean", "each", "max", [0, 2]):
        wanted = text_scores(images, tower.encode(PLAIN, "short"), way)
        torch.testing.assert_close(text_scores(images, stored, way), wanted, atol=2e-3, rtol=0)


def test_a_store_can_be_moved(tmp_path, tower):
    build(tmp_path / "here", PLAIN, tower)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert FacetStore(tmp_path / "there", tower=tower).identity | identity_of(tower, "short") == (
        FacetStore(tmp_path / "there").identity
    )
