"""The README and the pages of the documentation: every Python block runs, every command exists, every link leads on."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm.catalog import BENCH_FLOPS, BENCH_LATENCY, VERBS
from mm.checkpoint import shipped_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md"]
RUN = [page for page in PAGES if page.name not in ("design.md", "CONTRIBUTING.md")]
"""Pages for users; the design page shows signatures."""


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(Line, text) of the fenced blocks of one language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start()].count("\n") + 1, match[1]) for match in found]


PYTHON = [(page, line, code) for page in RUN for line, code in blocks(page, "python")]


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """What a reader has: pictures, records, a language model and a LLaVA, all tiny."""
    import torch
    from PIL import Image
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from mm.backbone.tiny import tiny_model
    from mm.data import tiny_tokenizer

    folder = tmp_path_factory.mktemp("reader")
    (folder / "pictures").mkdir()
    records = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        said = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red circle"}]
        records.append({"id": number, "image": f"{number}.png", "conversations": said})
    (folder / "records.json").write_text(json.dumps(records))
    Image.open(folder / "pictures" / "0.png").save(folder / "picture.png")
    tiny_model("llama").save_pretrained(folder / "my-language-model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=8),
        text_config=LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=256),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder / "my-llava")
    tokenizer.save_pretrained(folder / "my-llava")
    preprocessing = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}}
    preprocessing |= {"crop_size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "my-llava" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.mark.parametrize(("page", "line", "code"), PYTHON, ids=[f"{page.name}:{line}" for page, line, _ in PYTHON])
def test_python_block_runs(page, line, code, parts, tmp_path, monkeypatch):
    for needed in re.findall(r'mm\.load\("(\w+_tiny)"\)', code):
        if needed not in shipped_names():
            pytest.skip(f"the weights of {needed} do not ship yet")
    for path in parts.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text("\n" * line + code)
    runpy.run_path(str(tmp_path / "block.py"))


def test_every_task_has_an_example_that_runs():
    code = "\n".join(text for _, _, text in PYTHON)
    for needed in ("model.ask", "ProceduralData", "FolderData", "attach(", "detach(", "flops import", "my-llava"):
        assert needed in code
    for system in ("semanticodec_tiny", "openecad_tiny", "velvet_tiny", "evilm_tiny", "semantic_vq_tiny"):
        assert f'"{system}"' in code, f"no example uses {system}"


def commands() -> list[tuple[str, list[str]]]:
    """(Place, words) of every `mm ...` line in a shell block, and of every `mm ...` in the tables of the README."""
    found = []
    for page in PAGES:
        for line, text in blocks(page, "bash"):
            for number, command in enumerate(text.splitlines(), 1):
                words = shlex.split(command, comments=True)
                if words[:1] == ["mm"]:
                    found.append((f"{page.name}:{line + number}", words[1:]))
    for command in re.findall(r"^\|[^|]*\|.*?`mm ([^`]+)`.*$", (ROOT / "README.md").read_text(), re.MULTILINE):
        found.append(("README.md", shlex.split(command.split(", ")[0])))
    return found


def test_commands_exist():
    from mm.training.run_config import find_config

    assert len(commands()) > 5
    for place, words in commands():
        assert words[0] in VERBS, place
        options = dict(pairwise(words))
        if words[0] == "bench":
            assert options.get("--system") in {"flops": BENCH_FLOPS, "latency": BENCH_LATENCY}[words[1]], place
        if "--config" in options and not options["--config"].startswith("runs/"):
            assert find_config(options["--config"]).is_file(), place


def test_make_targets_exist():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"^make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= rules, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_flop_table_is_what_the_command_prints():
    from mm.encoders.lavi.flops import rows

    text = (ROOT / "docs" / "lavi.md").read_text(encoding="utf-8")
    for row in rows():
        cells = f"| {row['setting']} | {row['baseline_tflop']:.2f} | {row['ours_tflop']:.2f} | {row['saving']:.1%} |"
        assert cells in text, f"the page lacks: {cells}"
