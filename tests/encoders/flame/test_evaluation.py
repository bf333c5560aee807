"""Evaluations against slow loops and against answers that are known beforehand."""

import json
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mm.encoders.flame.evaluation import (
    PHRASES,
    ProbeConfig,
    class_vectors,
    image_features,
    linear_probe,
    open_source,
    retrieval,
    text_scores,
    zero_shot,
)
from mm.encoders.flame.evaluation.phrases import checked_phrases, read_phrases
from mm.encoders.flame.presets import flame_tiny


class Letters:
    """A text tower that counts letters; its facets are of different length."""

    width = 26

    def facets(self, template):
        return {"single": 1, "long": 3}[template]

    def encode(self, captions, template="long", reduce=None, normalize=False, batch_size=32):
        counts = torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in captions])
        rows = torch.stack([counts + k for k in range(self.facets(template))], dim=1)
        rows = rows.mean(dim=1) if reduce else rows
        return F.normalize(rows, dim=-1) if normalize else rows


def test_class_vectors_average_normalised_sentences():
    tower, phrases = Letters(), ("{}", "{} zzzz zzzz")
    found = class_vectors(tower, ["ab", "c {x}"], phrases)
    for vector, name in zip(found, ["ab", "c {x}"], strict=True):
        sentences = [F.normalize(tower.encode([p.replace("{}", name)], "single")[0, 0], dim=-1) for p in phrases]
        torch.testing.assert_close(vector, F.normalize(sum(sentences), dim=-1))


@pytest.mark.parametrize(
    ("names", "message"), [([], "no class"), (["a", " "], "an empty name"), (["a", "b", "a "], "twice: a")]
)
def test_class_names_that_can_not_be_told_apart_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        class_vectors(Letters(), names)


def test_phrases_have_a_place_for_the_name(tmp_path):
    assert all(checked_phrases(phrases) for phrases in PHRASES.values())
    assert {"en", "de", "fr", "it", "es", "zh", "ja", "ar"} <= set(PHRASES)
    (tmp_path / "p.txt").write_text("eine {} hier\n\nnoch eine\n")
    with pytest.raises(ValueError, match=r"exactly one {} .* got 'noch eine'"):
        read_phrases(tmp_path / "p.txt")
    with pytest.raises(FileNotFoundError, match="no such file of sentences"):
        read_phrases(tmp_path / "q.txt")


def test_zero_shot_counts_right_classes():
    classes = torch.eye(8)
    images = torch.eye(8)[[0, 1, 2, 2]] + 0.1 * torch.eye(8)[[3, 3, 3, 5]]
    found = zero_shot(images, torch.tensor([0, 1, 2, 5]), classes)
    assert (found["top1"], found["top5"], found["chance"]) == (0.75, 1.0, 0.125)
    assert found["mean_per_class"] == 0.75 and found["images"] == 4
    assert zero_shot(torch.ones(4, 8), torch.tensor([0, 1, 2, 3]), classes)["top1"] == 0.0  # ties never help
    assert "top5" not in zero_shot(torch.eye(3), torch.arange(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"labels in 0..2"):
        zero_shot(torch.eye(3), torch.tensor([0, 1, 3]), torch.eye(3))


def test_mean_per_class_weighs_classes_alike():
    images = torch.eye(2)[[0, 0, 0, 0]]
    found = zero_shot(images, torch.tensor([0, 0, 0, 1]), torch.eye(2))
    assert (found["top1"], found["mean_per_class"]) == (0.75, 0.5)


def test_retrieval_is_the_slow_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 30, generator=generator)
    owner = torch.cat([torch.arange(12), torch.randint(12, (18,), generator=generator)])
    found = retrieval(scores, owner)
    for k in (1, 5, 10):
        to_text = [any(int(owner[j]) == i for j in scores[i].topk(k).indices) for i in range(12)]
        to_image = [int(owner[j]) in scores[:, j].topk(k).indices for j in range(30)]
        assert found[f"image_to_text_r{k}"] == pytest.approx(np.mean(to_text))
        assert found[f"text_to_image_r{k}"] == pytest.approx(np.mean(to_image))
    assert retrieval(torch.ones(6, 6), torch.arange(6))["image_to_text_r1"] == 0.0
    assert set(retrieval(torch.eye(3), torch.arange(3))) >= {"image_to_text_r1"}
    assert "image_to_text_r5" not in retrieval(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        retrieval(torch.randn(2, 2), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"owner \(T,\)"):
        retrieval(torch.randn(2, 2), torch.tensor([0]))


def test_ways_to_score_several_facets():
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    texts = torch.randn(5, 4, 8, generator=generator) * torch.tensor([1.0, 9.0, 0.1, 3.0])[:, None]
    cosines = torch.stack([images @ F.normalize(texts[:, k], dim=-1).T for k in range(4)], dim=-1)
    torch.testing.assert_close(text_scores(images, texts, "each"), cosines.mean(dim=-1))
    torch.testing.assert_close(text_scores(images, texts, "max"), cosines.max(dim=-1).values)
    torch.testing.assert_close(text_scores(images, texts), images @ F.normalize(texts.mean(dim=1), dim=-1).T)
    torch.testing.assert_close(text_scores(images, texts, [2]), cosines[..., 2])
    torch.testing.assert_close(text_scores(images, texts[:, 1]), cosines[..., 1])
    assert (text_scores(images, texts) - text_scores(images, texts, "each")).abs().max() > 0.05
    for wrong in ("sum", [4], []):
        with pytest.raises(ValueError, match="facets must be"):
            text_scores(images, texts, wrong)


def test_probe_learns_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(4, 16, generator=generator)
    labels = torch.randint(4, (600,), generator=generator)
    features = 1000 + 50 * (centres[labels] + torch.randn(600, 16, generator=generator))  # far from zero, far from one
    config = ProbeConfig(batch_size=64, epochs=10)
    found = linear_probe(features[:400], labels[:400], features[400:], labels[400:], config)
    assert found["top1"] > 0.95 and found["test_images"] == 200
    assert found == linear_probe(features[:400], labels[:400], features[400:], labels[400:], config)
    shuffled = labels[torch.randperm(600, generator=generator)]
    assert linear_probe(features[:400], shuffled[:400], features[400:], shuffled[400:], config)["top1"] < 0.4
    with pytest.raises(ValueError, match=r"classes only in the test: \[3\]"):
        linear_probe(features[:4], torch.tensor([0, 1, 2, 0]), features[4:5], torch.tensor([3]))


def pictures(folder):
    """Six pictures in two classes; captions beside four of them."""
    for number in range(6):
        place = folder / "cat" if number < 3 else folder / "dog"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        if number < 4:
            (place / f"{number}.txt").write_text(f"number {number}\nin two lines")
    return folder


def as_table(folder, kind):
    names = [f"{'cat' if n < 3 else 'dog'}/{n}.png" for n in range(6)]
    said = [f"number {n}\nin two lines" if n < 4 else "" for n in range(6)]
    if kind == "csv":
        rows = "".join(f'{name},"{text}",{name[:3]}\n' for name, text in zip(names, said, strict=True))
        (folder / "t.csv").write_text("image,caption,label\n" + rows)
        return folder / "t.csv"
    if kind == "coco":
        images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
        notes = [{"image_id": n, "caption": text} for n, text in enumerate(said) if text]
        (folder / "t.json").write_text(json.dumps({"images": images, "annotations": notes}))
        return folder / "t.json"
    with tarfile.open(folder / "t.tar", "w") as tar:
        for n, name in enumerate(names):
            tar.add(folder / name, f"{n:03d}.png")
            (folder / "cls").write_text(name[:3])
            tar.add(folder / "cls", f"{n:03d}.cls")
            if n < 4:
                (folder / "words").write_text(said[n])
                tar.add(folder / "words", f"{n:03d}.txt")
    return folder / "t.tar"


@pytest.mark.parametrize("kind", ["folder", "csv", "coco", "tar"])
def test_every_source_gives_the_same_features(tmp_path, kind):
    if kind == "tar":
        pytest.importorskip("webdataset")
    folder = pictures(tmp_path / "p")
    model = flame_tiny()
    wanted = image_features(model, open_source(str(folder)), batch_size=4)
    place = folder if kind == "folder" else as_table(folder, kind)
    found = image_features(model, open_source(str(place)), batch_size=6)
    torch.testing.assert_close(found.vectors, wanted.vectors, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(6))
    images, texts, owner, without = found.captioned()
    assert texts == [f"number {n} in two lines" for n in range(4)] and owner.tolist() == [0, 1, 2, 3]
    assert without == 2 and len(images) == 4
    if kind == "coco":
        with pytest.raises(ValueError, match=r"cat/0.png: has no class"):
            found.labelled()
    else:
        labels, classes = found.labelled()
        assert labels.tolist() == [0, 0, 0, 1, 1, 1] and classes == ["cat", "dog"]


def test_features_of_the_probe_are_those_of_the_tower(tmp_path):
    model = flame_tiny()
    source = open_source(str(pictures(tmp_path)))
    found = image_features(model, source, kind="visual_only")
    pixels = model.processor([sample.images[0] for sample in source])
    with torch.no_grad():
        torch.testing.assert_close(found.vectors, model.visual_only(pixels))


def test_sources_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder, shards or table"):
        open_source(str(tmp_path / "none"))
    (tmp_path / "x.doc").write_text("x")
    with pytest.raises(ValueError, match=r"expected a folder, .tar shards or one of .txt"):
        open_source(str(tmp_path / "x.doc"))
    with pytest.raises(ValueError, match="caption: only tables of captions have columns"):
        open_source(str(tmp_path), caption="text")
    (tmp_path / "c.txt").write_text("only words\n")
    with pytest.raises(ValueError, match="one picture per sample, got 0"):
        image_features(flame_tiny(), open_source(str(tmp_path / "c.txt")))


def test_pictures_without_any_caption_are_an_error(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no picture has a caption"):
        image_features(flame_tiny(), open_source(str(tmp_path))).captioned()
