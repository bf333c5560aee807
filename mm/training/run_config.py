"""Run configurations: YAML files that are found by name, read strictly, with short names for classes."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mm.catalog import DATA, MODULES
from mm.registry import Registry

SECTIONS = {"model": MODULES, "data": DATA}
CLASS_OPTIONS = {f"--{section}{suffix}": registry for section, registry in SECTIONS.items() for suffix in ("", ".help")}


def packaged_configs() -> dict[str, Path]:
    """Configurations that ship: "lavi/tiny" -> its file."""
    root = Path(str(files("mm.configs")))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> Path:
    """File of a configuration: a path, or the name of a packaged one.

    Raises:
        FileNotFoundError: neither; the nearest names are suggested.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_configs()
    if name in packaged:
        return packaged[name]
    near = get_close_matches(name, packaged, n=3) or list(packaged)[:5]
    hint = f"did you mean {', '.join(near)}?" if near else "no configuration ships with this installation"
    raise FileNotFoundError(f"no configuration {name!r}: it is neither a file nor a packaged name; {hint}")


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file into plain data; short class names become full ones.

    Raises:
        ValueError: no YAML, no mapping at the top, a key that appears twice, or an unknown short name.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a configuration is a mapping of sections, found {type(data).__name__}")
    try:
        return {key: _with_full_name(key, value) for key, value in data.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _with_full_name(section: str, value: Any) -> Any:
    registry = SECTIONS.get(section)
    if registry is None:
        return value
    if isinstance(value, str):
        return {"class_path": full_name(registry, value)}
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        return value | {"class_path": full_name(registry, value["class_path"])}
    return value


def full_name(registry: Registry, name: str) -> str:
    """Import path of a class: a name with a dot is one already, others are looked up.

    Raises:
        ValueError: unknown short name; the nearest ones are suggested.
    """
    return name if "." in name else registry.path(name).replace(":", ".")


def rewrite_arguments(argv: list[str]) -> list[str]:
    """Short class names after `--model` and `--data` become full ones; everything else stays.

    Example:
        >>> rewrite_arguments(["--model", "lavi", "--model.scale=2"])
        ['--model', 'mm.encoders.lavi.module.LaviModule', '--model.scale=2']
    """
    result: list[str] = []
    for word in argv:
        option, equals, value = word.partition("=")
        if equals and option in CLASS_OPTIONS:
            word = f"{option}={full_name(CLASS_OPTIONS[option], value)}"
        elif result and result[-1] in CLASS_OPTIONS:
            word = full_name(CLASS_OPTIONS[result[-1]], word)
        result.append(word)
    return result


class StrictLoader(yaml.SafeLoader):
    """YAML that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key that appears twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping, after a look for repeated keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {', '.join(twice)} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
