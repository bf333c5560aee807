"""`mm flame`: results agree with the library, bad input is one line and exit code 1."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mm.cli import main
from mm.encoders.flame.config import flame_config
from mm.encoders.flame.evaluation import class_vectors
from mm.encoders.flame.model import FlameImageEncoder
from mm.encoders.flame.store import FacetStore
from mm.encoders.flame.tower import TextTowerConfig, load_text_tower


@pytest.fixture(scope="module")
def places(text, tmp_path_factory):
    """A language model, an image model that belongs to it, pictures and a table of captions."""
    root = tmp_path_factory.mktemp("flame")
    text.model.save_pretrained(root / "lm")
    text.tokenizer.save_pretrained(root / "lm")
    tower = TextTowerConfig(language=str(root / "lm"), layer="4", max_tokens=64)
    config = replace(flame_config("tiny"), text_width=text.model.config.hidden_size, text=tower)
    torch.manual_seed(0)
    FlameImageEncoder(config).save_pretrained(root / "model")
    rows = ["image,caption,label"]
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        (root / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / "pictures" / f"{number}.png")
        rows.append(f"pictures/{number}.png,{'' if number == 5 else f'caption number {number}'},{'ab'[number % 2]}")
    (root / "table.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def mm(capsys):
    """Run a command: (exit code, parsed JSON or None, stderr)."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in words and code == 0 else out, err

    return run


@pytest.fixture(scope="module")
def store(places):
    folder = places / "store"
    words = ["--model", places / "model", "--template", "long", "--shard-items", 4, "--out", folder]
    assert main(["flame", "embed", str(places / "table.csv"), *map(str, words)]) == 0
    return folder


def both(places):
    """The library's view of the fixture."""
    model = FlameImageEncoder.from_pretrained(places / "model").eval()
    return model, load_text_tower(model.config.text)


def test_embed_counts_what_it_does_and_does_not(places, mm, tmp_path):
    (tmp_path / "c.txt").write_text("one\ntwo\n\none\n\n")
    words = ["flame", "embed", tmp_path / "c.txt", "--model", places / "lm", "--layer", 4, "--out", tmp_path / "s"]
    code, found, err = mm(*words, "--template", "short", "--json")
    assert code == 0
    assert (found["captions"], found["different"], found["without_caption"], found["embedded_now"]) == (3, 2, 2, 2)
    assert "2 entries have no caption" in err
    code, found, _ = mm(*words, "--template", "short", "--json")
    assert found["embedded_now"] == 0
    tower = load_text_tower(TextTowerConfig(language=str(places / "lm"), layer="4"))
    wanted = tower.encode(["two"], "short", normalize=True)
    torch.testing.assert_close(FacetStore(tmp_path / "s").rows(["two"]).float(), wanted, atol=1e-3, rtol=0)
    code, _, err = mm(*words, "--template", "long")
    assert code == 1 and "template: 'short' there, 'long' asked for" in err and "Traceback" not in err
    code, _, err = mm(*[2 if word == 4 else word for word in words], "--template", "short")
    assert code == 1 and "computed with something else" in err and "layer 4" in err


def test_embed_takes_its_share_of_several_processes(places, mm, tmp_path, monkeypatch):
    words = ["flame", "embed", places / "table.csv", "--model", places / "model", "--shard-items", 2, "--json"]
    _, whole, _ = mm(*words, "--out", tmp_path / "one")
    counts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        _, found, _ = mm(*words, "--out", tmp_path / "two")
        counts.append((found["embedded_now"], found["process"]))
    assert counts == [(4, "0 of 2"), (3, "1 of 2")] and whole["embedded_now"] == 7
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    monkeypatch.setenv("RANK", "x")
    code, _, err = mm(*words, "--out", tmp_path / "three")
    assert code == 1 and "RANK and WORLD_SIZE must be numbers" in err


def test_mm_predict_writes_the_same_store(places, mm, tmp_path):
    words = ["flame", "embed", places / "table.csv", "--model", places / "lm", "--layer", 4, "--shard-items", 4]
    assert mm(*words, "--out", tmp_path / "one", "--template", "short")[0] == 0
    model = {"language": str(places / "lm"), "layer": "4", "templates": "official"}
    options = ["--data.captions", places / "table.csv", "--data.store", tmp_path / "two", "--data.shard_items", 4]
    options += ["--model.text", json.dumps(model), "--model.template", "short", "--out", tmp_path / "run"]
    code, _, err = mm("predict", "--config", "flame/embed", *options, "--trainer.accelerator", "cpu")
    assert code == 0, err
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_check_names_the_damaged_shard_and_embed_mends_it(places, store, mm):
    assert mm("flame", "check", store, "--json")[1]["damaged"] == {}
    path = store / "features-000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    code, out, _ = mm("flame", "check", store)
    assert code == 1 and "features-000001.safetensors: 200 of" in out
    words = ["flame", "embed", places / "table.csv", "--model", places / "model", "--shard-items", 4, "--out", store]
    _, found, _ = mm(*words, "--json")
    assert found["embedded_now"] == 3 and path.read_bytes() == whole


def test_classify_agrees_with_the_library(places, mm):
    model, tower = both(places)
    files = [places / "pictures" / f"{n}.png" for n in range(3)]
    names = ["a red circle", "ein Hund", "قطة"]
    words = ["--labels", *names, "--language", "de", "--model", places / "model", "--top", 3, "--json"]
    code, rows, _ = mm("flame", "classify", *files, *words)
    assert code == 0 and len(rows) == 9
    from mm.encoders.flame.evaluation import PHRASES

    classes = class_vectors(tower, names, PHRASES["de"])
    with torch.no_grad():
        cosines = model(model.processor(files)) @ classes.T
    for index, file in enumerate(files):
        own = [row for row in rows if row["image"] == str(file)]
        assert [row["label"] for row in own] == [names[k] for k in cosines[index].argsort(descending=True).tolist()]
        assert own[0]["cosine"] == pytest.approx(cosines[index].max().item(), abs=1e-5)
        assert sum(row["probability"] for row in own) == pytest.approx(1.0, abs=1e-5)


def test_search_finds_pictures_by_text(places, mm):
    model, tower = both(places)
    code, rows, _ = mm(
        "flame", "search", "a red circle", "--images", places / "pictures", "--model", places / "model", "--json"
    )
    assert code == 0 and len(rows) == 5
    files = [places / "pictures" / f"{n}.png" for n in range(8)]
    with torch.no_grad():
        text = tower.encode(["a red circle"], "single", reduce="mean", normalize=True)[0]
        cosines = model(model.processor(files)) @ text
    best = cosines.argsort(descending=True)[:5].tolist()
    assert [row["image"] for row in rows] == [str(files[k]) for k in best]


def test_search_finds_stored_captions_by_picture(places, store, mm, monkeypatch):
    model, tower = both(places)
    monkeypatch.setattr("mm.encoders.flame.store_writer.load_text_tower", None)  # the language model is not needed
    picture = places / "pictures" / "3.png"
    words = ["--store", store, "--model", places / "model", "--top", 2, "--json"]
    code, rows, err = mm("flame", "search", picture, *words)
    assert code == 0, err
    captions = [f"caption number {n}" for n in range(8) if n != 5]
    with torch.no_grad():
        vectors = tower.encode(captions, "long", reduce="mean", normalize=True)
        cosines = vectors @ model(model.processor([picture]))[0]
    assert [row["caption"] for row in rows] == [captions[k] for k in cosines.argsort(descending=True)[:2].tolist()]
    assert rows[0]["cosine"] == pytest.approx(cosines.max().item(), abs=2e-3)


def test_search_refuses_the_store_of_another_tower(places, mm, tmp_path):
    words = ["--model", places / "lm", "--layer", 2, "--out", tmp_path]
    assert mm("flame", "embed", places / "table.csv", *words)[0] == 0
    code, _, err = mm(
        "flame", "search", places / "pictures" / "3.png", "--store", tmp_path, "--model", places / "model"
    )
    assert code == 1 and "computed with something else" in err


def test_evaluate_prints_what_the_store_and_the_tower_agree_on(places, store, mm):
    words = ["flame", "evaluate", places / "table.csv", "--model", places / "model", "--json"]
    _, online, _ = mm(*words, "--task", "retrieval")
    _, offline, _ = mm(*words, "--task", "retrieval", "--store", store)
    assert online == offline
    assert (online["images"], online["texts"], online["without_caption"]) == (7, 7, 1)
    _, each, _ = mm(*words, "--task", "retrieval", "--store", store, "--facets", "0,3")
    assert 0 <= each["text_to_image_r5"] <= 1
    code, _, err = mm(*words, "--task", "retrieval", "--facets", "0,x")
    assert code == 1 and "--facets must be mean, each, max or numbers" in err
    _, found, _ = mm(*words, "--task", "probe", "--label-column", "label")
    assert (found["train_images"], found["test_images"], found["classes"]) == (4, 4, 2)
    (places / "names.json").write_text('{"a": "Katze", "b": "Hund"}')
    _, found, _ = mm(*words, "--task", "classify", "--names", places / "names.json", "--language", "de")
    assert (found["images"], found["classes"], found["chance"]) == (8, 2, 0.5)
    (places / "names.json").write_text('{"a": "Katze"}')
    code, _, err = mm(*words, "--task", "classify", "--names", places / "names.json")
    assert code == 1 and "says nothing about the class 'b'" in err


def test_captions_that_the_store_lacks_are_named(places, mm, tmp_path):
    (tmp_path / "few.txt").write_text("caption number 0\n")
    assert mm("flame", "embed", tmp_path / "few.txt", "--model", places / "model", "--out", tmp_path / "s")[0] == 0
    words = ["--task", "retrieval", "--store", tmp_path / "s", "--model", places / "model"]
    code, _, err = mm("flame", "evaluate", places / "table.csv", *words)
    assert code == 1 and "6 of the captions are not in this store, the first is 'caption number 1'" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "none.csv", "--model", "{lm}", "--out", "x"], "none.csv: no such table of captions"),
        (["embed", "{root}/empty.txt", "--model", "{lm}", "--out", "x"], "none of its 3 entries has a caption"),
        (["embed", "{root}/table.csv", "--model", "{lm}", "--out", "x", "--template", "wide"], "unknown template"),
        (["embed", "{root}/table.csv", "--model", "{lm}", "--out", "x", "--layer", "99"], "layer must name"),
        (["embed", "{root}/table.csv", "--model", "{lm}", "--out", "x", "--column", "words"], "no column 'words'"),
        (["embed", "{root}/table.csv", "--model", "{lm}", "--out", "x", "--rank", "2", "--world", "2"], "rank < world"),
        (["check", "{root}"], "no embedding store there"),
        (["classify", "none.png", "--labels", "a", "--model", "{model}"], "none.png: no such picture or folder"),
        (["classify", "{root}/table.csv", "--labels", "a", "--model", "{model}"], "table.csv"),
        (["classify", "{root}/pictures", "--model", "{model}"], "name the classes with --labels"),
        (["classify", "{root}/pictures", "--labels", "a", "a", "--model", "{model}"], "got twice: a"),
        (["search", " ", "--images", "{root}/pictures", "--model", "{model}"], "the query is empty"),
        (["evaluate", "{root}/pictures", "--task", "classify", "--model", "{model}"], "has no class"),
        (["evaluate", "{root}/pictures", "--task", "retrieval", "--model", "{model}"], "no picture has a caption"),
    ],
)
def test_wrong_input_is_one_line(places, mm, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (places / "empty.txt").write_text("\n \n\n")
    names = {"{lm}": places / "lm", "{root}": places, "{model}": places / "model"}
    for mark, path in names.items():
        words = [word.replace(mark, str(path)) for word in words]
    code, _, err = mm("flame", *words)
    assert code == 1 and message in err.splitlines()[-1] and "Traceback" not in err


def test_usage(mm):
    for words in ([], ["embedd"], ["embed"], ["search", "x"]):
        assert mm("flame", *words)[0] == 2
    for words in (["flame"], *(["flame", part] for part in ("embed", "check", "compress", "classify", "search"))):
        code, out, _ = mm(*words, "--help")
        assert code == 0 and f"usage: mm {' '.join(words)}" in out and "example:" in out
