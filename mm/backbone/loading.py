"""Read a Hugging Face decoder from a folder or the hub: whole, or only its first blocks."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from mm.backbone.openelm import register_openelm
from mm.backbone.spec import FAMILIES, decoder_of

logger = logging.getLogger(__name__)


def load_decoder(
    path: str | Path,
    layers: int | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A decoder and its tokenizer (None where the folder has none).

    With `layers=k` only the first k blocks are read and built, without head, and the final norm becomes the identity:
    the model then ends at `hidden_states[k]` and the other weights never reach memory.

    Args:
        path: A local folder or a hub id "owner/name"; only the latter may use the network.
        layers: Blocks to keep, 1..depth; None keeps the whole causal LM.
        dtype: Dtype of the parameters; None keeps the dtype of the file.
        attn_implementation: "sdpa", "eager", "flex_attention", ...; None takes the family's default.

    Raises:
        FileNotFoundError: neither a folder nor a hub id, or the hub has no such model.
        ValueError: unknown family, `layers` out of range, or tensors are missing or left over (all named).
    """
    register_openelm()
    common = {"local_files_only": local_only(path), "trust_remote_code": False}
    _check_family(path, **common)
    config = _read(AutoConfig.from_pretrained, path, **common)
    depth = config.num_hidden_layers
    if layers is not None and not 1 <= layers <= depth:
        raise ValueError(f"{path}: layers must lie in 1..{depth}, got {layers}")
    cut = {} if layers is None else {"num_hidden_layers": layers}
    wanted = {"dtype": dtype or "auto", "attn_implementation": attn_implementation, "output_loading_info": True}
    with _quiet():
        auto = AutoModelForCausalLM if layers is None else AutoModel
        model, info = _read(auto.from_pretrained, path, **common, **cut, **wanted)
        tokenizer = _read_tokenizer(path, **common)
    left_out = [] if layers is None else [key for key in info["unexpected_keys"] if _beyond(key, model, layers)]
    _check_complete(path, info["missing_keys"], set(info["unexpected_keys"]) - set(left_out))
    if layers is not None:
        _drop_final_norm(model)
    logger.info("%s: %s, blocks %d of %d, %s", path, config.model_type, layers or depth, depth, model.dtype)
    return model.eval(), tokenizer


def local_only(path: str | Path) -> bool:
    """True for an existing folder, False for a hub id.

    Raises:
        FileNotFoundError: neither.
    """
    if Path(path).expanduser().is_dir():
        return True
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        return False
    raise FileNotFoundError(f"{path}: no such folder, and not a hub id of the form owner/name")


def _read(load: Callable[..., Any], path: str | Path, **kwargs: Any) -> Any:
    try:
        return load(str(Path(path).expanduser()) if kwargs["local_files_only"] else str(path), **kwargs)
    except OSError as error:
        place = "the folder is incomplete" if kwargs["local_files_only"] else "not a local folder, and the hub gave"
        raise FileNotFoundError(f"{path}: {place}: {error}") from error


def _check_family(path: str | Path, **common: Any) -> None:
    """Refuse an unknown family from the config alone, before anything large is read."""
    data, _ = _read(PreTrainedConfig.get_config_dict, path, **common)
    if not data:
        raise FileNotFoundError(f"{path}: no config.json there; expected a folder that save_pretrained wrote")
    family = data.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{path}: no layout for model type {family!r}; known families: {', '.join(sorted(FAMILIES))}")


def _read_tokenizer(path: str | Path, **common: Any) -> Any:
    folder = Path(path).expanduser()
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if common["local_files_only"] and not any((folder / name).is_file() for name in names):
        return None
    try:
        return _read(AutoTokenizer.from_pretrained, path, **common)
    except FileNotFoundError:
        logger.info("%s: the model comes without a tokenizer", path)
        return None


def _beyond(key: str, model: PreTrainedModel, layers: int) -> bool:
    """Does `key` name a tensor that a truncated model leaves in the file on purpose: a later block or the head?"""
    block = re.search(rf"(?:^|\.){FAMILIES[model.config.model_type].layers}\.(\d+)\.", key)
    return int(block[1]) >= layers if block else key.startswith(("lm_head.", "embed_out."))


def _check_complete(path: str | Path, missing: Iterable[str], extra: Iterable[str]) -> None:
    if missing or extra:
        lines = [f"  missing: {key}" for key in sorted(missing)]
        lines += [f"  not part of the model: {key}" for key in sorted(extra)]
        raise ValueError(f"{path}: the weights do not fit the model\n" + "\n".join(lines))


def _drop_final_norm(model: PreTrainedModel) -> None:
    spec = FAMILIES[model.config.model_type]
    parent, _, name = spec.final_norm.rpartition(".")
    setattr(decoder_of(model, spec).get_submodule(parent), name, nn.Identity())


@contextmanager
def _quiet() -> Iterator[None]:
    """No load report (we check and report ourselves), and no progress bar where nobody watches."""
    level, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bar:
            hf_logging.enable_progress_bar()
