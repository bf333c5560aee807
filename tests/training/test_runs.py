"""`mm fit` and its relatives on toy classes: files, resuming, repeating, evaluating, two processes."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy
import yaml

import mm
from mm import cli
from mm.training.schedule import schedule_factor

pytestmark = pytest.mark.usefixtures("one_thread")


def curve(out: Path) -> dict[int, float]:
    with (out / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def run(*words: object) -> int:
    return cli.main([*map(str, words), "--allow", "toy"])


@pytest.fixture(scope="module")
def background(tmp_path_factory):
    """Starts `mm` in new processes; a server that has imported everything once forks them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy", "mm.training.runner"])
    log = tmp_path_factory.mktemp("log") / "log.txt"

    def start(*words: object):
        process = context.Process(target=toy.job, args=([*map(str, words), "--allow", "toy"], log))
        process.start()
        process.log = log
        return process

    return start


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return toy.write_config(tmp_path_factory.mktemp("config") / "toy.yaml")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A run of 20 steps that nobody interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run("fit", "--config", config, "--out", out) == 0
    return out


def test_a_run_leaves_everything_that_repeats_and_uses_it(finished):
    facts = json.loads((finished / "run.json").read_text())
    assert facts["mm"] == mm.__version__ and facts["seed"] == 0 and torch.__version__.startswith(facts["torch"])
    assert facts["command"].startswith("mm fit --config")
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    for name in ("loss", "lr", "grad_norm", "samples_per_s", "visual_tokens_per_sample", "memory_gib", "eta_s"):
        assert float(rows[3][name]) > 0, name
    assert [float(rows[k]["lr"]) for k in (0, 1, 2)] == pytest.approx([0.025, 0.05, 0.05])
    # forward 4x4 and 4x8 and 8x1, backward of the trainable part: weights, and inputs of the last layer; batch of 4
    assert float(rows[0]["tflop_per_step"]) == pytest.approx(2 * 4 * (16 + 32 + 8 + 32 + 8 + 8) / 1e12)
    assert toy.ToyModel.from_pretrained(finished / "model").config.width == 8


def test_checkpoint_loads_without_pickle_and_holds_the_trained_weights(finished):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 20
    model = toy.ToyModel.from_pretrained(finished / "model")
    assert all(
        torch.equal(value, checkpoint["state_dict"][f"model.{key}"]) for key, value in model.state_dict().items()
    )


def test_the_saved_configuration_repeats_the_run(finished, tmp_path):
    assert run("fit", "--config", finished / "config.yaml", "--out", tmp_path) == 0
    assert curve(tmp_path) == curve(finished)
    before, after = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (finished, tmp_path))
    assert before | {"out": None} == after | {"out": None}


def test_another_seed_gives_another_curve(config, finished, tmp_path):
    assert run("fit", "--config", config, "--out", tmp_path, "--seed_everything", 1) == 0
    assert curve(tmp_path) != curve(finished)


def test_killed_and_resumed_equals_uninterrupted(background, config, finished, tmp_path):
    words = ["fit", "--config", config, "--out", tmp_path, "--model.pause_s", 0.05]
    process = background(*words)
    deadline = time.monotonic() + 240
    while not (tmp_path / "metrics.csv").is_file() or len(curve(tmp_path)) < 8:
        assert process.exitcode is None and time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    reached = max(curve(tmp_path))
    assert 8 <= reached < 20
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert saved in (5, 10, 15)
    assert run(*words) == 0
    assert curve(tmp_path) == curve(finished)  # dropout included: to the last bit
    rows = [row["step"] for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert len(rows) == len(set(rows)) == 20


def test_resuming_does_continue_and_does_not_start_again(config, finished, tmp_path, caplog):
    assert run("fit", "--config", config, "--out", tmp_path, "--trainer.max_steps", 10) == 0
    half = curve(tmp_path)
    # a sentinel in the file of the first half shows that it is kept, and not computed anew
    text = (tmp_path / "metrics.csv").read_text().replace(str(half[3]), "123.5")
    (tmp_path / "metrics.csv").write_text(text)
    assert run("fit", "--config", config, "--out", tmp_path, "--trainer.max_steps", 10) == 0
    assert curve(tmp_path)[3] == 123.5 and len(curve(tmp_path)) == 10
    assert run("fit", "--config", config, "--out", tmp_path, "--trainer.max_steps", 10, "--resume", "never") == 0
    assert curve(tmp_path) == half


def test_resume_with_ema_equals_uninterrupted_and_leaves_frozen_weights(config, finished, tmp_path, monkeypatch):
    words = ["fit", "--config", config, "--ema", 0.9, "--trainer.max_steps", 12]
    assert run(*words, "--out", tmp_path / "whole") == 0
    compute, steps = toy.ToyModule.compute_loss, []

    def cut_off(module, batch):
        steps.append(module.training and batch["x"].device.type == "cpu")  # FLOPs are counted elsewhere
        if steps.count(True) == 9:
            raise RuntimeError("power cut")
        return compute(module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyModule, "compute_loss", cut_off)
        assert run(*words, "--out", tmp_path / "part") == 1
    assert len(curve(tmp_path / "part")) == 8
    assert run(*words, "--out", tmp_path / "part") == 0
    assert curve(tmp_path / "part") == curve(tmp_path / "whole")
    whole, part = (toy.ToyModel.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "part"))
    assert all(torch.equal(value, part[key]) for key, value in whole.items())
    never_averaged = toy.ToyModel.from_pretrained(finished / "model")  # the same seed
    assert torch.equal(never_averaged.frozen.weight, whole["frozen.weight"])
    live = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    assert not torch.equal(live["model.head.weight"], whole["head.weight"])


def test_a_longer_run_continues_on_the_schedule_of_its_own_length(config, tmp_path):
    for steps in (6, 9):
        assert run("fit", "--config", config, "--out", tmp_path, "--trainer.max_steps", steps) == 0
    with (tmp_path / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    expected = [schedule_factor(step, total_steps=9, warmup=0.1, floor=0.0) for step in (6, 7, 8)]
    assert rates[6:] == pytest.approx([0.05 * factor for factor in expected])


def test_a_folder_of_another_run_is_not_mixed(config, finished, capsys):
    assert run("fit", "--config", config, "--out", finished, "--model.width", 16) == 1
    error = capsys.readouterr().err
    assert "holds a run of another configuration (model.init_args.width: 8 before, 16 now)" in error
    assert "--resume never" in error


def test_evaluation_uses_the_last_checkpoint_and_is_recorded(finished, capsys):
    assert run("test", "--config", finished / "config.yaml", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(finished / "checkpoints" / "last.ckpt")
    assert json.loads((finished / "test" / "metrics.json").read_text()) == result["metrics"]
    assert (finished / "test" / "config.yaml").is_file() and (finished / "test" / "run.json").is_file()
    model, loss = toy.ToyModel.from_pretrained(finished / "model"), []
    for k in range(6):
        item = toy.sample(-1 - k)
        loss.append((model(item["x"]) - item["y"]).square().item())
    assert result["metrics"]["test/loss"] == pytest.approx(sum(loss) / 6, rel=1e-5)  # 4 and 2 samples: weighted


def test_untrained_evaluation_must_be_asked_for(config, tmp_path, capsys):
    assert run("validate", "--config", config, "--out", tmp_path / "none") == 1
    assert "run mm fit first, name one with --ckpt, or evaluate untrained weights" in capsys.readouterr().err
    assert run("validate", "--config", config, "--out", tmp_path / "none", "--ckpt", "none") == 0
    assert "val/loss" in capsys.readouterr().out


def test_predictions_are_json_lines_in_order(finished):
    assert run("predict", "--config", finished / "config.yaml") == 0
    rows = [json.loads(line) for line in (finished / "predict" / "predictions.jsonl").read_text().splitlines()]
    model = toy.ToyModel.from_pretrained(finished / "model")
    assert [row["answer"] for row in rows] == [round(model(toy.sample(-1 - k)["x"]).item(), 4) for k in range(6)]
    assert not list((finished / "predict").glob("*.part"))


def test_two_processes_give_the_loss_of_one(background, config, tmp_path):
    """Both with means over samples and with means over a number of terms that differs between the processes."""
    words = ["fit", "--config", config, "--model.dropout", 0, "--trainer.max_steps", 6]
    cases = {name: [*words, "--model.ragged", name] for name in ("false", "true")}
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", 2]
    processes = [background(*case, *two, "--out", tmp_path / name / "two") for name, case in cases.items()]
    for name, case in cases.items():
        assert run(*case, "--out", tmp_path / name / "one") == 0
    for process in processes:
        process.join(timeout=240)
        assert process.exitcode == 0, process.log.read_text()
    for name in cases:
        one, both = curve(tmp_path / name / "one"), curve(tmp_path / name / "two")
        assert list(one) == list(both) == list(range(1, 7))
        assert list(both.values()) == pytest.approx(list(one.values()), rel=1e-5)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    from mm.training.checkpoints import SafeCheckpointIO

    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"weights": torch.ones(4)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # larger files fail in the middle of writing
    try:
        with pytest.raises(OSError, match=r"File too large|not written"):
            SafeCheckpointIO().save_checkpoint({"weights": torch.ones(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(4))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_with_an_object_is_refused_by_name(tmp_path):
    from mm.training.checkpoints import SafeCheckpointIO
    from mm.training.module import OptimizerConfig

    checkpoint = {"hyper_parameters": {"optimizer": OptimizerConfig()}, "loops": [{"a": 1}, (2.0, None)]}
    with pytest.raises(ValueError, match=r"checkpoint\.hyper_parameters\.optimizer is a OptimizerConfig"):
        SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_diverged_run_stops_before_it_saves(tmp_path, capsys):
    optimizer = {"lr": 1e30, "warmup": 0.0, "clip_norm": None}
    model = {"class_path": "toy.ToyModule", "init_args": {"optimizer": optimizer}}
    config = toy.write_config(tmp_path / "bad.yaml", model=model, save_every=1)
    assert run("fit", "--config", config, "--out", tmp_path / "run") == 1
    assert "the loss is" in capsys.readouterr().err
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    diverged = len(curve(tmp_path / "run"))
    assert state["global_step"] == diverged - 1


def test_accumulated_steps_are_logged_once(config, tmp_path):
    words = ["--trainer.accumulate_grad_batches", 2, "--trainer.max_steps", 4, "--trainer.log_every_n_steps", 2]
    assert run("fit", "--config", config, "--out", tmp_path, *words) == 0
    assert list(curve(tmp_path)) == [1, 2, 4]


def test_two_accumulated_halves_are_one_batch(config, tmp_path):
    words = ["fit", "--config", config, "--model.dropout", 0, "--trainer.max_steps", 5]
    assert run(*words, "--out", tmp_path / "whole", "--data.batch", 4) == 0
    halves = ["--data.batch", 2, "--trainer.accumulate_grad_batches", 2]
    assert run(*words, "--out", tmp_path / "halves", *halves) == 0
    assert list(curve(tmp_path / "halves").values()) == pytest.approx(
        list(curve(tmp_path / "whole").values()), rel=1e-5
    )


def test_a_fresh_process_prints_our_lines_only(config, tmp_path):
    words = ["fit", "--config", str(config), "--out", str(tmp_path), "--trainer.max_steps", "1", "--allow", "toy"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-m", "mm", *words], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = [line.split()[0] for line in result.stderr.splitlines()]
    assert lines == ["step", "weights:"]
