"""`mm ask`: a question about pictures, answered by a model that ships or lies in a folder."""

from __future__ import annotations

import time
from typing import Any

from mm.command import OK, CommandParser, emit_json


def run(argv: list[str]) -> int:
    """Answer a question about one or more pictures."""
    parser = CommandParser(
        "ask",
        about="Ask a vision-language model about one or more pictures. Models called tiny are demonstrations.",
        example='mm ask board.png --prompt "row 3 col 5 ?" --model lavi_tiny',
        json_output=True,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--model", help="shipped name, model folder or hub id (default: lavi_tiny)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--adaptive", action="store_true", help="look at a quarter of the pixels first (VisionThink)")
    parser.add_argument(
        "--mode", choices=("auto", "never", "always"), default="auto", help="with --adaptive: who decides to see more"
    )
    parser.add_argument(
        "--call-bias",
        type=float,
        default=0.0,
        metavar="B",
        help="with --adaptive: above 0 asks more often, below 0 less",
    )
    arguments = parser.parse_args(argv)
    arguments.model = arguments.model or ("visionthink_tiny" if arguments.adaptive else "lavi_tiny")
    if not arguments.prompt.strip():
        raise ValueError("--prompt is empty; write a question")

    from mm.vision import load_image
    from mm.vlm import open_model

    images = [load_image(path) for path in arguments.images]
    model: Any = open_model(arguments.model, device=arguments.device)
    if arguments.adaptive:
        from mm.pruning.visionthink.command import answer as adaptively

        return adaptively(model, images, arguments)
    if not hasattr(model, "ask"):
        raise ValueError(f"--model {arguments.model}: a {type(model).__name__} does not answer questions")
    start = time.perf_counter()
    answer = model.ask(images, arguments.prompt)
    seconds = time.perf_counter() - start
    if arguments.json:
        emit_json(
            {"answer": answer, "model": arguments.model, "seconds": seconds, **tokens(model, images, arguments.prompt)}
        )
    else:
        print(answer)
    return OK


def tokens(model: Any, images: list[Any], prompt: str) -> dict[str, int]:
    """What the model reads: tokens of the language model's sequence, and visual tokens wherever they enter."""
    if not hasattr(model, "tokens_per_picture"):
        return {}
    batch = model.prepare(images, prompt)
    visual = len(batch["pixel_values"]) * model.tokens_per_picture
    return {"sequence_tokens": int(batch["attention_mask"].sum()), "visual_tokens": visual}
