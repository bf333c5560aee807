"""Finding, reading and refusing configurations."""

import json
import sys

import pytest
from toy import write_config

from mm import cli
from mm.registry import Registry
from mm.training import run_config
from mm.training.run_config import find_config, read_config, rewrite_arguments


def run(*words) -> int:
    return cli.main([*map(str, words), "--allow", "toy"])


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    (tmp_path / "lavi").mkdir()
    path = tmp_path / "lavi" / "tiny.yaml"
    path.write_text("model: lavi\n")
    monkeypatch.setattr(run_config, "files", lambda _: tmp_path)
    return path


def test_a_packaged_name_or_a_path(packaged, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("{}")
    assert find_config("lavi/tiny") == packaged
    assert find_config(str(own)) == own


def test_unknown_names_suggest_the_nearest(packaged, capsys):
    assert run("fit", "--config", "lavi/tniy") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no configuration 'lavi/tniy'") and "did you mean lavi/tiny?" in error


def test_short_names_become_classes(packaged, monkeypatch):
    monkeypatch.setitem(run_config.SECTIONS, "data", data := Registry("data module"))
    data.add("boards", "mm.data.boards:Boards")
    full = "mm.encoders.lavi.module.LaviModule"
    assert read_config(packaged) == {"model": {"class_path": full}}
    packaged.write_text("model: {class_path: lavi, init_args: {a: 1e-4}}\ndata: {class_path: other.Data}")
    assert read_config(packaged)["model"] == {"class_path": full, "init_args": {"a": 0.0001}}
    assert read_config(packaged)["data"] == {"class_path": "other.Data"}
    packaged.write_text("data: bords")
    with pytest.raises(ValueError, match=r"tiny\.yaml: unknown data module 'bords'; did you mean boards"):
        read_config(packaged)


def test_short_names_on_the_command_line():
    full = "mm.encoders.lavi.module.LaviModule"
    assert rewrite_arguments(["--model", "lavi", "--model.name", "lavi"]) == ["--model", full, "--model.name", "lavi"]
    assert rewrite_arguments(["--model=lavi"]) == [f"--model={full}"]
    assert rewrite_arguments(["--model.help", "lavi"]) == ["--model.help", full]
    with pytest.raises(ValueError, match="unknown training module 'lavii'; did you mean lavi"):
        rewrite_arguments(["--model", "lavii"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not readable as YAML"),
        ("- 1\n- 2", "mapping of sections, found list"),
        ("trainer: {max_steps: 1}\ntrainer: {max_steps: 2}", "key trainer appears twice"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "bad.yaml")


def toy_model(**arguments):
    return {"class_path": "toy.ToyModule", "init_args": arguments}


@pytest.mark.parametrize(
    ("sections", "found", "meant"),
    [
        ({"trainer": {"max_step": 3}}, "'max_step'", "max_steps"),
        ({"trainr": {"max_steps": 3}}, "trainr", "trainer"),
        ({"model": toy_model(widht=4)}, "'widht'", "width"),
        ({"model": toy_model(optimizer={"weight_decya": 0.1})}, "'weight_decya'", "weight_decay"),
        ({"model": toy_model(width="four")}, "width", "int"),
        ({"model": {"class_path": "toy.Nothing"}}, "toy.Nothing", "no attribute"),
        ({"model": toy_model(optimizer={"lr": -1.0})}, "optimizer.lr must be above 0", "-1.0"),
        ({"data": None}, "data", ""),
        ({"trainer": {"max_steps": 3, "gradient_clip_val": 1.0}}, "gradient_clip_val would be ignored", "clip_norm"),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_and_file(tmp_path, capsys, sections, found, meant):
    path = write_config(tmp_path / "wrong.yaml", **sections)
    assert run("fit", "--config", path, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert found in error and meant in error
    if "would be ignored" not in error and "above 0" not in error and sections.get("data", "") is not None:
        assert "wrong.yaml: " in error
    assert not (tmp_path / "run").exists()


def test_the_wrong_one_of_two_files_is_named(tmp_path, capsys):
    good = write_config(tmp_path / "good.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text(json.dumps({"trainer": {"max_step": 3}}))
    assert run("fit", "--config", good, "--config", bad) == 1
    assert "bad.yaml: " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--trainer.max_step=3", "--model.widht=3", "--nothing=1"])
def test_a_wrong_option_is_a_usage_error(tmp_path, capsys, option):
    path = write_config(tmp_path / "good.yaml")
    assert run("fit", "--config", path, option) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "toy.yaml" not in error and "mm fit --help" in error


def test_a_configuration_names_foreign_classes_only_with_leave(tmp_path, capsys, monkeypatch):
    (tmp_path / "foreign.py").write_text("from toy import ToyModule\n\n\nclass Module(ToyModule):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_config(tmp_path / "run.yaml", model={"class_path": "foreign.Module"})
    assert run("fit", "--config", path, "--print_config") == 1
    error = capsys.readouterr().err
    assert "foreign" not in sys.modules
    assert "run.yaml: model: foreign.Module" in error and "--allow foreign" in error
    assert run("fit", "--config", path, "--print_config", "--allow", "foreign") == 0
    assert "class_path: foreign.Module" in capsys.readouterr().out


def test_settings_of_a_later_file_and_of_the_command_line_win(tmp_path, capsys):
    first = write_config(tmp_path / "a.yaml")
    second = tmp_path / "b.yaml"
    second.write_text("trainer: {max_steps: 7}\nsave_every: 3\n")
    assert run("fit", "--config", first, "--config", second, "--save_every", 2, "--print_config") == 0
    out = capsys.readouterr().out
    assert "max_steps: 7" in out and "save_every: 2" in out and "accelerator: cpu" in out


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_help_names_the_shipped_configurations_and_does_not_import_lightning(verb, capsys, packaged):
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert "lavi/tiny" in out and f"example:\n  mm {verb} --config" in out
