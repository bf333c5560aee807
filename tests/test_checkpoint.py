"""Model folders: strict reading, safe writing."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import mm
from mm.checkpoint import Pretrained, config_from_dict, load_state, resolve, write_aside


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    width: int = 3
    pair: tuple[int, int] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    part: PartConfig = field(default_factory=PartConfig)
    layers: tuple[PartConfig, ...] = ()
    other: PartConfig | None = None


class Toy(Pretrained, nn.Module):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(config.part.width, 2)
        self.tied = nn.Linear(config.part.width, 2, bias=False)
        self.tied.weight = self.first.weight


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy(ToyConfig(part=PartConfig(width=4)))


def test_folder_round_trip_is_bit_equal(toy, tmp_path):
    again = Toy.from_pretrained(toy.save_pretrained(tmp_path / "toy"))
    assert again.config == toy.config
    for key, value in toy.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_half_precision_storage_rounds_once(toy, tmp_path):
    again = Toy.from_pretrained(toy.save_pretrained(tmp_path / "toy", dtype=torch.float16))
    assert again.first.weight.dtype == torch.float32
    assert torch.equal(again.first.weight, toy.first.weight.half().float())


def test_nested_configs_survive_json():
    config = ToyConfig(layers=(PartConfig(width=1), PartConfig(pair=(5, 6))), other=PartConfig(width=9))
    from dataclasses import asdict

    assert config_from_dict(ToyConfig, json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"part": {"widht": 3}}, ["file.json: part", "widht", "did you mean 'width'"]),
        ({"nonsense": 1}, ["file.json", "nonsense", "known keys: layers, other, part"]),
        ({"part": {"pair": [1, 2, 3]}}, ["pair", "needs 2 values, got 3"]),
    ],
)
def test_a_config_refuses_what_it_would_ignore(data, words):
    with pytest.raises(ValueError) as caught:
        config_from_dict(ToyConfig, data, source="file.json")
    assert all(word in str(caught.value) for word in words), caught.value


def test_loading_lists_every_key_that_does_not_fit_and_changes_nothing(toy):
    before = {key: value.clone() for key, value in toy.state_dict().items()}
    state = {"first.weight": torch.zeros(2, 5), "first.bias": torch.ones(2), "stranger": torch.ones(1)}
    with pytest.raises(ValueError) as caught:
        load_state(toy, state, source="x.safetensors")
    text = str(caught.value)
    assert "missing (1): tied.weight" in text
    assert "unexpected (1): stranger" in text
    assert "first.weight (file (2, 5), model (2, 4))" in text
    assert all(torch.equal(toy.state_dict()[key], value) for key, value in before.items())


def test_only_an_announced_part_may_be_new(toy):
    state = {key: value + 1 for key, value in toy.state_dict().items() if key != "first.bias"}
    with pytest.raises(ValueError, match="missing"):
        load_state(toy, state, source="x")
    bias = toy.first.bias.detach().clone()
    load_state(toy, state, source="x", new=["first.bias"])
    assert torch.equal(toy.first.bias, bias)
    assert torch.equal(toy.first.weight, state["first.weight"])


def test_full_disk_while_saving_leaves_the_old_folder(toy, tmp_path, monkeypatch):
    folder = toy.save_pretrained(tmp_path / "toy")
    before = (folder / "model.safetensors").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mm.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        toy.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["toy"]


def test_write_aside_replaces_files_and_folders(tmp_path):
    for text in ("old", "new"):
        with write_aside(tmp_path / "file") as path:
            path.write_text(text)
        with write_aside(tmp_path / "folder") as path:
            path.mkdir()
            (path / text).write_text(text)
    assert (tmp_path / "file").read_text() == "new"
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["new"]


def test_truncated_weights_are_one_clear_error(toy, tmp_path):
    folder = toy.save_pretrained(tmp_path / "toy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a readable safetensors file"):
        Toy.from_pretrained(folder)


def test_a_folder_of_another_model_is_refused(toy, tmp_path):
    folder = toy.save_pretrained(tmp_path / "toy")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"model_class": "mm.other:Model"}))
    with pytest.raises(ValueError, match=r"holds a mm\.other:Model, not a .*Toy"):
        Toy.from_pretrained(folder)


def test_load_imports_only_model_classes_of_this_toolkit(toy, tmp_path):
    folder = toy.save_pretrained(tmp_path / "toy")
    data = json.loads((folder / "config.json").read_text())
    for path, message in (("os:system", "no model_class of this toolkit"), ("mm.checkpoint:load", "not a model class")):
        (folder / "config.json").write_text(json.dumps(data | {"model_class": path}))
        with pytest.raises(ValueError, match=message):
            mm.load(folder)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean lavi_tiny"):
        mm.create_model("lavi_tinny")
    with pytest.raises(FileNotFoundError, match="did you mean"):
        resolve("lavi_tinny")
