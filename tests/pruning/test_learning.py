"""Does the score find what matters? A tiny encoder learns to name one small shape on noise, then loses tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from mm.pruning import FlowCut, RandomPrune, UniformGrid
from mm.pruning.evaluate import kept_share_of
from mm.pruning.scores import entropy_ratio, guide_row
from mm.pruning.towers import open_tower

SIDE, PATCH, SHAPE = 32, 4, 8
CLASSES = 4


def stencils() -> torch.Tensor:
    """Frame, plus, cross and disc, (4, 8, 8) bool."""
    y, x = torch.meshgrid(torch.arange(SHAPE), torch.arange(SHAPE), indexing="ij")
    frame = (y < 2) | (y > 5) | (x < 2) | (x > 5)
    plus = ((y > 2) & (y < 5)) | ((x > 2) & (x < 5))
    cross = ((y - x).abs() < 2) | ((y + x - 7).abs() < 2)
    disc = (y - 3.5) ** 2 + (x - 3.5) ** 2 < 12
    return torch.stack([frame, plus, cross, disc])


def draw(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, 32, 32), classes (B,), and which of the 64 patches the shape touches (B, 64) bool."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    corners = torch.randint(0, SIDE - SHAPE + 1, (count, 2), generator=generator)
    colours = 1.0 + torch.rand(count, 3, generator=generator)
    touched = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for picture, mask, label, (top, left), colour in zip(pictures, touched, labels, corners, colours, strict=True):
        stencil = stencils()[label]
        window = (slice(top, top + SHAPE), slice(left, left + SHAPE))
        picture[:, *window] += stencil * colour[:, None, None]
        mask[window] = stencil
    patches = F.max_pool2d(touched[:, None].float(), PATCH).flatten(1) > 0
    return pictures, labels, patches


class Reader(nn.Module):
    """An encoder, and two readers of its penultimate layer: of the class token, and of single patches.

    A patch says which shape touches it, or none, so that patch features stay about their place: whoever drops the
    object's patches loses the answer.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.tower = CLIPVisionModel(
                CLIPVisionConfig(
                    hidden_size=64,
                    intermediate_size=128,
                    num_hidden_layers=8,
                    num_attention_heads=4,
                    image_size=SIDE,
                    patch_size=PATCH,
                )
            )
            self.cls, self.patch = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES + 1)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Class scores from whatever patches there are, (B, T, 64) -> (B, 4): the patch that is surest of a shape."""
        logits = self.patches(tokens)
        return (logits[..., :CLASSES] - logits[..., CLASSES:]).amax(dim=1)

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Shape or none for every patch, (B, T, 64) -> (B, T, 5)."""
        return self.patch(F.layer_norm(tokens, (64,)))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = FlowCut(target_tokens=64).encode(self.tower, pixel_values)
        return self.cls(F.layer_norm(out.cls, (64,))), self.patches(out.tokens)


def trained(seed: int, steps: int) -> Reader:
    model = Reader(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    for step in range(steps):
        pictures, labels, touched = draw(64, seed=1000 * (seed + 1) + step)
        by_class, by_patch = model(pictures)
        wanted = torch.where(touched, labels[:, None], CLASSES)
        loss = F.cross_entropy(by_class, labels) + F.cross_entropy(by_patch.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_flowcut_keeps_the_object(seed):
    with torch.enable_grad():
        model = trained(seed, steps=700)
    pictures, labels, patches = draw(400, seed=99)
    everything = FlowCut(target_tokens=64).encode(model.tower, pictures).tokens
    full = float((model.read(everything).argmax(1) == labels).float().mean())
    assert full > 0.95

    def scores(pruner) -> tuple[float, float]:
        """(accuracy, share of the object's patches that are kept)."""
        out = pruner.encode(model.tower, pictures)
        right = float((model.read(out.tokens).argmax(1) == labels).float().mean())
        return right, float(kept_share_of(patches, out.keep_indices).mean())

    for target in (8, 16):
        flow, random, grid = (scores(kind(target_tokens=target)) for kind in (FlowCut, RandomPrune, UniformGrid))
        last = scores(FlowCut(target_tokens=target, schedule="last", ema=0.0))
        print(f"seed {seed} T={target} full {full:.3f} flow {flow} random {random} grid {grid} last layer only {last}")
        assert flow[1] > 1.8 * target / 64, "recall of the object must be about twice chance"
        assert flow[1] > 1.5 * max(random[1], grid[1])
        assert flow[0] > max(random[0], grid[0]), "fewer answers lost than by chance"
    ratios = depth_of_entropy(model, pictures[:64])
    print("entropy ratio by block", [round(ratio, 3) for ratio in ratios])
    assert min(ratios[4:]) < ratios[0]


def depth_of_entropy(model: Reader, pictures: torch.Tensor) -> list[float]:
    """Mean entropy ratio of the class token's attention in every block."""
    tower = open_tower(model.tower, -1)
    stream, ratios = tower.start(pictures), []
    for layer in range(8):
        stream, heads = tower.block(layer, stream)
        row = guide_row(heads.query, heads.key, heads.scale, "cls", None)[:, 1:]
        ratios.append(float(entropy_ratio(row / row.sum(1, keepdim=True)).mean()))
    return ratios
