"""Published weights -> this model: the authors' training files, CXR-BERT, MONAI's and NVIDIA's Swin weights, SwinUNETR.

Every loader is strict and returns a report of what was taken, what was left and what stays new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoint import load_state, read_tensors
from mm.medical.velvet.keys import from_bert, from_repository, to_repository
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.text import TriBert
from mm.medical.velvet.vision import VisionEncoder


@dataclass(frozen=True)
class LoadReport:
    """What a loader did with a file."""

    source: str
    """Where the weights came from."""
    loaded: int
    """Tensors that were copied."""
    ignored: tuple[str, ...] = ()
    """Keys of the file that belong to parts this model does not have, by agreement."""
    new: tuple[str, ...] = ()
    """Keys of the model that keep their random weights, by agreement."""
    notes: tuple[str, ...] = field(default=())
    """What a user must know."""

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        lines += [f"  left out: {key}" for key in self.ignored]
        lines += [f"  new: {key}" for key in self.new]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Flat tensors of a .safetensors file, or of a .pt / .pth / .bin file read without running code.

    A dictionary under `state_dict` or `model` is opened, the prefix `module.` removed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds something else than tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged and for unsafe files
        raise ValueError(f"{path}: not readable as plain tensors ({str(error).splitlines()[0]})") from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    tensors = {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors")
    return tensors


# --- the authors' files ----------------------------------------------------------------------------------------------


def load_repository(model: VelvetModel, path_or_tensors: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """A training file of the published code (accelerate's flat `pytorch_model.bin`) into a model of the same sizes.

    Raises:
        ValueError: keys are missing, unknown or of another shape; all are listed.
    """
    tensors, source = _tensors(path_or_tensors)
    renamed = from_repository(tensors)
    buffers = [key for key in model.state_dict() if key.endswith("relative_position_index")]
    for key in buffers:  # a table that follows from the window; some files leave it out
        renamed.setdefault(key, model.state_dict()[key])
    if "temperature.value" in renamed:
        renamed["temperature.value"] = _temperature(renamed["temperature.value"], model)
    load_state(model, renamed, source=source)
    notes: tuple[str, ...] = ()
    if model.config.vision.merging == "current":
        notes = ("files from MONAI 1.4 or before need vision.merging='legacy': same keys, other outputs",)
    return LoadReport(source, len(tensors), notes=notes)


def repository_state(model: VelvetModel) -> dict[str, Tensor]:
    """All tensors under the names of the published code."""
    state = model.state_dict()
    if model.config.temperature == "log":
        state["temperature.value"] = state["temperature.value"].exp()
    return to_repository(state)


def _temperature(value: Tensor, model: VelvetModel) -> Tensor:
    """Files hold the temperature itself, as a scalar or a vector of one."""
    value = value.reshape(())
    return value.log() if model.config.temperature == "log" else value


# --- vision ----------------------------------------------------------------------------------------------------------

NVIDIA_HEADS = (
    "rotation_head.",
    "rotation_pre.",
    "contrastive_head.",
    "contrastive_pre.",
    "conv.",
    "decoder1.",
    "norm.",
)
"""Self-supervised heads and the unused last norm of NVIDIA's file. Deviation: the exact list could not be checked."""


def load_swin_weights(encoder: VisionEncoder, path_or_tensors: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """NVIDIA's `model_swinvit.pt`, MONAI's `SwinTransformer` weights or the encoder inside a SwinUNETR file.

    Args:
        encoder: Of the same sizes (NVIDIA's file: Tv).
        path_or_tensors: The file, or its tensors.

    Returns:
        The report; it says when the file asks for `merging="legacy"`.

    Raises:
        ValueError: keys or shapes do not fit.
    """
    tensors, source = _tensors(path_or_tensors)
    old = any(".mlp.fc1." in key for key in tensors)
    inside = any(key.startswith("swinViT.") for key in tensors)
    own = encoder.swin.state_dict()
    renamed, ignored = {}, []
    for key, value in tensors.items():
        name = key.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")
        if inside and not key.startswith("swinViT."):
            ignored.append(key)
            continue
        name = name.removeprefix("swinViT.").removeprefix("encoder." if old else "")
        if name.startswith(NVIDIA_HEADS) and name not in own:
            ignored.append(key)
        else:
            renamed[name] = value
    for key in own:
        if key.endswith("relative_position_index"):
            renamed.setdefault(key, own[key])
    load_state(encoder.swin, renamed, source=source)
    notes: tuple[str, ...] = ()
    if old and encoder.config.merging == "current":
        notes = ("this file is older than MONAI 1.5: build the encoder with merging='legacy' to get its outputs",)
    return LoadReport(source, len(renamed), ignored=tuple(ignored), notes=notes)


def load_into_swin_unetr(network: nn.Module, encoder: VisionEncoder) -> LoadReport:
    """Copy the encoder into the `swinViT` of a MONAI SwinUNETR; its decoder keeps its random weights.

    Raises:
        ValueError: sizes differ, or the network has no `swinViT`.
    """
    target = getattr(network, "swinViT", None)
    if target is None:
        raise ValueError(f"{type(network).__name__} has no swinViT; build monai.networks.nets.SwinUNETR")
    state = encoder.swin.state_dict()
    load_state(target, state, source="VELVET-Med vision encoder")
    new = tuple(name for name, _ in network.named_children() if name != "swinViT")
    return LoadReport("VELVET-Med vision encoder", len(state), new=new)


# --- text ------------------------------------------------------------------------------------------------------------


def load_bert(text: TriBert, path_or_tensors: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """A BERT such as `microsoft/BiomedVLP-CXR-BERT-general` into TriBERT, as published training starts.

    Text layers, positions, word pieces and their norm are copied; every sentence token starts as the [CLS] row, every
    sentence number as BERT's token type 0; fusion layers keep their random weights.

    Raises:
        ValueError: sizes do not fit, or a needed tensor is missing.
    """
    tensors, source = _tensors(path_or_tensors)
    named = from_bert({key.removeprefix("bert."): value for key, value in tensors.items()})
    config, own = text.config, text.state_dict()
    wanted = [key for key in own if not _is_fusion(key, config.layers)]
    missing = [key for key in wanted if key not in named]
    if missing:
        raise ValueError(f"{source}: lacks {', '.join(missing[:6])}; is it a BERT of {config.layers} layers or more?")
    pieces = named["embeddings.word.weight"]
    if len(pieces) != config.first_sentence_id:
        raise ValueError(
            f"{source}: has {len(pieces)} word pieces, this model {config.first_sentence_id} in front of its "
            f"{config.max_sentences} sentence tokens"
        )
    tokens = pieces[config.cls_id].expand(config.max_sentences, -1)
    types = named["embeddings.sentence.weight"][:1].expand(config.max_sentences, -1)
    taken = {key: named[key] for key in wanted}
    taken["embeddings.word.weight"] = torch.cat([pieces, tokens])
    taken["embeddings.sentence.weight"] = torch.cat([torch.zeros_like(types[:1]), types])
    fusion = tuple(f"layers.{number}." for number in range(config.layers, len(text.layers)))
    load_state(text, taken, source=source, new=fusion)
    ignored = tuple(key for key in named if key not in taken)
    notes: tuple[str, ...] = ()
    if config.num_heads == 6 and config.width == 768:
        notes = ("published training runs 6 heads on weights trained with 12; num_heads=12 keeps the trained heads",)
    return LoadReport(source, len(taken), ignored=ignored, new=fusion, notes=notes)


def _is_fusion(key: str, layers: int) -> bool:
    return key.startswith("layers.") and int(key.split(".")[1]) >= layers


def _tensors(path_or_tensors: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    if isinstance(path_or_tensors, Mapping):
        given: Any = path_or_tensors
        return dict(given), "given tensors"
    return read_weights(path_or_tensors), str(path_or_tensors)
