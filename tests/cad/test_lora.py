"""Fine-tuning with adapters, on a tiny random model in TinyLLaVA's layout and a set that `mm cad dataset` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft", reason="adapters need peft: pip install 'mm[train]'")
pytest.importorskip("manifold3d", reason="the training set is drawn by the mesh kernel: pip install 'mm[cad]'")

import mm
from mm.cad.dataset import DatasetConfig, make_dataset
from mm.cad.lora import AdapterConfig, Adapters, load_adapters
from mm.cad.lora_module import CadLoraModule
from mm.cad.model import trained_host
from mm.cad.records import FittingRecords
from mm.data.collate import collate
from mm.data.llava_json import LlavaJson
from mm.training.module import OptimizerConfig
from mm.vlm import VisionLanguageModel

DATA = Path(__file__).parents[1] / "parity" / "data" / "openecad"
SMALL = AdapterConfig(rank=4, alpha=8, dropout=0.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """One short and one long part as LLaVA records."""
    source = tmp_path_factory.mktemp("deepcad")
    for name in ("00001011", "00809394"):
        shutil.copy(DATA / f"{name}.deepcad.json", source / f"{name}.json")
    out = tmp_path_factory.mktemp("records") / "set"
    make_dataset(source, out, DatasetConfig(kernel="mesh", size=(64, 48), text="canonical"))
    return out


@pytest.fixture
def batch(tinyllava_folder, dataset):
    processor = trained_host(str(tinyllava_folder)).processor
    reader = LlavaJson(dataset / "train.json", dataset / "images", on_error="count")
    return collate(list(FittingRecords(reader, processor)), processor)


def stir(adapters: Adapters) -> None:
    """Give every trained tensor a value that matters; a fresh adapter does nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, value in adapters.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)


def test_only_adapters_and_the_projector_move_and_the_loss_falls(tinyllava_folder, batch):
    module = CadLoraModule(str(tinyllava_folder), SMALL, optimizer=OptimizerConfig(lr=3e-3))
    before = {name: value.clone() for name, value in module.model.named_parameters()}
    trained = {name for name in before if ".lora_" in name or name.startswith("projector.")}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(8):
        loss, _ = module.compute_loss(batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, value in module.model.named_parameters() if not torch.equal(value, before[name])}
    # the last block of the tower is not run (features are read before it), so its adapters rest
    resting = {name for name in trained if name.startswith("tower.") and "layers.1." in name}
    assert moved == trained - resting
    assert any(name.startswith("tower.") for name in moved) and any(name.startswith("backbone.") for name in moved)
    assert losses[-1] < losses[1] < losses[0]


def test_without_tower_and_projector_only_the_language_model_is_adapted(tinyllava_folder):
    model = trained_host(str(tinyllava_folder))
    adapters = Adapters(model, AdapterConfig(rank=2, tower=False, projector=False))
    names = [name for name, _ in adapters.parameters()]
    assert names and all(name.startswith("backbone.") and ".lora_" in name for name in names)
    assert not model.train().tower.training


@torch.no_grad()
def test_fresh_adapters_change_nothing_and_merged_ones_compute_the_same(tinyllava_folder, batch):
    model = trained_host(str(tinyllava_folder))
    plain, keys = model(**batch).logits, set(model.state_dict())
    adapters = Adapters(model, SMALL)
    model.eval()
    assert torch.equal(model(**batch).logits, plain)
    stir(adapters)
    adapted = model(**batch).logits
    assert not torch.allclose(adapted, plain, atol=1e-2)
    merged = adapters.merge()
    torch.testing.assert_close(merged(**batch).logits, adapted, atol=1e-5, rtol=1e-5)
    assert set(merged.state_dict()) == keys


@torch.no_grad()
def test_adapters_come_back_from_their_file(tinyllava_folder, batch, tmp_path):
    model = trained_host(str(tinyllava_folder))
    adapters = Adapters(model, SMALL)
    stir(adapters)
    expected = model.eval()(**batch).logits
    adapters.save(tmp_path / "adapters")
    other = trained_host(str(tinyllava_folder))
    load_adapters(other, tmp_path / "adapters")
    assert torch.equal(other.eval()(**batch).logits, expected)
    stranger = mm.create_model("openecad_tiny", width=32, depth=1, tower_width=32, tower_depth=1)
    with pytest.raises(ValueError, match="not the adapters of this model"):
        load_adapters(stranger, tmp_path / "adapters")


def test_a_run_leaves_adapters_and_a_whole_model(tinyllava_folder, dataset, tmp_path):
    from mm.training.cli import fit

    out = tmp_path / "run"
    command = [
        "--config",
        "cad/lora",
        "--out",
        str(out),
        "--model.start",
        str(tinyllava_folder),
        "--model.adapters.rank",
        "4",
    ]
    command += ["--data.config.train", str(dataset / "train.json"), "--data.config.images", str(dataset / "images")]
    command += ["--trainer.max_steps", "2", "--trainer.accumulate_grad_batches", "1", "--trainer.accelerator", "cpu"]
    assert fit([*command, "--model.optimizer.lr", "1e-2", "--data.config.batch_size", "1"]) in (0, None)
    tuned = VisionLanguageModel.from_pretrained(out / "model").eval()
    adapted = VisionLanguageModel.from_pretrained(tinyllava_folder)
    load_adapters(adapted, out / "adapters")
    ids = torch.tensor([[1, 5, *[tuned.config.image_token_id] * tuned.tokens_per_picture, 7, 8]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, plain = (
            m.eval()(ids, pixel_values=pixels).logits for m in (adapted, trained_host(str(tinyllava_folder)))
        )
        torch.testing.assert_close(tuned(ids, pixel_values=pixels).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_samples_that_do_not_fit_are_counted_and_never_cut(tinyllava_folder, dataset):
    processor = trained_host(str(tinyllava_folder)).processor
    reader = LlavaJson(dataset / "train.json", dataset / "images", on_error="count")
    fitting = FittingRecords(reader, processor)
    kept = list(fitting)
    longest = max(
        len(record["conversations"][1]["value"]) for record in json.loads((dataset / "train.json").read_text())
    )
    assert len(kept) == 1 and len(fitting.errors) == 1 and "512 positions" in fitting.errors[0]
    assert kept[0].answer.endswith("```") and len(kept[0].answer) < longest
    strict = FittingRecords(LlavaJson(dataset / "train.json", dataset / "images"), processor)
    with pytest.raises(ValueError, match="512 positions"):
        list(strict)


@pytest.mark.parametrize(("wrong", "message"), [({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout")])
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**wrong)


def test_a_language_model_is_refused():
    with pytest.raises(ValueError, match="is no tower, projector"):
        CadLoraModule("tiny_lm")
