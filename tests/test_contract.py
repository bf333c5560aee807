"""What every model of the catalog promises, asked of every tiny preset.

A new system adds one line to `CASES`: how a batch for its class is made and which tensor of the result is compared. If
its tiny preset takes more than a second, a line in `SIZES` makes it smaller here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mm
from mm.codecs.semanticodec import tiny as tiny_codec
from mm.medical.velvet.config import VisionConfig

QUESTIONS = ["what is in row 3 col 5?", "is it red?", "question: what digit is on the large red circle? answer:"]


@dataclass(frozen=True)
class Case:
    """How one class of models is called."""

    batch: Callable[[Any], dict[str, Tensor]]
    """model -> keyword arguments of `forward`."""
    output: Callable[[Any], Tensor]
    """Result of `forward` -> the tensor that is compared, (B, N, ...)."""
    without_gradient: tuple[str, ...] = ()
    """Tensors that this preset has and this batch does not use (ends of their names)."""


def picture(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def pictures() -> list[Any]:
    """One picture, none, two."""
    return [picture(0), None, [picture(1), picture(2)]]


def words(model: Any) -> dict[str, Tensor]:
    vocabulary = model.backbone.model.config.vocab_size
    ids = torch.randint(vocabulary, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < torch.tensor([[7], [4], [5]])).long()}


def pixels(model: Any) -> dict[str, Tensor]:
    shape = (2, 3, *model.tower.image_size)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def questions(model: Any) -> dict[str, Tensor]:
    return model.prepare(pictures(), QUESTIONS, padding_side="right")


def conversations(model: Any) -> dict[str, Tensor]:
    from mm.pruning.visionthink.tiny import TINY_POLICY, TINY_PROTOCOL
    from mm.pruning.visionthink.traces import trace_batch
    from mm.pruning.visionthink.weaves import weave_sample

    samples, tokens = [weave_sample(0), weave_sample(1)], model.generator().tokens
    batch = trace_batch(samples, [True, False], model.processor, tokens, TINY_PROTOCOL, TINY_POLICY)
    batch["attention_mask"] = batch["attention_mask"].long()
    return {name: tensor for name, tensor in batch.items() if name != "loss_mask"}


def clips_and_captions(model: Any) -> dict[str, Tensor]:
    frames = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = model.tokenize(["a red circle", "is it a large blue star?"])
    side = 64 // model.config.video.cell
    keep = torch.ones(2, 3, side, side, dtype=torch.bool)
    return {"pixel_values": frames, **batch, "mask": keep}


def every_head(result: Any) -> Tensor:
    """Word logits plus a value of each other head per sample, (B, X, V)."""
    other = result.matching + result.codes.square().mean((1, 2, 3, 4)) + result.similarity.mean(1)
    return result.words + other[:, None, None]


def scans(model: Any) -> dict[str, Tensor]:
    """Two volumes with reports of different length."""
    edge = model.config.vision.volume_size
    volume = torch.rand((2, 1, edge, edge, edge), generator=torch.Generator().manual_seed(0))
    return {"volume": volume, **model.tokenize(["The liver is normal. No lung nodule.", "Normal spleen."])}


def scan_alone(model: Any) -> dict[str, Tensor]:
    edge = 32  # smallest that passes five halvings
    return {"volume": torch.rand((2, 1, edge, edge, edge), generator=torch.Generator().manual_seed(0))}


def velvet(result: Any) -> Tensor:
    """Everything that `VelvetModel` computes, per token."""
    sides = [getattr(side, level).mean(1) for side in (result.volume, result.text) for level in ("sentence", "word")]
    rows = torch.cat([result.volume.report, result.text.report, result.match_logits, *sides], dim=-1)
    length = result.word_logits.shape[1]
    return torch.cat([result.word_logits, rows[:, None].expand(-1, length, -1)], dim=-1)


def frames(model: Any) -> dict[str, Tensor]:
    size = model.config.image_size
    return {"frames": torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(0))}


def noisy_latents(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = model.config.decoder
    frames = model.bank(0.2 * torch.randn(2, config.window_samples + 240, generator=generator))
    noisy = torch.randn(2, *config.latent_shape, generator=generator)
    return {"frames": frames, "noisy": noisy, "timesteps": torch.tensor([100, 700])}


def dialogues(model: Any) -> dict[str, Tensor]:
    """Three scans with questions of different length and the beginning of an answer."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 3, 4])
    keep = torch.arange(5) < lengths[:, None]
    return {
        "features": torch.randn(3, config.vision_width, 2, 2, 2, generator=generator),
        "states": torch.randn(3, 5, config.text.width, generator=generator),
        "visible": keep[:, None].expand(3, 5, 5).clone(),
        "keep": keep,
        "input_ids": torch.randint(4, 40, (3, 6), generator=generator),
        "attention_mask": (torch.arange(6) < torch.tensor([[6], [4], [5]])).long(),
    }


CASES = {
    "EViLM": Case(clips_and_captions, every_head),
    "LanguageBase": Case(words, lambda result: result.logits),
    "SemanticVQTokenizer": Case(frames, lambda result: result.features),
    "SemantiCodec": Case(noisy_latents, lambda result: result),
    "TowerBase": Case(pixels, lambda result: result.tokens),
    "VisionLanguageModel": Case(questions, lambda result: result.logits),
    "FlameImageEncoder": Case(pixels, lambda result: result, without_gradient=("logit_scale", "logit_bias")),
    "VisionThinkModel": Case(conversations, lambda result: result.logits),
    "Writer": Case(
        dialogues, lambda result: torch.cat([result.logits, result.yes_no[:, None, None].expand(-1, 6, 1)], -1)
    ),
    "Segmenter": Case(scan_alone, lambda result: result.flatten(2).mT),
    "VelvetModel": Case(scans, velvet, without_gradient=("temperature.value",)),
    "OpenECAD": Case(questions, lambda result: result.logits),
    "LaviModel": Case(questions, lambda result: result.logits, without_gradient=("tile_emb", "image_emb")),
}
"""Class name -> its case."""


def small_codec() -> dict[str, Any]:
    """The tiny codec with one block in the feature extractor and two levels in the network."""
    config = tiny_codec()
    audiomae = replace(config.encoder.audiomae, depth=1, averaged_blocks=1)
    unet = replace(config.decoder.unet, multipliers=(1, 1), attention_factors=(2,))
    return {"encoder": replace(config.encoder, audiomae=audiomae), "decoder": replace(config.decoder, unet=unet)}


LANGUAGE = {"width": 32, "depth": 2}
SIZES: dict[str, dict[str, Any]] = {
    "tiny_lm": LANGUAGE,
    "llava_tiny": LANGUAGE,
    "llava_tiny_256": LANGUAGE,
    "flame_tiny": {"width": 32, "layers": 2, "text_width": 24},
    "lavi_tiny": LANGUAGE,
    "semanticodec_tiny": small_codec(),
    "openecad_tiny": {"width": 32, "depth": 2, "tower_width": 32, "tower_depth": 2},
    "tiny_vit": {"embed_dim": 32, "depth": 2},
    "tiny_vit_256": {"embed_dim": 32, "depth": 2},
    "visionthink_tiny": {"width": 32, "layers": 2, "vision_width": 32, "vision_layers": 1},
    "velvet_tiny": {"vision_heads": False, "text_heads": False},  # heads of the pre-training losses alone
    "velvet_tiny_writer": {"width": 32, "depth": 1},
    "velvet_tiny_segmenter": {"vision": VisionConfig(embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))},
}
"""Preset -> smaller sizes for this file."""

PRESETS = [name for name in mm.list_models() if "tiny" in name.split("_")]


def build(name: str) -> tuple[Any, Case]:
    """A random model in evaluation mode. What starts at zero gets values, so that no path hides behind a zero."""
    model = mm.create_model(name, **SIZES.get(name, {})).eval()
    case = CASES.get(type(model).__name__)
    if case is None:
        pytest.fail(f"{name} is a {type(model).__name__}: add a line for that class to CASES in {__file__}")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, case


def answering(name: str) -> Any:
    model, _ = build(name)
    if not hasattr(model, "prepare"):
        pytest.skip(f"{type(model).__name__} does not answer questions")
    return model


def compared(model: nn.Module, case: Case, batch: dict[str, Tensor]) -> Tensor:
    """The result without its padding."""
    found = case.output(model(**batch))
    return found[batch["attention_mask"].bool()] if "attention_mask" in batch else found


def backward(model: nn.Module, case: Case) -> None:
    """Gradients of a random weighting: a plain sum would be constant behind a norm."""
    found = compared(model, case, case.batch(model))
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(2))).sum().backward()


@pytest.mark.parametrize("name", PRESETS)
def test_forward_is_finite_and_repeatable(name):
    model, case = build(name)
    batch = case.batch(model)
    with torch.no_grad():
        first, again = compared(model, case, batch), compared(model, case, batch)
    assert first.isfinite().all() and first.std() > 0
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("frozen", ["nothing", "every second tensor"])
def test_trainable_tensors_all_get_gradients_and_frozen_ones_none(name, frozen):
    model, case = build(name)
    parameters = dict(model.named_parameters())
    if frozen != "nothing":
        for key in list(parameters)[::2]:
            parameters[key].requires_grad_(False)
    before = {key: value.detach().clone() for key, value in parameters.items()}
    backward(model.train(), case)
    moved = {key for key, value in parameters.items() if value.grad is not None and value.grad.any()}
    expected = {
        key for key, value in parameters.items() if value.requires_grad and not key.endswith(case.without_gradient)
    }
    assert moved == expected
    assert all(value.grad.isfinite().all() for value in parameters.values() if value.grad is not None)
    torch.optim.SGD([value for value in parameters.values() if value.requires_grad], lr=0.1).step()
    changed = {key for key, value in parameters.items() if not torch.equal(value, before[key])}
    assert changed <= moved


@pytest.mark.parametrize("name", PRESETS)
def test_a_saved_model_comes_back_bit_equal(name, tmp_path):
    model, case = build(name)
    loaded: Any = mm.load(model.save_pretrained(tmp_path / name))
    assert type(loaded) is type(model) and loaded.config == model.config
    assert loaded.preprocessing() == model.preprocessing()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.no_grad():  # each model prepares its own batch: tokenizer and preprocessing travelled as well
        assert torch.equal(compared(model, case, case.batch(model)), compared(loaded, case, case.batch(loaded)))


@pytest.mark.parametrize("name", PRESETS)
def test_bfloat16_stays_bfloat16_and_near_float32(name):
    model, case = build(name)
    batch = case.batch(model)
    with torch.no_grad():
        full = compared(model, case, batch)
        half = compared(model.bfloat16(), case, batch)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    # 8 bits of mantissa through a few blocks: a few per cent of the spread
    assert (half.float() - full).square().mean().sqrt() < 0.1 * full.std()


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_alone_equals_the_row_in_a_batch_padded_on_either_side(name):
    model = answering(name)
    fixed = {"max_new_tokens": 4, "min_new_tokens": 4}
    alone = [model.prepare([images], [text]) for images, text in zip(pictures(), QUESTIONS, strict=True)]
    with torch.no_grad():
        logits = [model(**batch).logits[0] for batch in alone]
    answers = torch.cat([model.generate(**batch, **fixed) for batch in alone])
    for side in ("left", "right"):
        batch = model.prepare(pictures(), QUESTIONS, padding_side=side)
        assert not batch["attention_mask"].all(), "nothing is padded, so nothing is tested"
        with torch.no_grad():
            together = model(**batch).logits
        for row, expected in enumerate(logits):
            found = together[row, batch["attention_mask"][row].bool()]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(**batch, **fixed), answers)


@pytest.mark.parametrize("name", PRESETS)
def test_compiled_equals_eager(name):
    model, case = build(name)
    batch = case.batch(model)
    torch._dynamo.reset()
    with torch.no_grad():
        eager = compared(model, case, batch)
        compiled = compared(torch.compile(model, backend="aot_eager"), case, batch)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
