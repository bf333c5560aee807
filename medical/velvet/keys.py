"""How published files name the tensors of this model: one table of prefixes and one of layer parts.

Repository layout: the flat state dict of the authors' training; BERT layout: Hugging Face's BertModel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

BERT_PARTS = (
    ("embeddings.word_embeddings.", "embeddings.word."),
    ("embeddings.position_embeddings.", "embeddings.position."),
    ("embeddings.token_type_embeddings.", "embeddings.sentence."),
    ("embeddings.LayerNorm.", "embeddings.norm."),
    ("encoder.layer.", "layers."),
    (".attention.self.", ".self_attention."),
    (".attention.output.dense.", ".self_attention.out."),
    (".attention.output.LayerNorm.", ".self_attention.norm."),
    (".crossattention.self.", ".cross_attention."),
    (".crossattention.output.dense.", ".cross_attention.out."),
    (".crossattention.output.LayerNorm.", ".cross_attention.norm."),
    (".intermediate.dense.", ".feed_forward.expand."),
    (".output.dense.", ".feed_forward.contract."),
    (".output.LayerNorm.", ".feed_forward.norm."),
)
"""BERT's name -> that of `TriBert`, applied in order."""

WORD_HEAD = (("fc.0.", "dense."), ("fc.2.", "norm."), ("output.", "output."))

REPOSITORY = (
    ("vision_ssl.vision_encoder.", "vision.swin."),
    ("vision_ssl.contras_head.", "vision_heads.contrast."),
    ("vision_ssl.rot_head.", "vision_heads.rotation."),
    ("vision_ssl.recon_bottleneck.out_layer.", "vision_heads.reconstruction.out."),
    ("vision_ssl.recon_bottleneck.up_blocks.", "vision_heads.reconstruction.up."),
    *((f"text_ssl.text_mlm_head.{theirs}", f"text_words.{ours}") for theirs, ours in WORD_HEAD),
    *((f"mm_mlm_head.{theirs}", f"fused_words.{ours}") for theirs, ours in WORD_HEAD),
    ("top_itc_vis_head.", "levels.report.vision."),
    ("top_itc_txt_head.", "levels.report.text."),
    ("middle_itc_vis_head.", "levels.sentence.vision."),
    ("middle_itc_txt_head.", "levels.sentence.text."),
    ("bottom_itc_vis_head.", "levels.word.vision."),
    ("bottom_itc_txt_head.", "levels.word.text."),
    ("top_itc_criterion.temperature", "temperature.value"),
    ("mm_match_head.", "match."),
    ("mm_adpater.0.", "adapter.project."),  # spelt so in the files
    ("mm_adpater.1.", "adapter.norm."),
)
"""Prefix in the authors' files -> ours; the text model follows `BERT_PARTS` behind its own prefix."""
TEXT_PREFIX = "text_ssl.text_model."


def rename(keys: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Replace each rule's first occurrence in every key, in order."""
    found = {}
    for key, value in keys.items():
        for old, new in rules:
            key = key.replace(old, new, 1)
        found[key] = value
    return found


def from_bert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT layout -> `TriBert` keys."""
    return rename(tensors, BERT_PARTS)


def to_bert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`TriBert` keys -> BERT layout."""
    inverse = [(new, old) for old, new in BERT_PARTS]
    return rename(tensors, inverse)


def from_repository(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' layout -> keys of `VelvetModel`; names that are not theirs stay as they are."""
    found = {}
    for key, value in tensors.items():
        if key.startswith(TEXT_PREFIX):
            (key,) = from_bert({key.removeprefix(TEXT_PREFIX): value})
            found[f"text.{key}"] = value
            continue
        match = next(((old, new) for old, new in REPOSITORY if key.startswith(old)), None)
        found[key if match is None else match[1] + _decoder_block(key.removeprefix(match[0]), match[1])] = value
    return found


def to_repository(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of `VelvetModel` -> the authors' layout."""
    found = {}
    for key, value in tensors.items():
        if key.startswith("text."):
            (key,) = to_bert({key.removeprefix("text."): value})
            found[TEXT_PREFIX + key] = value
            continue
        old, new = next((old, new) for old, new in REPOSITORY if key.startswith(new))
        rest = key.removeprefix(new)
        if new.endswith("reconstruction.up.") and value.ndim in (1, 5) and _interpolating(tensors):
            number, _, name = rest.partition(".")
            rest = f"{number}.0.{name}"
        found[old + rest] = value
    return found


def _decoder_block(rest: str, ours: str) -> str:
    """The interpolating decoder's convolutions stand at place 0 of their block: 2.0.weight -> 2.weight."""
    parts = rest.split(".")
    return f"{parts[0]}.{parts[2]}" if ours.endswith("reconstruction.up.") and len(parts) == 3 else rest


def _interpolating(tensors: Mapping[str, Tensor]) -> bool:
    out = tensors["vision_heads.reconstruction.out.weight"]
    return out.shape[-1] == 1
