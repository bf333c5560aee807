"""The objectives on crops: rotation and reconstruction are learnt, and not by a leak."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("monai")

from mm.data.split import Split
from mm.medical.phantoms import draw_case, render
from mm.medical.velvet.corruption import make_views
from mm.medical.velvet.data import windowed
from mm.medical.velvet.loss import reconstruction_loss, rotation_loss
from mm.medical.velvet.presets import velvet_tiny
from mm.medical.velvet.volume_views import quarter_turns

STEPS = 300


def volumes(split: str, count: int) -> torch.Tensor:
    return torch.stack([windowed(render(draw_case(Split(split).seed(2 * n)), 32).hu) for n in range(count)])


def predicted(model, scans):
    views = make_views(scans, torch.Generator().manual_seed(9))
    _, turns, rebuilt = model.vision_heads(model.vision(views.corrupted)[-1])
    return views, (turns.argmax(1) == views.turns).float().mean().item(), rebuilt


@pytest.mark.slow
def test_rotation_and_reconstruction_are_learnt():
    """Turns of phantoms are told; those of scans that look the same from four sides are not; holes are filled."""
    train, held_out = volumes("train", 128), volumes("test", 32)
    model, generator = velvet_tiny().train(), torch.Generator().manual_seed(0)
    parameters = [*model.vision.parameters(), *model.vision_heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        views = make_views(train[torch.randint(128, (8,), generator=generator)], generator)
        _, turns, rebuilt = model.vision_heads(model.vision(views.corrupted)[-1])
        loss = rotation_loss(turns, views.turns) + reconstruction_loss(rebuilt, views.target, "l1")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        views, accuracy, rebuilt = predicted(model.eval(), held_out)
        four_sides = torch.stack([quarter_turns(held_out, torch.full((32,), turn)) for turn in range(4)]).mean(0)
        _, blind, _ = predicted(model, four_sides)
    error, copied = ((found - views.target).abs().mean() for found in (rebuilt, views.corrupted))
    mean = torch.stack([quarter_turns(train, torch.full((128,), turn)).mean(0) for turn in range(4)]).mean(0)
    assert accuracy > 0.95 and abs(blind - 0.25) < 0.12
    assert error < copied and error < (mean - views.target).abs().mean()
