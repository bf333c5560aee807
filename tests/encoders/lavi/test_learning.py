"""Can LaVi learn the thing the paper is about, and do the controls that lack it fail?

The shipped weights are checked in tests/zoo; here the training itself runs. The long runs are marked slow.
"""

from __future__ import annotations

import pytest
import torch

from mm.data.collate import collate
from mm.encoders.lavi.evaluate import held_out_clips
from mm.encoders.lavi.module import LaviModule
from mm.encoders.lavi.presets import TINY
from mm.training.answers import accuracy
from mm.zoo.evaluate import held_out_boards
from mm.zoo.presets import PROMPT


def fit(tmp_path, steps: int, tasks: dict[str, float], **options):
    """Train the packaged configuration on some tasks; returns the model from its folder."""
    import json

    import mm
    from mm.cli import main

    settings = {"trainer.max_steps": steps, "trainer.limit_val_batches": 0, "data.config.tasks": tasks}
    settings |= {f"model.{key}": value for key, value in options.items()}
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    code = main(["fit", "--config", "lavi/tiny", "--out", str(tmp_path), *words])
    assert code == 0
    return mm.load(tmp_path / "model")


@pytest.mark.usefixtures("gradients")
def test_one_batch_is_learned_and_only_the_adapter_moves():
    model = LaviModule(lavi=TINY, prompt=PROMPT).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = collate(held_out_boards(0, 8), model.processor)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=1e-2)
    losses = []
    for _ in range(100):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    for key, value in model.state_dict().items():
        frozen = not key.startswith(("lavi.visual_proj.", "lavi.cond."))
        assert not frozen or torch.equal(value, before[key]), key


@pytest.mark.slow
@pytest.mark.usefixtures("gradients")
def test_attention_learns_the_lookup_and_film_does_not(tmp_path):
    """400 steps of the recipe on boards alone, about five minutes each on two cores."""
    boards = held_out_boards(3, 512)
    scores = {
        kind: accuracy(fit(tmp_path / kind, 600, {"boards": 1.0}, lavi={"conditioner": kind, **TINY}), boards)
        for kind in ("attention", "film")
    }
    print(scores)
    assert scores["attention"] >= 0.90
    assert scores["film"] <= 0.35


@pytest.mark.slow
@pytest.mark.usefixtures("gradients")
def test_frame_order_needs_frame_embeddings(tmp_path):
    clips = held_out_clips(3, 1024)
    ordered = accuracy(fit(tmp_path / "frame", 300, {"clips": 1.0}, picture_ids="frame"), clips)
    unordered = accuracy(fit(tmp_path / "none", 300, {"clips": 1.0}, picture_ids="none"), clips)
    print({"frame embeddings": ordered, "none": unordered})
    assert ordered >= 0.95
    assert 0.45 <= unordered <= 0.55
