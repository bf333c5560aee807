"""The `mm` program: listing, exit codes, one-line errors."""

import json
import subprocess
import sys

import pytest

from mm import cli, command
from mm.catalog import VERBS
from mm.registry import Registry


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_lists_every_verb_and_leaves_torch_unloaded():
    code = (
        "import sys; from mm.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'lightning', 'rich', 'numpy', 'transformers'} & set(sys.modules); "
        "print('HEAVY', sorted(heavy)); sys.exit(code)"
    )
    result = run_python(code)
    assert result.returncode == 0
    assert "HEAVY []" in result.stdout
    for verb in VERBS:
        assert f"  {verb} " in result.stdout
        assert VERBS.about(verb) and VERBS.about(verb) in result.stdout


@pytest.mark.parametrize("verb", VERBS.in_order())
def test_every_registered_verb_can_be_imported(verb):
    assert callable(VERBS.get(verb))


@pytest.mark.parametrize(
    "words",
    [["models"], ["ask"], ["zoo", "list"], ["zoo", "verify"], ["bench", "flops"], ["bench", "latency"]],
)
def test_every_verb_explains_itself_with_an_example(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: mm {' '.join(words)}" in out
    assert f"example:\n  mm {' '.join(words)}" in out
    assert "--json" in out


def test_no_command_is_a_usage_error(capsys):
    assert cli.main([]) == 2
    assert "usage: mm COMMAND" in capsys.readouterr().out


def test_unknown_verb_suggests_the_nearest(capsys):
    assert cli.main(["modles"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'modles'; did you mean models?\n"


def test_unknown_option_is_a_usage_error(capsys):
    assert cli.main(["models", "--colour"]) == 2
    assert "--colour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("width: got 3,\n  allowed 4"), "error: width: got 3, allowed 4\n"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "error: a.png: No such file or directory\n"),
        (ImportError("Reading a video needs av"), "error: Reading a video needs av\n"),
        (OSError(28, "No space left on device", "last.ckpt"), "error: last.ckpt: No space left on device\n"),
        (KeyError("x"), "error: unexpected KeyError: 'x'; --debug shows the traceback\n"),
    ],
)
def test_errors_are_one_line_and_exit_code_one(error, line, capsys):
    def run(_argv):
        raise error

    assert command.run_command(run, []) == 1
    assert capsys.readouterr().err == line


def test_the_traceback_appears_only_with_debug(capsys):
    seen = []

    def run(argv):
        seen.append(argv)
        raise ValueError("broken")

    assert command.run_command(run, ["--debug", "a"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert seen == [["a"]]
    command.run_command(run, ["a"])
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt_is_130_with_one_line(capsys):
    def run(_argv):
        raise KeyboardInterrupt

    assert command.run_command(run, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_pipe_is_not_an_error():
    code = "from mm.cli import main; import sys; sys.exit(main(['models']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_models_as_json_and_as_table(capsys):
    assert cli.main(["models", "lavi*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "lavi_tiny" in [row["name"] for row in rows]
    assert {row["weights"] for row in rows} <= {"shipped", "random"}
    assert cli.main(["models"]) == 0
    assert "lavi_tiny" in capsys.readouterr().out


def test_models_with_a_pattern_that_matches_nothing(capsys):
    assert cli.main(["models", "nothing*"]) == 1
    assert "no preset matches 'nothing*'" in capsys.readouterr().err


def test_parameters_are_counted_without_memory(monkeypatch):
    from mm.verbs import models

    monkeypatch.setattr("mm.checkpoint.MODELS", presets := Registry("model"))
    presets.add("huge", "torch.nn:Linear")
    monkeypatch.setattr("mm.checkpoint.create_model", lambda name: presets.get(name)(200_000, 200_000))
    assert models.count_parameters("huge") == 200_000 * 200_001


def test_module_form_is_the_same_program():
    result = subprocess.run([sys.executable, "-m", "mm", "--version"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert result.stdout.startswith("mm ")


# --- mm ask --------------------------------------------------------------------------------------------------------


class Listener:
    """Stands for a vision-language model: tells what it was asked."""

    tokens_per_picture = 16

    def ask(self, images, prompt):
        return f"{len(images)} of {images[0].size[0]} pixels: {prompt}"

    def prepare(self, images, text):
        import torch

        return {"attention_mask": torch.tensor([[0, 1, 1, 1]]), "pixel_values": torch.zeros(len(images), 3, 8, 8)}


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "board.png"
    Image.new("RGB", (24, 16)).save(path)
    return str(path)


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.setattr("mm.vlm.open_model", lambda name, *, device: Listener())


def test_ask_prints_the_answer_alone(picture, listener, capsys):
    assert cli.main(["ask", picture, picture, "--prompt", "what?", "--model", "any"]) == 0
    assert capsys.readouterr().out == "2 of 24 pixels: what?\n"


def test_ask_as_json_adds_tokens_and_time(picture, listener, capsys):
    assert cli.main(["ask", picture, "--prompt", "what?", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer"] == "1 of 24 pixels: what?" and result["model"] == "lavi_tiny"
    assert (result["sequence_tokens"], result["visual_tokens"]) == (3, 16)
    assert 0 <= result["seconds"] < 5


@pytest.mark.parametrize("model", ["lavi_tiny", "llava_tiny"])
def test_ask_as_json_with_a_shipped_model(model, picture, capsys):
    assert cli.main(["ask", picture, "--prompt", "is it red?", "--model", model, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    in_the_sequence = 64 if model == "llava_tiny" else 0  # LaVi's visual tokens stay outside
    assert (result["sequence_tokens"], result["visual_tokens"]) == (9 + in_the_sequence, 64)


def test_ask_refuses_what_it_cannot_use(picture, listener, capsys, tmp_path, monkeypatch):
    assert cli.main(["ask", picture, "--prompt", "  "]) == 1
    assert "--prompt is empty" in capsys.readouterr().err
    (tmp_path / "text.png").write_text("no picture")
    assert cli.main(["ask", str(tmp_path / "text.png"), "--prompt", "what?"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "text.png" in error
    assert cli.main(["ask", str(tmp_path / "none.png"), "--prompt", "what?"]) == 1
    assert "none.png" in capsys.readouterr().err
    monkeypatch.setattr("mm.vlm.open_model", lambda name, *, device: object())
    assert cli.main(["ask", picture, "--prompt", "what?"]) == 1
    assert "does not answer questions" in capsys.readouterr().err


def test_ask_for_an_unknown_model_suggests_the_nearest(picture, capsys):
    assert cli.main(["ask", picture, "--prompt", "what?", "--model", "lavi_tny"]) == 1
    assert "did you mean lavi_tiny" in capsys.readouterr().err


# --- mm bench ------------------------------------------------------------------------------------------------------


@pytest.fixture
def benches(monkeypatch):
    from mm.verbs import bench

    flops, latency = Registry("FLOP benchmark"), Registry("latency benchmark")
    for name in ("lavi", "other"):
        flops.add(name, "x:y")
        latency.add(name, "x:y")
    rows = [{"setting": "7B", "ours_tflop": 1.04, "baseline_tflop": 8.58, "saving": 0.878}]
    monkeypatch.setattr(flops, "get", lambda name: lambda: rows)
    monkeypatch.setattr(
        latency, "get", lambda name: lambda *, device, repeats: [{"device": device, "repeats": repeats}]
    )
    monkeypatch.setattr(bench, "BENCHES", {"flops": flops, "latency": latency})


def test_bench_rows_of_one_system_and_of_all(benches, capsys):
    assert cli.main(["bench", "flops", "--system", "lavi", "--json"]) == 0
    row = {"system": "lavi", "setting": "7B", "ours_tflop": 1.04, "baseline_tflop": 8.58, "saving": 0.878}
    assert json.loads(capsys.readouterr().out) == [row]
    assert cli.main(["bench", "latency", "--repeats", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["system"], row["device"], row["repeats"]) for row in rows] == [("lavi", "cpu", 3), ("other", "cpu", 3)]
    assert cli.main(["bench", "flops"]) == 0
    assert "8.58" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["flops", "--system", "lavvi"], 1, "unknown FLOP benchmark 'lavvi'; did you mean lavi?"),
        (["kernels", "--kernel", "x"], 2, "unknown kernel 'x'; choose"),
        (["speed"], 2, "invalid choice: 'speed'"),
        (["latency", "--repeats", "0"], 2, "must be at least 1, got 0"),
        ([], 2, "required: kind"),
    ],
)
def test_bench_refuses_what_it_cannot_run(benches, capsys, words, code, message):
    assert cli.main(["bench", *words]) == code
    assert message in capsys.readouterr().err
