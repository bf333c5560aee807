"""`mm zoo`: stated scores, and a moved score is found."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mm import checkpoint, cli
from mm.catalog import EVALUATORS
from mm.checkpoint import Pretrained, read_tensors, read_weights
from mm.registry import Registry
from mm.training.module import OptimizerConfig
from mm.zoo import borrow as borrowing
from mm.zoo import verify as zoo
from mm.zoo.borrow import borrow


class Weights(Pretrained, nn.Module):
    config_class = OptimizerConfig  # any frozen dataclass

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.score = nn.Parameter(torch.tensor([0.9, 0.1]))


def evaluate(model, *, seed):
    return {"accuracy": model.score[0].item(), "film_control": model.score[1].item() + seed}


def evaluate_less(model, *, seed):
    return {"accuracy": model.score[0].item()}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A zoo of one model, with its evaluator."""
    folder = tmp_path / "toy_tiny"
    Weights(OptimizerConfig()).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(
        "command: mm fit --config toy\ndata: none\nlicence: Apache-2.0\nmade_with: hands\n"
    )
    zoo.write_metrics(folder, {"accuracy": 0.9, "film_control": 3.1}, seed=3, tolerance=0.01)
    monkeypatch.setattr(zoo, "files", lambda _: tmp_path)
    monkeypatch.setattr(zoo, "shipped_names", lambda: ["toy_tiny"])
    monkeypatch.setattr(zoo, "load", Weights.from_pretrained)
    monkeypatch.setattr(zoo, "EVALUATORS", registry := Registry("zoo evaluator"))
    registry.add("toy_tiny", f"{__name__}:evaluate")
    monkeypatch.setattr(registry, "get", lambda name: {"toy_tiny": evaluate}[name])
    return folder


def test_list_states_scores_and_recipe(shelf, capsys):
    assert cli.main(["zoo", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "toy_tiny" and row["command"] == "mm fit --config toy" and row["seed"] == 3
    assert row["metrics"]["accuracy"] == {"value": 0.9, "tolerance": 0.01}
    assert cli.main(["zoo", "list"]) == 0
    assert "accuracy 0.9, film_control 3.1" in capsys.readouterr().out


def test_unmoved_scores_pass(shelf, capsys):
    assert cli.main(["zoo", "verify", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["metric"], row["ok"]) for row in rows] == [
        ("accuracy", True),
        ("film_control", True),
        ("size_mb", True),
    ]


@pytest.mark.parametrize("drift", [0.02, -0.02, float("nan")])
def test_a_moved_score_fails_in_either_direction(shelf, capsys, drift):
    model = Weights(OptimizerConfig())
    model.score.data[1] += drift
    model.save_pretrained(shelf.parent / "new")
    (shelf.parent / "new" / "model.safetensors").replace(shelf / "model.safetensors")
    assert cli.main(["zoo", "verify", "toy_tiny", "--json"]) == 1
    assert [row["metric"] for row in json.loads(capsys.readouterr().out) if not row["ok"]] == ["film_control"]


def test_a_metric_that_nobody_measures_any_more_fails(shelf, monkeypatch):
    monkeypatch.setattr(zoo.EVALUATORS, "get", lambda name: evaluate_less)
    rows = {row["metric"]: row for row in zoo.verify(shelf)}
    assert rows["film_control"]["found"] is None and not rows["film_control"]["ok"]
    assert rows["accuracy"]["ok"]


def test_too_large_weights_fail(shelf, monkeypatch):
    monkeypatch.setattr(zoo, "LARGEST_MB", 1e-6)
    assert not zoo.verify(shelf)[-1]["ok"]
    monkeypatch.setattr(zoo, "LARGEST_TOTAL_MB", 1e-6)
    with pytest.raises(ValueError, match="MB together, at most"):
        zoo.shipped()


def test_unknown_names_and_incomplete_folders_are_one_line(shelf, capsys):
    assert cli.main(["zoo", "verify", "toy_tny"]) == 1
    assert capsys.readouterr().err == "error: no shipped weights toy_tny; there are: toy_tiny\n"
    (shelf / "recipe.yaml").write_text("command: mm fit\n")
    assert cli.main(["zoo", "verify"]) == 1
    assert "recipe.yaml: states no data, licence, made_with" in capsys.readouterr().err
    (shelf / "recipe.yaml").write_text("command: a\ndata: b\nlicence: c\nmade_with: d\n")
    (shelf / "metrics.json").write_text('{"seed": 0, "metrics": {"accuracy": {"value": 1.0}}}')
    assert cli.main(["zoo", "verify"]) == 1
    assert "for every metric, value and tolerance" in capsys.readouterr().err


def test_what_ships_states_its_scores_and_has_an_evaluator():
    for folder in zoo.shipped():
        assert zoo.describe(folder)["metrics"]
        assert folder.name in EVALUATORS
        assert (folder / "README.md").is_file()


def test_borrowed_tensors_come_back_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "shipped_folder", lambda name: tmp_path / name)
    lender, model = Weights(OptimizerConfig()), Weights(OptimizerConfig())
    lender.save_pretrained(tmp_path / "lender")
    model.own = nn.Parameter(torch.tensor([0.9, 0.2]))
    folder = model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(borrowing, "shipped_folder", lambda name: tmp_path / name)
    assert borrow(folder, ["lender"]) == model.score.nbytes
    assert set(read_tensors(folder / "model.safetensors")) == {"own"}
    found = read_weights(folder)
    assert torch.equal(found["score"], model.score) and torch.equal(found["own"], model.own)


@pytest.mark.parametrize(
    ("borrowed", "says"),
    [
        ({"nobody": {}}, "does not ship"),
        ({"../lender": {}}, "does not ship"),
        ({"lender": {"score": "other"}}, "does not lend score"),
        ({"lender": {"own": "score"}}, "does not lend own"),
    ],
)
def test_what_nobody_lends_is_refused(borrowed, says, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "shipped_folder", lambda name: tmp_path / name)
    Weights(OptimizerConfig()).save_pretrained(tmp_path / "lender")
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"own": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "borrowed.json").write_text(json.dumps(borrowed))
    with pytest.raises(ValueError, match=says):
        read_weights(folder)
