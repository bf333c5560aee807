"""Published names, shapes and counts; strict reading of synthetic published files."""

from __future__ import annotations

import json
import logging
from math import prod

import pytest
import torch

from mm.codecs.semanticodec.config import DiffusionConfig, paper
from mm.codecs.semanticodec.convert_decoder import (
    OWN_TABLE,
    averaged_key,
    key_map,
    load_official_decoder,
    official_decoder_state,
)
from mm.codecs.semanticodec.decoder import SemantiCodecDecoder
from mm.codecs.semanticodec.schedule import betas_of, schedule_tables


def published_layout(data, rate):
    """name -> shape of `decoder.ckpt`."""
    layout = json.loads((data / "semanticodec_checkpoint_layout.json").read_text())
    shapes = dict(layout["token_rate_100"]["decoder"])
    if rate != 100:
        shapes |= layout[f"token_rate_{rate}"]["decoder"]["changed"]
    return shapes, layout["counts"][str(rate)]


def elements(shape):
    return 1 if shape == "scalar" else prod(map(int, shape.split("x")))


@pytest.mark.parametrize(("rate", "unet"), [(100, 75_040_584), (50, 85_854_024), (25, 107_480_904)])
def test_names_shapes_and_counts_equal_the_published_ones(rate, unet, data):
    with torch.device("meta"):
        decoder = SemantiCodecDecoder(paper(rate).decoder)
    shapes, counts = published_layout(data, rate)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(decoder.unet) == unet
    assert count(decoder.vae.encoder) == 22_395_024 and count(decoder.vae.decoder) == 32_981_505
    assert count(decoder.vae.to_moments) + count(decoder.vae.from_latents) == 344
    assert count(decoder.vocoder) == sum(elements(shape) for name, shape in shapes.items() if ".vocoder." in name)
    own, names = decoder.state_dict(), key_map(decoder)
    text = {name: "x".join(map(str, own[ours].shape)) or "scalar" for ours, name in names.items()}
    # Left over: the schedule, its log-variances and the counters of the moving average.
    remaining = {name for name in shapes if name not in text}
    assert {name: shapes.get(name) for name in text} == text
    assert {name for name in remaining if shapes[name] != "1000"} <= {"model_ema.decay", "model_ema.num_updates"}
    averaged = [averaged_key(name) for name in names.values() if name.startswith("model.diffusion_model.")]
    assert len(set(averaged)) == len(averaged) == counts["ema_keys"] - 2
    total = sum(elements(shape) for shape in shapes.values())
    ema_there = sum(name.startswith("model_ema.") for name in shapes)
    assert len(shapes) - ema_there + counts["ema_keys"] == counts["decoder_keys"]
    assert total - ema_there + 2 + unet == counts["decoder_elements"]


@pytest.fixture
def published(small, randomise):
    """A random file in the published layout, its decoder, and an empty decoder of the same sizes."""
    return official_decoder_state(small), small, randomise(SemantiCodecDecoder(small.config), seed=9)


def test_a_published_file_comes_back_bit_equal(published, caplog):
    tensors, source, empty = published
    with caplog.at_level(logging.INFO):
        report = load_official_decoder(empty, tensors, source="decoder.ckpt")
    assert all(torch.equal(value, empty.state_dict()[key]) for key, value in source.state_dict().items())
    assert report.loaded == len(source.state_dict()) - 1 and report.tables == 12 and report.unused == 3
    assert report.averaged == sum(key.startswith("unet.") for key in source.state_dict())
    assert "decoder.ckpt" in caplog.text


def test_the_table_of_the_file_wins(published):
    tensors, _, empty = published
    tensors |= schedule_tables(betas_of(DiffusionConfig(schedule="linear", linear_end=0.02)))
    load_official_decoder(empty, tensors, source="decoder.ckpt")
    assert torch.equal(empty.schedule.alphas_cumprod, tensors["alphas_cumprod"])
    assert OWN_TABLE in empty.state_dict()


def test_the_average_is_read_on_request_only(published):
    tensors, source, empty = published
    name = "model.diffusion_model.out.2.bias"
    tensors[averaged_key(name)] = torch.full_like(tensors[name], 7.0)
    load_official_decoder(empty, tensors, source="decoder.ckpt")
    assert torch.equal(empty.unet.conv_out.bias, source.unet.conv_out.bias)
    load_official_decoder(empty, tensors, source="decoder.ckpt", average=True)
    assert (empty.unet.conv_out.bias == 7).all()
    without = {key: value for key, value in tensors.items() if not key.startswith("model_ema.")}
    load_official_decoder(empty, without, source="decoder.ckpt")
    with pytest.raises(ValueError, match="model_ema"):
        load_official_decoder(empty, without, source="decoder.ckpt", average=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t: t.pop("first_stage_model.vocoder.conv_pre.weight"),
            "missing .1.: first_stage_model.vocoder.conv_pre",
        ),
        (lambda t: t.update({"surprise": torch.zeros(1)}), "unexpected .1.: surprise"),
        (lambda t: t.update({"scale_factor": torch.zeros(2)}), "reshaped .1.: scale_factor"),
        (lambda t: t.update({"sqrt_alphas_cumprod": torch.zeros(1000)}), "contradicts"),
    ],
)
def test_a_damaged_file_is_refused_and_nothing_changes(damage, message, published):
    tensors, _, empty = published
    before = {key: value.clone() for key, value in empty.state_dict().items()}
    damage(tensors)
    with pytest.raises(ValueError, match=message):
        load_official_decoder(empty, tensors, source="decoder.ckpt")
    assert all(torch.equal(value, before[key]) for key, value in empty.state_dict().items())
