"""Model folders: `config.json`, `model.safetensors`, `preprocessor_config.json`, a card; read strictly, written safely.

A name is looked up in a fixed order: shipped weights in `mm/zoo`, a local folder, a hub id. One log line says which.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mm.catalog import MODELS

logger = logging.getLogger(__name__)
Config = TypeVar("Config")

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
BORROWED_FILE = "borrowed.json"
"""Of shipped weights: tensors that another shipped model holds bit for bit, see `mm.zoo.borrow`."""
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.md", "*.jinja", "tokenizer.model"]
"""What is fetched of a hub repository: weights, settings, tokenizer and chat template; no code."""


# --- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Write a file or folder beside its final place and move it there only when the block succeeds.

    On any error (a full disk, an interrupt) the temporary is removed and whatever stood at `path` before stays whole.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with write_aside(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> [p.name for p in folder.iterdir()]
        ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = holder / "old"
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Plain data as indented JSON with a newline at the end."""
    path.write_text(json.dumps(data, indent=2, sort_keys=False) + "\n", encoding="utf-8")


# --- configurations ----------------------------------------------------------------------------------------------


def config_from_dict(cls: type[Config], data: Mapping[str, Any], *, source: str = "config") -> Config:
    """Build a (nested) config dataclass from plain data, refusing every key that it would ignore.

    Args:
        cls: A dataclass type; nested fields may be dataclasses, optionals and tuples of plain values.
        data: What `dataclasses.asdict` of it gave, possibly after a trip through JSON.
        source: Named in errors, usually the file.

    Raises:
        ValueError: an unknown key (with the nearest field name) or a missing required one.
    """
    hints = get_type_hints(cls)
    known = {field.name for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ValueError(f"{source}: {cls.__name__} has no key {key!r}{hint}")
    try:
        return cls(**{key: _read_value(hints[key], value, f"{source}: {key}") for key, value in data.items()})
    except TypeError as error:
        raise ValueError(f"{source}: {error}") from error


def _read_value(hint: Any, value: Any, source: str) -> Any:
    """JSON value -> the type of a field: dataclasses are rebuilt, lists become tuples where a tuple is declared."""
    if get_origin(hint) in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        if value is None:
            return None
        nested = [option for option in options if is_dataclass(option)]
        if isinstance(value, Mapping) and nested:
            return _read_value(nested[0], value, source)
        tuples = [option for option in options if get_origin(option) is tuple]
        return _read_value(tuples[0], value, source) if isinstance(value, list | tuple) and tuples else value
    if is_dataclass(hint) and isinstance(value, Mapping):
        return config_from_dict(hint, value, source=source)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        items = get_args(hint) or (Any, ...)
        if items[-1] is Ellipsis:
            return tuple(_read_value(items[0], entry, source) for entry in value)
        if len(items) != len(value):
            raise ValueError(f"{source}: needs {len(items)} values, got {len(value)}")
        return tuple(_read_value(item, entry, source) for item, entry in zip(items, value, strict=True))
    return value


# --- strict loading ----------------------------------------------------------------------------------------------


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, new: Sequence[str] = ()) -> None:
    """Copy `tensors` into `module`; nothing is skipped in silence.

    Args:
        module: Receives the values, in its own dtype and on its own device.
        tensors: State-dict keys of `module` -> values.
        source: Where they came from; named in the error.
        new: Key prefixes that may be absent from `tensors` because this very part is announced as freshly initialised.

    Raises:
        ValueError: keys missing, unexpected or of another shape; all are listed by name and nothing is changed.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in tensors and not key.startswith(tuple(new))]
    unexpected = [key for key in tensors if key not in own]
    reshaped = [
        f"{key} (file {tuple(tensors[key].shape)}, model {tuple(own[key].shape)})"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if missing or unexpected or reshaped:
        lines = [f"{source} does not fit {type(module).__name__}:"]
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("reshaped", reshaped)):
            if keys:
                shown = ", ".join(keys[:12]) + (f", … and {len(keys) - 12} more" if len(keys) > 12 else "")
                lines.append(f"  {title} ({len(keys)}): {shown}")
        raise ValueError("\n".join(lines))
    with torch.no_grad():
        module.load_state_dict(dict(tensors), strict=False)
    fresh = [key for key in own if key not in tensors]
    logger.info("%s: %d tensors loaded, %d announced as new", source, len(tensors), len(fresh))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or not safetensors at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own untyped errors for every kind of damage
        raise ValueError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, those included that it borrows from shipped models.

    Raises:
        FileNotFoundError: no weights file.
        ValueError: a damaged file, or it borrows what does not ship.
    """
    tensors = read_tensors(folder / WEIGHTS_FILE)
    if not (folder / BORROWED_FILE).is_file():
        return tensors
    for lender, names in read_json(folder / BORROWED_FILE).items():
        if lender not in shipped_names():
            raise ValueError(
                f"{folder / BORROWED_FILE}: borrows from {lender!r}, which does not ship with this version"
            )
        held = read_tensors(shipped_folder(lender) / WEIGHTS_FILE)
        wrong = [key for key, theirs in names.items() if theirs not in held or key in tensors]
        if wrong:
            raise ValueError(f"{folder / BORROWED_FILE}: {lender} does not lend {', '.join(wrong[:3])}")
        tensors |= {key: held[theirs] for key, theirs in names.items()}
    return tensors


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the text is not JSON or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


# --- models ------------------------------------------------------------------------------------------------------


class Pretrained:
    """Mixin for an `nn.Module` that can be saved to and read from a folder.

    A class sets `config_class` and keeps its config in `self.config`; it may override the hooks below.
    """

    config_class: ClassVar[type]
    config: Any

    def preprocessing(self) -> dict[str, Any]:
        """What inputs must look like (sizes, mean/std, sample rate); travels with the weights."""
        return {}

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Tensors to save under the names they are loaded by; adapters return only their own."""
        return self.state_dict()  # type: ignore[attr-defined, no-any-return]

    def load_checkpoint_state(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        """Take what `checkpoint_state` gave; strict."""
        load_state(self, tensors, source=source)  # type: ignore[arg-type]

    def save_extras(self, folder: Path) -> None:
        """Write further files into the folder (tokenizer, class names)."""

    @classmethod
    def from_saved(cls, config: Any, folder: Path) -> Self:
        """Build the model for `config` with random weights; `folder` holds what `save_extras` wrote."""
        return cls(config)  # type: ignore[call-arg]

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write the model folder, whole or not at all; an older folder at `path` survives a failure.

        Args:
            path: Folder to write.
            dtype: Store floating-point tensors in this dtype (half the size with float16); `None` keeps theirs.

        Returns:
            The folder.
        """
        import mm

        with write_aside(path) as folder:
            folder.mkdir()
            config = {"model_class": f"{type(self).__module__}:{type(self).__qualname__}", "mm_version": mm.__version__}
            write_json(folder / CONFIG_FILE, config | {"config": asdict(self.config)})
            write_json(folder / PREPROCESSOR_FILE, self.preprocessing())
            state = {key: _stored(value, dtype) for key, value in self.checkpoint_state().items()}
            save_file(_untied(state), folder / WEIGHTS_FILE, metadata={"format": "pt"})
            self.save_extras(folder)
        return Path(path)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """Read a model folder, strictly.

        Args:
            name_or_path: A shipped name, a local folder or a hub id.
            dtype: Cast parameters after loading; `None` keeps the dtype of a freshly built model (float32).
            device: Where the model goes.

        Raises:
            FileNotFoundError: nothing under that name.
            ValueError: the folder holds another model, or keys and shapes differ (all listed).
        """
        return cls.from_folder(resolve(name_or_path), dtype=dtype, device=device)

    @classmethod
    def from_folder(cls, folder: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Self:
        """`from_pretrained` for a folder that has been found already."""
        data = read_json(folder / CONFIG_FILE)
        expected = f"{cls.__module__}:{cls.__qualname__}"
        if data.get("model_class") != expected:
            raise ValueError(f"{folder}: holds a {data.get('model_class')}, not a {expected}; use mm.load(...)")
        config: Any = config_from_dict(cls.config_class, data["config"], source=str(folder / CONFIG_FILE))
        model = cls.from_saved(config, folder)
        model.load_checkpoint_state(read_weights(folder), source=str(folder / WEIGHTS_FILE))
        cast_state(model, dtype)  # type: ignore[arg-type]
        return model.to(device=device).eval()  # type: ignore[attr-defined, no-any-return]


def cast_state(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Give parameters and saved buffers a floating-point dtype; None leaves them as they are.

    Buffers that are not saved are tables a model computes itself; they keep theirs. `module.to(dtype)` would round the
    rotary tables too: in bfloat16 the angle at position 2000 is then off by radians.
    """
    if dtype is None:
        return
    tables = [
        (part, name, part._buffers[name]) for part in module.modules() for name in part._non_persistent_buffers_set
    ]
    module.to(dtype=dtype)
    for part, name, table in tables:
        part._buffers[name] = table


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().contiguous().cpu()
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one storage: give each name its own copy."""
    seen: set[int] = set()
    for key, value in state.items():
        if value.data_ptr() in seen:
            state[key] = value.clone()
        seen.add(value.data_ptr())
    return state


def resolve(name_or_path: str | Path) -> Path:
    """Folder of a model: shipped name, then local folder, then hub id; one log line says which.

    Raises:
        FileNotFoundError: none of the three.
    """
    name = str(name_or_path)
    shipped = shipped_folder(name)
    if "/" not in name and (shipped / CONFIG_FILE).is_file():
        logger.info("%s: shipped weights from %s", name, shipped)
        return shipped
    if Path(name).is_dir():
        logger.info("%s: local folder", Path(name).resolve())
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(f"{name}: not a local folder, and the hub gave: {error}") from error
        logger.info("%s: hub snapshot %s", name, folder)
        return folder
    near = get_close_matches(name, [*shipped_names(), *MODELS], n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise FileNotFoundError(
        f"{name!r} is neither a shipped model ({', '.join(shipped_names()) or 'none'}), a folder nor a hub id{hint}"
    )


def shipped_folder(name: str) -> Path:
    """Where shipped weights of this name stand or would stand."""
    return Path(str(files("mm.zoo"))) / name


def shipped_names() -> list[str]:
    """Names of the trained checkpoints inside the package."""
    root = shipped_folder(".")
    return sorted(entry.name for entry in root.iterdir() if (entry / CONFIG_FILE).is_file())


def create_model(name: str, **overrides: Any) -> nn.Module:
    """A preset with random weights.

    Args:
        name: One of `mm.list_models()`.
        overrides: Keyword arguments of that preset's factory, `seed=0` among them.

    Raises:
        ValueError: no such preset; the nearest names are suggested.
    """
    return MODELS.get(name)(**overrides)  # type: ignore[no-any-return]


def load(
    name_or_path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Any model that was saved by this toolkit, with its weights: a shipped name, a folder or a hub id.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: the folder is not one of ours or does not fit.
    """
    from importlib import import_module

    folder = resolve(name_or_path)
    path = str(read_json(folder / CONFIG_FILE).get("model_class", ""))
    module, _, attribute = path.partition(":")
    if not module.startswith("mm.") or not attribute:
        raise ValueError(
            f"{folder / CONFIG_FILE}: no model_class of this toolkit; for a Hugging Face vision-language model use "
            "mm.vlm.VisionLanguageModel.from_pretrained"
        )
    cls = getattr(import_module(module), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, Pretrained)):
        raise ValueError(f"{folder / CONFIG_FILE}: {path} is not a model class")
    return cls.from_folder(folder, dtype=dtype, device=device)  # type: ignore[return-value]
