"""`mm fit|validate|test|predict`: Lightning's command line, with configurations found by name and runs that resume.

A run lives in one folder: `config.yaml` and `run.json` (how to repeat it), `metrics.csv` (the curve),
`checkpoints/last.ckpt`, `model/` (the weights, for `mm.load`), and a folder per evaluation.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from mm.command import OK, CommandParser, emit_json, emit_table
from mm.training.run_config import find_config, packaged_configs, read_config, rewrite_arguments

EXAMPLES = {
    "fit": "mm fit --config lavi/tiny --trainer.max_steps 200 --out runs/short",
    "validate": "mm validate --config runs/short/config.yaml",
    "test": "mm test --config runs/short/config.yaml --json",
    "predict": "mm predict --config runs/short/config.yaml",
}
ABOUT = {
    "fit": "Train a model. A run that was interrupted continues from its last checkpoint.",
    "validate": "Evaluate a run on its validation data.",
    "test": "Evaluate a run on its test data.",
    "predict": "Write the predictions of a run as JSON lines.",
}
NOTE = (
    "every setting of a configuration is an option too: --trainer.max_steps 200, --model.optimizer.lr 1e-4;\n"
    "--print_config shows them all, --model.help CLASS explains a class."
)


def fit(argv: list[str]) -> int:
    """`mm fit`."""
    return main(argv, "fit")


def validate(argv: list[str]) -> int:
    """`mm validate`."""
    return main(argv, "validate")


def test(argv: list[str]) -> int:
    """`mm test`."""
    return main(argv, "test")


def predict(argv: list[str]) -> int:
    """`mm predict`."""
    return main(argv, "predict")


def main(argv: Sequence[str], verb: str) -> int:
    """Run one of the four verbs.

    Args:
        argv: Words after the verb.
        verb: "fit", "validate", "test" or "predict".

    Returns:
        Exit code 0.

    Raises:
        ValueError: a wrong configuration; the message names key and file.
        FileNotFoundError: no such configuration or checkpoint.
        UsageError: a wrong option.
    """
    own, rest = _parser(verb).parse_known_args(list(argv))
    configs = [(str(path), read_config(path)) for path in map(find_config, own.config)]
    words = [*_forwarded(own), *rewrite_arguments(rest)]
    from mm.training.runner import Run  # imports Lightning: 4 s that a wrong file name need not wait for

    _quieten()  # after the import, which sets the levels of its loggers
    run = Run(verb, configs, words, allow=own.allow, out=_default_out(own.config), command=["mm", verb, *argv])
    result = run.start()
    if not run.trainer.is_global_zero:
        return OK
    if own.json:
        emit_json(result)
    elif result.get("metrics"):
        emit_table([{"metric": name, "value": value} for name, value in result["metrics"].items()])
    return OK


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = CommandParser(verb, about=ABOUT[verb], example=EXAMPLES[verb], json_output=True)
    parser.epilog = f"{NOTE}\n\n{parser.epilog}"
    shipped = ", ".join(packaged_configs()) or "none ships yet"
    parser.add_argument(
        "-c", "--config", action="append", default=[], help=f"a file or a packaged name ({shipped}); later ones win"
    )
    parser.add_argument("--out", help="folder of the run (default: runs/ and the name of the configuration)")
    if verb == "fit":
        parser.add_argument("--resume", help="auto (default): continue what stands in --out; never; or a checkpoint")
        parser.add_argument("--save_every", help="optimiser steps between checkpoints (default: 100)")
        parser.add_argument(
            "--ema", help="decay of a moving average of the weights, for instance 0.999 (default: none)"
        )
    else:
        parser.add_argument(
            "--ckpt", help="auto (default): the run's last checkpoint; none: untrained; or a checkpoint"
        )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="let configurations name classes of this package",
    )
    return parser


def _forwarded(own: argparse.Namespace) -> list[str]:
    """Our options that are settings of the configuration as well."""
    names = ("out", "resume", "save_every", "ema", "ckpt")
    return [f"--{name}={getattr(own, name)}" for name in names if getattr(own, name, None) is not None]


def _default_out(names: Sequence[str]) -> str:
    name = Path(names[-1]) if names else Path("unnamed")
    inside = not name.is_absolute() and ".." not in name.parts and not name.is_file()
    return str(Path("runs") / (name if inside else name.stem))


def _quieten() -> None:
    """Lightning's advertising and hardware lines stay away; its warnings stay, but for those that lead nowhere here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen parts are, on purpose
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # evaluation needs none of them
    warnings.filterwarnings("ignore", ".*`IterableDataset` has `__len__` defined.*")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
