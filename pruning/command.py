"""`mm prune`: one picture, a question, fewer visual tokens; what it costs and what is kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mm.command import OK, CommandParser, emit_json, emit_table

EXAMPLE = 'mm prune photo.jpg --model llava_tiny_256 --method flowcut --target 84 --prompt "where is the red circle ?"'
ABOUT = """Answer a question with fewer visual tokens: tokens, FLOPs and time against the unpruned model.

mm prune IMAGE           one method, and a picture of what it keeps
mm prune compare IMAGE   all methods on one input
mm prune evaluate        accuracy of all methods on held-out samples of the embedded data"""


def run(argv: list[str]) -> int:
    """Run `mm prune`."""
    if argv and argv[0] in ("compare", "evaluate"):
        return {"compare": compare, "evaluate": evaluate}[argv[0]](argv[1:])
    return prune(argv)


def prune(argv: list[str]) -> int:
    """One method on one picture."""
    parser = CommandParser("prune", about=ABOUT, example=EXAMPLE, json_output=True)
    _common(parser)
    parser.add_argument("--method", default="flowcut", help="flowcut (default), visionzip, prumerge, fastv, ...")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="a field of the method")
    parser.add_argument("--map", metavar="FILE", help="keep map to write (default: IMAGE_kept.png)")
    arguments = parser.parse_args(argv)

    from mm.pruning.methods import make_pruner, read_options

    pruner = make_pruner(arguments.method, arguments.target, read_options(arguments.option))
    trial = _trial(arguments)
    plain = trial.unpruned()
    row, picture = trial.pruned(pruner)
    path = None
    if picture is not None:
        path = Path(arguments.map or f"{Path(arguments.image).stem}_kept.png")
        picture.save(path)
    result = {
        "method": arguments.method,
        **row,
        "unpruned": plain,
        "time_ratio": row["seconds"] / plain["seconds"],
        "flop_ratio": row["tflop"] / plain["tflop"],
        "keep_map": None if path is None else str(path),
    }
    if arguments.json:
        emit_json(result)
    else:
        emit_table([{"method": "unpruned", **plain}, {"method": arguments.method, **row}])
        print(f"keep map: {path}" if path else "keep map: none, this method merged or kept everything")
    return OK


def compare(argv: list[str]) -> int:
    """All methods on one picture."""
    parser = CommandParser(
        "prune compare",
        about="All methods on one input. Methods inside the language model see all tokens in its first blocks: compare "
        "the average per block, too.",
        example='mm prune compare photo.jpg --model llava_tiny_256 --target 84 --prompt "where is the red circle ?"',
        json_output=True,
    )
    _common(parser)
    arguments = parser.parse_args(argv)

    from mm.pruning.methods import METHODS, make_pruner

    trial = _trial(arguments)
    table = [{"method": "unpruned", **trial.unpruned()}]
    for name in METHODS:
        row, _ = trial.pruned(make_pruner(name, arguments.target))
        table.append({"method": name, **row})
    emit_json(table) if arguments.json else emit_table(table)
    return OK


def evaluate(argv: list[str]) -> int:
    """Accuracy of all methods on held-out samples."""
    parser = CommandParser(
        "prune evaluate",
        about="Accuracy of every method at several budgets on held-out scenes or boards of the embedded data, mean "
        "over seeds; results are printed as they are, also where a peer wins.",
        example="mm prune evaluate --model llava_tiny_256 --data wide_scenes --shares 0.33 0.22 0.11 --seeds 3",
        json_output=True,
    )
    parser.add_argument(
        "--model", default="llava_tiny_256", help="shipped name or model folder (default: llava_tiny_256)"
    )
    parser.add_argument(
        "--data", choices=("wide_scenes", "scenes", "boards"), default="wide_scenes", help="held-out questions"
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.33, 0.22, 0.11], help="kept shares of the tokens")
    parser.add_argument("--methods", nargs="+", default=None, help="default: all; options as in flowcut:schedule=last")
    parser.add_argument("--seeds", type=_positive, default=3, help="sets of samples (default: 3)")
    parser.add_argument("--samples", type=_positive, default=256, help="samples per set (default: 256)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda")
    arguments = parser.parse_args(argv)

    from mm.pruning.evaluate import average_over_budgets, evaluate_methods
    from mm.pruning.methods import METHODS
    from mm.vlm import VisionLanguageModel
    from mm.zoo.evaluate import held_out_boards, held_out_scenes, held_out_wide_scenes

    model = VisionLanguageModel.from_pretrained(arguments.model, device=arguments.device).eval()
    draw = {"wide_scenes": held_out_wide_scenes, "scenes": held_out_scenes, "boards": held_out_boards}[arguments.data]
    samples = [draw(seed, arguments.samples) for seed in range(arguments.seeds)]
    rows = evaluate_methods(model, samples, methods=arguments.methods or list(METHODS), budgets=arguments.shares)
    average = average_over_budgets(rows)
    if arguments.json:
        emit_json({"rows": rows, "average": average})
    else:
        emit_table(rows, title=f"{arguments.model} on held-out {arguments.data}")
        emit_table(average, title="relative accuracy, mean over budgets")
    return OK


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="picture file")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--model", default="llava_tiny_256", help="shipped name, model folder or hub id")
    parser.add_argument("--target", type=int, default=64, help="visual tokens to keep per picture (default: 64)")
    parser.add_argument("--max-new-tokens", type=_positive, default=32, help="longest answer (default: 32)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _trial(arguments: Any) -> Any:
    from mm.pruning.trial import Trial
    from mm.vision import load_image
    from mm.vlm import VisionLanguageModel

    if not arguments.prompt.strip():
        raise ValueError("--prompt is empty; write a question")
    image = load_image(arguments.image)
    model = VisionLanguageModel.from_pretrained(arguments.model, device=arguments.device).eval()
    return Trial(model, image, arguments.prompt, max_new_tokens=arguments.max_new_tokens)
