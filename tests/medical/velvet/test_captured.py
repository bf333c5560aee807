"""A recorded training step does what the plain step does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mm.medical.velvet.captured import CapturedStep, step


def pieces(device: str, *, capturable: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)).to(device)
    parameters = list(model.parameters())
    rate = torch.tensor(1e-2, device=device) if capturable else 1e-2
    optimizer = torch.optim.AdamW(parameters, lr=rate, capturable=capturable)

    def compute(batch):
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        return loss, {"error": loss}

    return model, parameters, optimizer, compute


def batches(device: str, count: int):
    generator = torch.Generator().manual_seed(1)
    return [
        {"x": (x := torch.randn(16, 4, generator=generator).to(device)), "y": x.sum(1, keepdim=True)}
        for _ in range(count)
    ]


def test_the_plain_step_learns_and_clips():
    model, parameters, optimizer, compute = pieces("cpu", capturable=False)
    before = copy.deepcopy(model.state_dict())
    errors = [float(step(compute, parameters, optimizer, batch)["error"]) for batch in batches("cpu", 200)]
    assert errors[-1] < 0.1 * errors[0]
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    step(compute, parameters, optimizer, {"x": torch.full((2, 4), 1e3), "y": torch.zeros(2, 1)}, clip_norm=1e-3)
    clipped = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    assert clipped <= 1.01e-3 < norm


@pytest.mark.gpu
def test_the_recorded_step_equals_the_plain_one():
    example, *rest = batches("cuda", 6)
    _, parameters, optimizer, compute = pieces("cuda", capturable=True)
    captured = CapturedStep(compute, parameters, optimizer, example)
    _, plain_parameters, plain_optimizer, plain_compute = pieces("cuda", capturable=True)
    for _ in range(3):
        step(plain_compute, plain_parameters, plain_optimizer, example)
    for batch in rest:
        found, wanted = captured(batch), step(plain_compute, plain_parameters, plain_optimizer, batch)
        torch.testing.assert_close(found["error"], wanted["error"])
    torch.testing.assert_close(parameters, plain_parameters)
    with pytest.raises(ValueError, match="x must be"):
        captured({"x": rest[0]["x"][:3], "y": rest[0]["y"][:3]})
