"""What the idea is worth: many facets against one, a trained language model against a random one.

All three encoders see the same pictures for the same number of steps; only the texts differ.
"""

from __future__ import annotations

import pytest
import torch

import mm
from mm.encoders.flame import FacetTextEncoder
from mm.encoders.flame.data import EmbeddedPairs, FlameDataConfig, PairStream
from mm.encoders.flame.module import FlameModule
from mm.encoders.flame.pairs import SCENES, scene_pairs
from mm.encoders.flame.positives import embed_captions
from mm.encoders.flame.trial import scores
from mm.training.schedule import build_schedule

STEPS, BATCH, PICTURES = 400, 64, 2048
FIRST_LONG = 4
"""Row of the first facet of the long caption."""


def trained(pairs, rows, positives):
    """An encoder after `STEPS` steps on these rows."""
    module = FlameModule(seed=0)
    values = module.model.processor.preprocessing
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (values.mean, values.std))
    config = FlameDataConfig(num_scenes=PICTURES, digit_copies=0, batch_size=BATCH, positives=positives)
    batches = iter(PairStream(EmbeddedPairs(pairs, rows), config, mean, std, rank=0, world=1))
    optimizer = torch.optim.AdamW(module.parameter_groups(), lr=2e-3, betas=(0.9, 0.95))
    schedule = build_schedule(optimizer, total_steps=STEPS, warmup=0.05, floor=0.0, shape="cosine")
    torch.manual_seed(0)
    for _ in range(STEPS):
        loss, _ = module.compute_loss(next(batches)[0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        module.model.clamp_scale()
    return module.model.eval()


@pytest.mark.slow
def test_many_facets_beat_one_and_a_trained_language_model_a_random_one():
    pairs = scene_pairs("train", PICTURES, scenes=SCENES, size=48)
    settings = {"layer": -1, "templates": "world"}
    tower = FacetTextEncoder(mm.load("tiny_lm").backbone, **settings)
    random = FacetTextEncoder(mm.create_model("tiny_lm").backbone, **settings)
    rows = embed_captions(tower, pairs.captions)
    found = {}
    for name, speaker, texts, positives, one in (
        ("seven facets", tower, rows, 6, False),
        ("one facet", tower, rows[:, FIRST_LONG : FIRST_LONG + 1], 1, True),
        ("random", random, embed_captions(random, pairs.captions), 6, False),
    ):
        model = trained(pairs, texts, positives)
        found[name] = scores(model, speaker, count=256, digits=False, one_facet=one)
        print(name, {key: round(value, 3) for key, value in found[name].items()}, flush=True)
    for key in ("image_to_text_r1", "text_to_image_r1", "shape_zero_shot"):
        assert found["seven facets"][key] > found["one facet"][key] + 0.05, key
        assert found["seven facets"][key] > found["random"][key] + 0.15, key
