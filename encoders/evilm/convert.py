"""Published weights -> ours: VIOLETv2 state dicts, Video Swin files, 2-D Swin weights stretched over time.

Strict: what does not fit is listed by name and stops the load; heads that one file has and the other has not are
announced in the report.
Source: layouts of the published code of VIOLETv2 (arXiv:2209.01540), Video Swin (arXiv:2106.13230) and timm's Swin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import repeat
from torch import Tensor

from mm.checkpoint import load_state, read_tensors
from mm.encoders.evilm.config import PATCH_FRAMES
from mm.encoders.evilm.model import EViLM
from mm.encoders.evilm.swin3d import Swin3D

SWIN_RULES = (
    (r"^layers\.(\d)\.blocks\.(\d+)\.attn\.relative_position_bias_table$", r"stages.\1.\2.attn.table"),
    (r"^layers\.(\d)\.blocks\.(\d+)\.mlp\.", r"stages.\1.\2."),
    (r"^layers\.(\d)\.blocks\.(\d+)\.", r"stages.\1.\2."),
    (r"^layers\.(\d)\.downsample\.", r"merges.\1."),
)
"""Names of Video Swin -> ours."""
COMPUTED = ("relative_position_index", "attn_mask", "position_ids", "emb_odr")
"""Ends of names that are tables a model computes itself, or a part that is not used (order prediction)."""
LAYER_RULES = (
    ("attention.output.dense.", "proj."),
    ("attention.output.LayerNorm.", "norm1."),
    ("intermediate.dense.", "fc1."),
    ("output.dense.", "fc2."),
    ("output.LayerNorm.", "norm2."),
)
"""BERT layer -> ours; queries, keys and values are joined."""
EMBEDDING_RULES = (
    ("word_embeddings.", "words."),
    ("position_embeddings.", "positions."),
    ("token_type_embeddings.", "types."),
    ("LayerNorm.", "norm."),
)
HEAD_RULES = (
    ("fc_mtm.predictions.transform.dense.", "words.dense."),
    ("fc_mtm.predictions.transform.LayerNorm.", "words.norm."),
    ("fc_mtm.predictions.decoder.weight", "words.words"),
    ("fc_mtm.predictions.bias", "words.bias"),
    ("decoder_vq.0.", "codes.expand."),
    ("fc_mvm.", "codes.classify."),
    ("fc.", "matching."),
)
TWICE = "fc_mtm.predictions.decoder.bias"
"""The same values as `fc_mtm.predictions.bias`."""


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file."""

    loaded: int
    """Tensors of our model that got values."""
    left_out: tuple[str, ...]
    """Keys of the file that have no place here."""
    fresh: tuple[str, ...]
    """Tensors of our model that the file does not hold; they keep their start values."""


def load_violetv2(model: EViLM, path: str | Path) -> Report:
    """Read a flat VIOLETv2 state dict into a model of preset `violetv2`.

    Word prediction and code heads may be absent from the file (fine-tuned ones lack them): they stay fresh and are
    named in the report. Everything else is strict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: tensors missing, unexpected or of another shape (all named).
    """
    tensors, left_out = violet_state(read_checkpoint(path))
    new = tuple(part for part in ("codes.", "words.", "contrast.", "answers.") if not _any(tensors, part))
    if model.words.words is None and "words.words" in tensors:
        raise ValueError(f"{path}: holds its own output words; build the model with tie_words=False")
    if model.codes is None:
        left_out += [key for key in tensors if key.startswith("codes.")]
        tensors = {key: value for key, value in tensors.items() if not key.startswith("codes.")}
    load_state(model, tensors, source=str(path), new=new)
    return _report(model, tensors, left_out)


def violet_state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of VIOLETv2 under our names, and the keys that have no place here."""
    found: dict[str, Tensor] = {}
    left_out = []
    bert: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith(COMPUTED) or key == TWICE:
            left_out.append(key)
        elif key.startswith("trsfr.layer."):
            bert[key.removeprefix("trsfr.layer.")] = value
        else:
            name, value = _violet_entry(key, value)
            found[name] = value
    found |= {f"fusion.{key}": value for key, value in bert_layers(bert).items()}
    return found, left_out


def _violet_entry(key: str, value: Tensor) -> tuple[str, Tensor]:
    if key.startswith("enc_img.swin."):
        return "video.trunk." + _renamed_swin(key.removeprefix("enc_img.swin.")), value
    tables = {"emb_cls": "frame_cls", "emb_pos": "places", "emb_len": "frames"}
    table = key.removeprefix("enc_img.")
    if key.startswith("enc_img.") and table in tables:
        value = value.flatten() if table == "emb_cls" else value.reshape(-1, value.shape[-1])
        return f"video.{tables[table]}", value
    for old, new in (("enc_img.fc.", "video.proj."), ("enc_img.norm.", "video.norm.")):
        if key.startswith(old):
            return new + key.removeprefix(old), value
    if key.startswith("enc_txt.emb_txt."):
        return "text." + _replaced(key.removeprefix("enc_txt.emb_txt."), EMBEDDING_RULES), value
    return _replaced(key, HEAD_RULES), value


def bert_layers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers of a Hugging Face BERT encoder (`0.attention.self.query.weight`, ...) under the names of our stack."""
    found = {}
    for key, value in tensors.items():
        number, _, rest = key.partition(".")
        if rest.startswith("attention.self."):
            _, _, part, kind = rest.split(".")
            if part == "query":
                names = [f"{number}.attention.self.{name}.{kind}" for name in ("query", "key", "value")]
                missing = [name for name in names if name not in tensors]
                if missing:
                    raise ValueError(f"the file lacks {', '.join(missing)}")
                found[f"{number}.qkv.{kind}"] = torch.cat([tensors[name] for name in names])
        else:
            found[f"{number}.{_replaced(rest, LAYER_RULES)}"] = value
    return found


def load_video_swin(trunk: Swin3D, path: str | Path) -> Report:
    """Read a Video Swin file (keys below `backbone.`, a classifier beside it is left out).

    Raises:
        FileNotFoundError: no such file.
        ValueError: tensors missing, unexpected or of another shape (all named).
    """
    tensors = read_checkpoint(path)
    left_out = [key for key in tensors if key.endswith(COMPUTED) or key.startswith("cls_head.")]
    kept = {key.removeprefix("backbone."): value for key, value in tensors.items() if key not in left_out}
    ours = {_renamed_swin(key): value for key, value in kept.items()}
    load_state(trunk, ours, source=str(path))
    return _report(trunk, ours, left_out)


def inflate_swin2d(trunk: Swin3D, tensors: Mapping[str, Tensor], *, source: str) -> Report:
    """Start the trunk from a picture Swin in timm's layout: a still clip then gives the picture's features.

    The patch kernel is halved over its two frames, the bias tables are repeated for every distance in time.

    Args:
        trunk: Of the same widths and spatial window.
        tensors: State dict of timm's `SwinTransformer`; its classifier is left out.
        source: Named in errors.

    Raises:
        ValueError: tensors missing, unexpected or of another shape (all named).
    """
    left_out = [key for key in tensors if key.endswith(COMPUTED) or key.startswith("head.")]
    distances = 2 * trunk.config.window[0] - 1
    ours = {}
    for key, value in tensors.items():
        if key in left_out:
            continue
        # timm merges at the start of a stage, Video Swin at the end of the one before
        old = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        name = _renamed_swin(old)
        if name == "patch_embed.proj.weight":
            value = repeat(value / PATCH_FRAMES, "o i h w -> o i t h w", t=PATCH_FRAMES)
        elif name.endswith("attn.table"):
            value = repeat(value, "n h -> (t n) h", t=distances)
        ours[name] = value
    load_state(trunk, ours, source=source)
    return _report(trunk, ours, left_out)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or `torch.save` file, from under `state_dict` or `model` if they lie there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of tensors by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several untyped errors for damage
        raise ValueError(f"{path}: not a readable file of tensors ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"{path}: holds {type(data).__name__}, expected tensors by name")
    return {key.removeprefix("module."): value for key, value in data.items()}


def _report(module: torch.nn.Module, tensors: Mapping[str, Tensor], left_out: list[str]) -> Report:
    fresh = tuple(key for key in module.state_dict() if key not in tensors)
    return Report(loaded=len(tensors), left_out=tuple(left_out), fresh=fresh)


def _renamed_swin(key: str) -> str:
    for pattern, ours in SWIN_RULES:
        renamed, count = re.subn(pattern, ours, key)
        if count:
            return renamed
    return key


def _replaced(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _any(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)
