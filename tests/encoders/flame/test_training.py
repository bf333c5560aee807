"""Pairs, drawn rows, the training module, and that the language model never runs in a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from mm.data.lookups import encode
from mm.encoders.flame import FacetTextEncoder, FlameVisionConfig, flame_config, multi_positive_sigmoid_loss
from mm.encoders.flame.config import vit
from mm.encoders.flame.data import FlameDataConfig, FlamePairs, PairStream
from mm.encoders.flame.module import FlameModule, random_crop
from mm.encoders.flame.pairs import SCENES, digit_pairs, digit_scans, scene_pairs, training_half
from mm.encoders.flame.positives import draw_positives, embed_captions, row_names, take_rows
from mm.encoders.flame.readout import word_scores
from mm.encoders.flame.records import FlameRecords, FlameRecordsConfig
from mm.training.module import OptimizerConfig
from mm.zoo.bases import tiny_lm
from tests.encoders.flame.conftest import relative

SMALL = replace(
    flame_config("tiny"),
    tower=vit("ViT-B-16", size=32, patch_size=8, width=32, layers=1, head_width=16),
    text_width=32,
    hidden=32,
)
DATA = FlameDataConfig(num_scenes=24, digit_copies=0, held_out=8, size=32, batch_size=8)


@pytest.fixture(scope="module")
def tower():
    """The tiny language model with random weights, smaller."""
    return FacetTextEncoder(tiny_lm(width=32, depth=2).backbone, layer=-1, templates="world")


@pytest.fixture
def module():
    return FlameModule(vision=SMALL, optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.5))


@pytest.fixture
def data(tower, module):
    built = FlamePairs(DATA, tower=tower, processor=module.model.processor)
    built.setup("fit")
    return built


def batches(data, count, position=0):
    stream = PairStream(data._sets["train"], data.config, *data.normalisation, rank=0, world=1)
    stream.position = position
    iterator = iter(stream)
    return [next(iterator)[0] for _ in range(count)]


def test_every_word_of_the_captions_is_known():
    """An unknown word would be `<unk>` to the language model, silently."""
    for pairs in (scene_pairs("train", 40, scenes=SCENES, size=16), digit_pairs(False, size=16)):
        for caption in pairs.captions:
            for text in (caption.raw, caption.short, caption.long):
                encode(text)


def test_scenes_are_a_function_of_their_seed():
    pairs = scene_pairs("test", 4, scenes=SCENES, size=16)
    later = scene_pairs("test", 2, scenes=SCENES, size=16, first=2)
    assert np.array_equal(pairs.images[2:], later.images) and list(pairs.captions[2:]) == list(later.captions)
    assert pairs.captions[0] != scene_pairs("train", 1, scenes=SCENES, size=16).captions[0]


def test_the_two_halves_of_the_digits():
    """Every scan once, half of every class in training, and the right caption beside each."""
    train, test = digit_pairs(False, size=8), digit_pairs(True, size=8)
    assert len(train) + len(test) == 1797 and abs(len(train) - len(test)) <= 20
    scans, classes = digit_scans(8)
    assert np.array_equal(train.images[..., 0], scans[np.sort(training_half())])
    for pairs in (train, test):
        assert all(
            label in caption.raw and label in caption.long
            for label, caption in zip(pairs.labels, pairs.captions, strict=True)
        )
    from sklearn.datasets import load_digits

    assert np.array_equal(classes, load_digits().target)


def test_rows_in_their_order(tower):
    captions = scene_pairs("train", 3, scenes=SCENES, size=16).captions
    rows = embed_captions(tower, [*captions, captions[0]])
    assert rows.shape == (4, 11, 32) and rows.dtype == torch.float16 and torch.equal(rows[0], rows[3])
    assert row_names(tower) == ["raw 1", *(f"short {k}" for k in (1, 2, 3)), *(f"long {k}" for k in range(1, 8))]
    assert relative(rows[1, 4:].float(), tower.encode([captions[1].long], "long", normalize=True)[0]) < 1e-3
    assert relative(rows[1, 0].float(), tower.encode([captions[1].raw], "single", normalize=True)[0, 0]) < 1e-3
    assert (rows.float().norm(dim=-1) - 1).abs().max() < 2e-3


def test_positives_never_repeat_and_cover_everything():
    generator = torch.Generator().manual_seed(0)
    drawn = draw_positives(2000, 11, 6, generator)
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    share = torch.bincount(drawn.flatten(), minlength=11) / 2000
    assert (share - 6 / 11).abs().max() < 0.05
    again = draw_positives(2000, 11, 6, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again) and not torch.equal(drawn, draw_positives(2000, 11, 6, generator))
    rows = torch.arange(22.0).view(2, 11, 1)
    assert take_rows(rows, torch.tensor([[3, 0], [1, 10]]))[..., 0].tolist() == [[3, 0], [12, 21]]
    with pytest.raises(ValueError, match=r"positives must lie in 1\.\.3"):
        draw_positives(1, 3, 4, generator)


def test_a_stream_goes_on_where_it_was(data):
    five = batches(data, 5)
    for first, second in zip(five[3:], batches(data, 2, position=24), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(five[0]["pixel_values"], five[3]["pixel_values"]), "a new epoch has a new order"
    assert five[0]["texts"].shape == (8, 6, 32) and five[0]["pixel_values"].shape == (8, 3, 32, 32)


def test_a_picture_stands_beside_its_own_texts(data):
    """Every drawn text is a row of the very pair whose picture it stands beside."""
    pairs, (batch,) = data._sets["train"], batches(data, 1)
    order = np.random.default_rng([0, 0]).permutation(24)[:8]
    for texts, number in zip(batch["texts"], order, strict=True):
        distance = torch.cdist(texts, pairs.rows[number].float()).min(dim=1).values
        assert float(distance.max()) == 0.0


def test_training_does_not_run_the_language_model(data, module, tower, monkeypatch, tmp_path):
    """After the set-up a step only gathers rows; frozen and unused tensors stay bit-equal, the rest moves."""
    monkeypatch.setattr(tower.backbone.layers[0], "forward", lambda *a, **k: pytest.fail("the language model ran"))
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    Trainer(max_steps=3, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, data)
    moved = {key for key, value in module.named_parameters() if not torch.equal(before[key], value)}
    assert {key for key in before if key not in moved} == {
        "model.tower.module.proj",
        "model.tower.module.ln_post.weight",
        "model.tower.module.ln_post.bias",
    }


@pytest.mark.parametrize("loss", ["sigmoid", "nce"])
def test_one_batch_can_be_learned(data, loss):
    module = FlameModule(vision=SMALL, loss=loss, crop=1.0)
    (batch,) = batches(data, 1)
    generator = torch.Generator().manual_seed(0)
    batch["texts"] = torch.nn.functional.normalize(torch.randn(8, 6, 32, generator=generator), dim=-1)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        value, logs = module.compute_loss(batch)
        losses.append(float(value.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        module.on_train_batch_end()
    assert losses[-1] < 0.6 * losses[0] and logs["image_to_text"] > 0.8
    assert (module.model.logit_bias is None) == (loss == "nce")


def test_decay_reaches_matrices_and_positions_only(module):
    groups = {group["name"]: group for group in module.parameter_groups()}
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    decayed = {names[id(parameter)] for parameter in groups["rest"]["params"]}
    kept = {names[id(parameter)] for parameter in groups["rest (no decay)"]["params"]}
    assert "tower.module.positional_embedding" in decayed and "head.0.weight" in decayed
    assert {"logit_scale", "logit_bias", "head.0.bias", "tower.module.ln_pre.weight"} <= kept
    assert groups["rest"]["weight_decay"] == 0.5 and groups["rest (no decay)"]["weight_decay"] == 0.0


def test_a_crop_is_a_part_of_the_picture():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(4, 3, 32, 32).contiguous()
    found = random_crop(ramp, 0.5)
    width = found[:, 0, 16, -1] - found[:, 0, 16, 0]
    assert ((width > 0.66) & (width < 1.0)).all(), "between the square root of one half and one, of the side"
    assert len(set(width.tolist())) == 4 and relative(random_crop(ramp, 1.0), ramp) < 1e-5


def test_messages():
    with pytest.raises(ValueError, match="loss must be"):
        FlameModule(loss="clip")
    with pytest.raises(ValueError, match="crop must lie"):
        FlameModule(crop=0.0)
    with pytest.raises(ValueError, match="name at least one folder"):
        FlameRecordsConfig(train="x")
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        FlameDataConfig(batch_size=1)
    assert isinstance(SMALL, FlameVisionConfig)


# --- recorded data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tower, tmp_path_factory):
    """Four pictures with text files, and stores of their captions under two templates."""
    from mm.encoders.flame.store_writer import fill, store_job

    root = tmp_path_factory.mktemp("recorded")
    (root / "pictures").mkdir()
    pairs = scene_pairs("train", 4, scenes=SCENES, size=40)
    for index, (image, caption) in enumerate(zip(pairs.images, pairs.captions, strict=True)):
        Image.fromarray(image).save(root / "pictures" / f"{index}.png")
        (root / "pictures" / f"{index}.txt").write_text(caption.long)
    for template in ("long", "single"):
        fill(store_job(root / template, [c.long for c in pairs.captions], tower, template), tower)
    return root, pairs


def test_recorded_pictures_meet_their_stored_rows(recorded, tower, module):
    root, pairs = recorded
    config = FlameRecordsConfig(
        train=str(root / "pictures"), stores=(str(root / "long"), str(root / "single")), positives=8, batch_size=4
    )
    data = FlameRecords(config, processor=module.model.processor)
    batch = next(iter(data.train_dataloader()))
    again = next(iter(FlameRecords(config, processor=module.model.processor).train_dataloader()))
    assert batch["texts"].shape == (4, 8, 32) and batch["pixel_values"].shape == (4, 3, 32, 32)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    expected = [  # all eight rows of each caption, so that the set is known
        torch.cat([tower.encode([c.long], t, normalize=True)[0] for t in ("long", "single")]) for c in pairs.captions
    ]
    pictures = module.model.processor(list(pairs.images))
    for pixels, texts in zip(batch["pixel_values"], batch["texts"], strict=True):
        number = int((pictures - pixels).abs().amax(dim=(1, 2, 3)).argmin())
        distance = torch.cdist(texts, expected[number])
        assert distance.min(dim=1).values.max() < 5e-3
        assert len(set(distance.argmin(dim=1).tolist())) == 7, "facet 1 asks the same under both templates"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": 9}, "9 positives are asked for, .* hold 8 rows"),
        ({"train": ""}, "no train data was named"),
    ],
)
def test_recorded_data_that_does_not_fit(recorded, module, change, message):
    root, _ = recorded
    stores = (str(root / "long"), str(root / "single"))
    settings = {"train": str(root / "pictures"), "stores": stores, "positives": 8, "batch_size": 4} | change
    with pytest.raises(ValueError, match=message):
        next(iter(FlameRecords(FlameRecordsConfig(**settings), processor=module.model.processor).train_dataloader()))


def test_a_picture_without_caption_is_named(recorded, module, tmp_path):
    root, _ = recorded
    Image.new("RGB", (40, 40)).save(tmp_path / "alone.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "too.png")
    config = FlameRecordsConfig(train=str(tmp_path), stores=(str(root / "long"),), batch_size=2)
    with pytest.raises(ValueError, match=r"(alone|too)\.png: has no caption"):
        next(iter(FlameRecords(config, processor=module.model.processor).train_dataloader()))


def test_the_loss_of_stored_rows_is_that_of_fresh_ones(tower, data):
    """Half precision on the way to the store moves the loss by less than 2e-3."""
    captions = data._sets["train"].pairs.captions[:8]
    fresh = torch.cat([tower.encode([c.long], "long", normalize=True) for c in captions])
    stored = embed_captions(tower, captions)[:, 4:].float()
    images = torch.nn.functional.normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    online, offline = (multi_positive_sigmoid_loss(images, texts, 10.0, -10.0) for texts in (fresh, stored))
    assert not torch.equal(fresh, stored) and abs(float(online - offline)) < 2e-3


def test_the_language_models_head_reads_vectors(tower):
    """Vectors that are the residual stream itself give the language model's own logits."""
    backbone = tower.backbone
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        expected = backbone.model(ids).logits[0]
        vectors = backbone.hidden_states(ids)[0]
    assert relative(word_scores(backbone, vectors), expected) < 1e-5
    assert relative(word_scores(backbone, vectors, [3, 7]), expected[:, [3, 7]]) < 1e-5
    with pytest.raises(ValueError, match="vectors have 8 channels, the language model 32"):
        word_scores(backbone, vectors[:, :8])
