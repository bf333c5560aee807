"""Every contrastive loss against numbers of the published code: values, similarity matrices, attention, gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from mm.kernels import local_attention
from mm.medical.velvet.config import LocalConfig
from mm.medical.velvet.loss import (
    LevelEmbeddings,
    hierarchical_contrastive_loss,
    level_similarity,
    report_loss,
    two_way_loss,
    view_contrast_loss,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def leaf(tensor):
    return tensor.clone().requires_grad_()


@pytest.mark.parametrize("name", ["default", "uneven", "warm"])
def test_report_loss(losses, name):
    settings = losses.meta["settings"][f"report.{name}"]
    image, text = leaf(losses.get("report.image")), leaf(losses.get("report.text"))
    temperature = torch.tensor(settings["temperature"], requires_grad=True)
    found = report_loss(
        image,
        text,
        temperature,
        label_smoothing=settings["label_smoothing"],
        volume_weight=settings["image_to_text_weight"],
    )
    found.backward()
    expected = {key: losses.get(f"expected.report.{name}.{key}") for key in ("loss", "grad_image", "grad_text")}
    torch.testing.assert_close(found, expected["loss"][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(image.grad, expected["grad_image"], **CLOSE)
    torch.testing.assert_close(text.grad, expected["grad_text"], **CLOSE)
    torch.testing.assert_close(temperature.grad, losses.get(f"expected.report.{name}.grad_temperature")[0], **CLOSE)


@pytest.mark.parametrize("name", ["t05", "t01"])
def test_view_contrast(losses, name):
    from monai.losses import ContrastiveLoss

    temperature = losses.meta["settings"][f"views.{name}"]["temperature"]
    first, second = leaf(losses.get("views.first")), losses.get("views.second")
    found = view_contrast_loss(first, second, temperature)
    found.backward()
    torch.testing.assert_close(found, losses.get(f"expected.views.{name}.loss")[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.grad, losses.get(f"expected.views.{name}.grad_first"), **CLOSE)
    monai = ContrastiveLoss(temperature=temperature)(losses.get("views.first"), second)
    torch.testing.assert_close(found.detach(), monai, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", ["blocked", "reference"])
@pytest.mark.parametrize("name", ["default", "mean", "sharp"])
@pytest.mark.parametrize("level", ["sentence", "word"])
def test_local_losses(losses, level, name, impl):
    settings = losses.meta["settings"][f"{level}.{name}"]
    local = LocalConfig(
        region_temperature=settings["temp1"],
        token_temperature=settings["temp2"],
        similarity_temperature=settings["temp3"],
        reduction=settings["agg"],
        impl=impl,
    )
    regions = leaf(losses.get(f"{level}.regions"))
    tokens = [leaf(losses.get(f"{level}.tokens.{row}")) for row in range(4)]
    padded = pad_sequence(tokens, batch_first=True)
    keep = torch.arange(padded.shape[1]) < torch.tensor([[len(row)] for row in tokens])
    volume = LevelEmbeddings(**{level: regions.flatten(1, 3)})
    text = LevelEmbeddings(**{level: padded, f"{level}_keep": keep})
    prefix = f"expected.{level}.{name}"
    similarity = level_similarity(volume, text, level, local)
    torch.testing.assert_close(similarity, losses.get(f"{prefix}.similarity"), **CLOSE)
    found = hierarchical_contrastive_loss(volume, text, local=local)
    assert list(found) == [level]
    found[level].backward()
    torch.testing.assert_close(found[level], losses.get(f"{prefix}.loss")[0], **CLOSE)
    torch.testing.assert_close(regions.grad, losses.get(f"{prefix}.grad_regions"), **CLOSE)
    for row in range(4):
        torch.testing.assert_close(tokens[row].grad, losses.get(f"{prefix}.grad_tokens.{row}"), **CLOSE)
        if name != "mean":
            attention = local_attention(regions[row].flatten(0, 2), tokens[row], region_temperature=settings["temp1"])
            torch.testing.assert_close(
                attention, losses.get(f"{prefix}.attention.{row}").flatten(1), rtol=1e-4, atol=1e-6
            )


def test_one_pair_alone_gives_zero(losses):
    volume = LevelEmbeddings(report=losses.get("report.image")[:1], word=losses.get("word.regions")[:1].flatten(1, 3))
    text = LevelEmbeddings(report=losses.get("report.text")[:1], word=losses.get("word.tokens.0")[None])
    found = hierarchical_contrastive_loss(volume, text)
    assert losses.get("expected.word.single_pair.loss")[0] == 0
    assert {name: float(value) for name, value in found.items()} == {"report": 0.0, "word": 0.0}


def test_without_smoothing_it_is_cross_entropy():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    own = torch.arange(5)
    plain = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(two_way_loss(scores), plain)
