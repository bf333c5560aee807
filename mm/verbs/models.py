"""`mm models`: the presets that can be built, and which of them ship with trained weights."""

from __future__ import annotations

from typing import Any

from mm.catalog import MODELS, list_models
from mm.command import OK, CommandParser, emit_json, emit_table


def run(argv: list[str]) -> int:
    """List model presets."""
    parser = CommandParser(
        "models",
        about="List the model presets; `shipped` ones come with trained weights, the rest build with random ones.",
        example="mm models 'lavi*' --parameters",
        json_output=True,
    )
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern over the names (default: all)")
    parser.add_argument("--parameters", action="store_true", help="also count parameters (builds each model shape)")
    arguments = parser.parse_args(argv)
    names = list_models(arguments.pattern)
    if not names:
        raise ValueError(f"no preset matches {arguments.pattern!r}; there are: {', '.join(MODELS)}")
    rows = [_row(name, arguments.parameters) for name in names]
    if arguments.json:
        emit_json(rows)
    else:
        emit_table(rows)
    return OK


def _row(name: str, parameters: bool) -> dict[str, Any]:
    from mm.checkpoint import shipped_names

    row: dict[str, Any] = {"name": name, "weights": "shipped" if name in shipped_names() else "random"}
    if parameters:
        row["parameters"] = count_parameters(name)
    return row


def count_parameters(name: str) -> int:
    """Number of parameters of a preset, counted on the meta device: no memory, whatever the size."""
    import torch

    from mm.checkpoint import create_model

    with torch.device("meta"):
        model = create_model(name)
    return sum(parameter.numel() for parameter in model.parameters())
