"""LaVi's page of the tour: answers, accuracy with controls, costs, where words look, time over visual tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange

from mm.checkpoint import load
from mm.data.collate import collate
from mm.data.sample import VisualSample
from mm.encoders.lavi.diagnostics import inspect, token_strength, word_patch_map
from mm.encoders.lavi.evaluate import held_out_clips, reordered
from mm.encoders.lavi.flops import conditioner_flops
from mm.encoders.lavi.flops import rows as flops_rows
from mm.encoders.lavi.latency import rows as latency_rows
from mm.encoders.lavi.model import LaviModel
from mm.metrics.latency import measure
from mm.metrics.shapes import DecoderShape, ViTShape
from mm.training.answers import accuracy, answers_of
from mm.vlm import VisionLanguageModel
from mm.zoo.evaluate import blanked, held_out_boards, held_out_scenes, shuffled

if TYPE_CHECKING:
    from mm.app.report import Page

SAMPLES = 256
"""Held-out samples per score of the tour; `mm zoo verify` takes more."""


def page(page: Page) -> None:
    """Fill the page."""
    lavi, host = load("lavi_tiny"), load("llava_tiny")
    if not isinstance(lavi, LaviModel) or not isinstance(host, VisionLanguageModel):
        raise TypeError("lavi_tiny and llava_tiny must be a LaVi model and a concatenation host")
    page.text(
        "LaVi keeps the language model's sequence free of visual tokens: every modulated norm gets token-wise changes "
        "of its scale and shift that are computed from the picture. Below, one frozen tiny language model (1.3 million "
        "parameters, trained on text alone) and one frozen tiny tower answer about pictures they have never seen, "
        "once with LaVi and once with their visual tokens put between the words (the LLaVA way)."
    )
    boards = held_out_boards(page.seed, SAMPLES)
    _answers(page, lavi, host, [boards[0], boards[1], *held_out_scenes(page.seed, 4)])
    _accuracy(page, lavi, host, boards)
    _costs(page, lavi, host, boards[0])
    _attention(page, lavi, boards[0])
    _curve(page)
    page.heading("At full size")
    page.text(
        "Operations of one prefill with 50 words of text, vision encoder included, counted from the shapes of public "
        "backbones; a multiply-add counts as two. The authors state a saving of 94.0 % against LLaVA-OV-7B."
    )
    page.table(flops_rows(), "LaVi against concatenation, TFLOP", key="full_size")


def _answers(page: Page, lavi: LaviModel, host: VisionLanguageModel, samples: list[VisualSample]) -> None:
    import matplotlib.pyplot as plt

    page.heading("Answers on held-out pictures")
    answers = {name: _answer(model, samples) for name, model in (("LaVi", lavi), ("concatenation", host))}
    figure, axes = plt.subplots(1, len(samples), figsize=(2.3 * len(samples), 2.9))
    for index, (axis, sample) in enumerate(zip(axes, samples, strict=True)):
        axis.imshow(sample.images[0], interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"{sample.question}\nLaVi: {answers['LaVi'][index]}\nright: {sample.answer}", fontsize=8)
    page.figure(figure, "Boards of scanned digits from the test part of the collection, and drawn scenes.")
    page.table(
        [
            {
                "question": sample.question,
                "right": sample.answer,
                **{name: found[index] for name, found in answers.items()},
            }
            for index, sample in enumerate(samples)
        ],
        "What both models answered",
        key="answers",
    )


def _answer(model: Any, samples: list[VisualSample]) -> list[str]:
    return answers_of(model, collate(samples, model.processor, answers=False, padding_side="left"))


def _accuracy(page: Page, lavi: LaviModel, host: VisionLanguageModel, boards: list[VisualSample]) -> None:
    page.heading("Accuracy and controls")
    scenes, clips = held_out_scenes(page.seed, SAMPLES), held_out_clips(page.seed, SAMPLES)
    rows: list[dict[str, Any]] = [
        {"test": "board: which digit in row r, column c", "chance": 0.10, **_both(lavi, host, boards)},
        {"test": "the same under another board", "chance": 0.10, **_both(lavi, host, shuffled(boards))},
        {"test": "the same under a black picture", "chance": 0.10, **_both(lavi, host, blanked(boards))},
        {"test": "scene: colour, shape, place", "chance": 0.12, **_both(lavi, host, scenes)},
        {"test": "clip: left or right", "chance": 0.50, "LaVi": accuracy(lavi, clips)},
        {"test": "the same, frames shuffled", "chance": 0.50, "LaVi": accuracy(lavi, reordered(clips, page.seed))},
    ]
    page.table(rows, f"Share of exact answers on {SAMPLES} held-out samples each", key="accuracy")


def _both(lavi: LaviModel, host: VisionLanguageModel, samples: list[VisualSample]) -> dict[str, float]:
    return {"LaVi": accuracy(lavi, samples), "concatenation": accuracy(host, samples)}


def _costs(page: Page, lavi: LaviModel, host: VisionLanguageModel, sample: VisualSample) -> None:
    """Cost of reading one board and its question."""
    page.heading("What one picture costs")
    models: dict[str, Any] = {"LaVi": lavi, "concatenation": host}
    batches = {
        name: collate([sample], model.processor, answers=False, padding_side="left") for name, model in models.items()
    }
    with torch.inference_mode():
        timed = measure({name: _prefill(model, batches[name]) for name, model in models.items()}, repeats=20)
    median = {row.candidate: row.median_ms for row in timed}
    rows = []
    for name, model in models.items():
        rows.append(
            {
                "model": name,
                "visual tokens in the sequence": batches[name]["input_ids"].shape[1] - _words(sample, lavi),
                "sequence length": batches[name]["input_ids"].shape[1],
                "prefill MFLOP": _flops(model, batches[name]["input_ids"].shape[1]) / 1e6,
                "prefill ms": median[name],
                "cache bytes": _cache_bytes(model, batches[name]),
            }
        )
    page.table(rows, "One board with one question, tower included; times from alternating runs", key="costs")
    page.text(
        "At this toy size a picture has 64 visual tokens and the conditioners are as large as the language model's own "
        "layers, so LaVi is not faster here; the curve and the table below show where the difference comes from."
    )


def _words(sample: VisualSample, lavi: LaviModel) -> int:
    return collate([sample], lavi.processor, answers=False)["input_ids"].shape[1]


def _prefill(model: Any, batch: dict[str, torch.Tensor]) -> Any:
    return lambda: model(**batch, logits_to_keep=1)


def _flops(model: Any, sequence: int) -> int:
    """Operations of the prefill of one picture with its question, in closed form."""
    language, tower = model.backbone.config, model.tower
    decoder = DecoderShape(
        layers=language.num_hidden_layers,
        width=language.hidden_size,
        heads=language.num_attention_heads,
        kv_heads=language.num_key_value_heads,
        head_width=language.head_dim,
        feed_forward=language.intermediate_size,
        vocab=language.vocab_size,
    )
    options = tower.config.options
    eye = ViTShape(
        layers=tower.num_blocks,
        width=tower.width,
        feed_forward=int(options["mlp_ratio"] * tower.width),
        tokens=tower.num_tokens,
        patch=tower.patch_size[0],
        patches=tower.num_tokens,
    )
    flops = eye.flops(1) + decoder.prefill_flops(sequence, causal=True)
    if isinstance(model, LaviModel):
        flops += conditioner_flops(model.config.lavi, decoder.width, decoder.layers, sequence, tower.num_tokens)
    return flops


def _cache_bytes(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that decoding keeps: text keys and values, and for LaVi the visual ones."""
    with torch.inference_mode():
        output = model(**batch, use_cache=True)
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
        if isinstance(model, LaviModel):
            context = model.encode(batch["pixel_values"], batch["visual_counts"])
            kept += 0 if context is None else context.cache_bytes
    return kept


def _attention(page: Page, lavi: LaviModel, sample: VisualSample) -> None:
    """Where each word of the question looks, over the board."""
    import matplotlib.pyplot as plt

    page.heading("Where the words look")
    batch = collate([sample], lavi.processor, answers=False)
    visual = lavi.encode(batch["pixel_values"], batch["visual_counts"])
    if visual is None:
        raise ValueError("the sample has no picture")
    records = inspect(lavi.lavi, batch["input_ids"], visual)
    maps = rearrange(word_patch_map(records)[0], "n (h w) -> n h w", h=lavi.tower.grid[0])
    words = lavi.processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    strength = token_strength(records)[0]
    shown = list(range(3, len(words)))
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(1.5 * (len(shown) + 1), 2.1))
    axes[0].imshow(sample.images[0], interpolation="nearest")
    axes[0].set_title("board", fontsize=9)
    for axis, index in zip(axes[1:], shown, strict=True):
        axis.imshow(maps[index], cmap="magma", vmin=0)
        axis.set_title(f"{words[index]}\n{strength[index]:.2f}", fontsize=9)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    row, col = sample.meta["row"], sample.meta["col"]
    page.figure(
        figure,
        f"Mean attention of each word over the 64 patches for “{sample.question}” (row {row + 1}, column {col + 1}); "
        "the number is the strength of the modulation relative to the norm's own output.",
    )
    page.record("attention_on_asked_cell", float(maps[-1][row, col] / maps[-1].sum()))


def _curve(page: Page) -> None:
    """Prefill time over the number of visual tokens."""
    import matplotlib.pyplot as plt

    page.heading("Time over visual tokens")
    rows = latency_rows(repeats=10)
    page.table(rows, "Prefill of a random 8-block Llama of width 512, all candidates in one run", key="latency")
    points = [row for row in rows if "visual_tokens" in row]
    figure, axis = plt.subplots(figsize=(6, 3.4))
    x = np.array([row["visual_tokens"] for row in points])
    axis.plot(x, [row["concatenation_ms"] for row in points], "o-", label="concatenation")
    axis.plot(x, [row["lavi_ms"] for row in points], "s-", label="LaVi")
    axis.set(xlabel="visual tokens", ylabel="prefill, ms", ylim=(0, None))
    axis.legend()
    page.figure(figure, "The text sequence of LaVi does not grow with the picture; only its visual keys do.")
