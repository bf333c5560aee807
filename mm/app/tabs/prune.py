"""Prune: one question under several methods and a chosen number of visual tokens, with what each keeps and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import gradio, model_input, needed, own_folder, picture_input, results, save_picture

METHODS = (
    "flowcut",
    "flowcut:schedule=last",
    "visionzip",
    "prumerge",
    "fastv",
    "sparsevlm",
    "pyramiddrop",
    "uniform",
    "random",
)
"""Names of `mm.pruning.methods`, and FlowCut with one cut behind the encoder."""
CHOSEN = ["flowcut", "flowcut:schedule=last", "uniform"]
MODELS = ("llava_tiny_256",)
LONGEST = 32
"""Tokens of an answer at most."""


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    with gr.Row():
        with gr.Column():
            picture = picture_input("prune", value=shown[0][0])
            question = gr.Textbox(shown[0][1], label="Question", elem_id="prune_question")
            tokens = gr.Slider(1, 576, value=28, step=1, label="Visual tokens to keep", elem_id="prune_tokens")
            methods = gr.CheckboxGroup(METHODS, value=CHOSEN, label="Methods", elem_id="prune_methods")
            run = gr.Button("Prune", variant="primary", elem_id="prune_run")
            gr.Examples(shown, [picture, question], label="Held-out scenes with small things")
            with gr.Accordion("Real weights", open=False):
                model = model_input("prune", MODELS)
        with gr.Column():
            table = gr.HTML(label="Answers and costs", elem_id="prune_result")
            maps = gr.Gallery(
                label="What is kept, cut by cut", columns=1, object_fit="contain", height="auto", elem_id="prune_maps"
            )
    inputs, outputs = [picture, question, tokens, methods, model], [table, maps]
    run.click(guarded(prune), inputs, outputs, api_name="prune")
    for trigger in (question.submit, tokens.release):
        trigger(guarded(prune), inputs, outputs, api_visibility="private")


def prune(
    picture: str | None, question: str, tokens: float, methods: list[str], model: str, progress: Any = quiet
) -> tuple[str, list[tuple[Any, str]]]:
    """Answers, operations and time of the unpruned model and of each method, and maps of what is kept.

    Args:
        picture: Path of a picture.
        question: What to ask.
        tokens: Visual tokens to keep per picture.
        methods: Of `METHODS`.
        model: Name, folder or hub id of a model that `mm.pruning` attaches to.
        progress: Told what is being done.

    Raises:
        ValueError: no picture, no question, no method, or a file or model that cannot be read.
    """
    from mm.pruning.trial import Trial
    from mm.vision import load_image
    from mm.vlm import NativeVisionLanguageModel, VisionLanguageModel, open_model

    image = load_image(needed(picture, "a picture"))
    needed(question, "a question")
    if not methods:
        raise ValueError("No method is chosen: tick at least one.")
    progress(0, desc=f"{model} with all tokens")
    with shelf.lent(model, open_model) as host:
        if not isinstance(host, VisionLanguageModel | NativeVisionLanguageModel):
            raise ValueError(f"{model}: a {type(host).__name__} has no visual tokens between its words to prune.")
        trial = Trial(host, image, question, max_new_tokens=LONGEST)
        rows, maps = [_row("all tokens", trial.unpruned())], []
        for step, name in enumerate(methods, 1):
            progress(step / (len(methods) + 1), desc=name)
            row, kept = trial.pruned(method(name, int(tokens)))
            rows.append(_row(name, row))
            if kept is not None:
                maps.append((kept, name))
    caption = "GFLOP: encoder and prefill. One run each; at this size Python takes more time than the operations."
    return results(rows, caption if model in MODELS else "GFLOP: encoder and prefill. One run each."), maps


def method(name: str, tokens: int) -> Any:
    """A pruner by a name with options, as "flowcut:schedule=last".

    Raises:
        ValueError: unknown method or option.
    """
    from mm.pruning.methods import make_pruner, read_options

    kind, _, words = name.partition(":")
    return make_pruner(kind, tokens, read_options(words.split(",")) if words else {})


def _row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": name,
        "answer": found["answer"],
        "tokens": round(found["visual_tokens"]),
        "per block": round(found["per_block"]),
        "GFLOP": 1e3 * found["tflop"],
        "ms": round(1e3 * found["seconds"]),
    }


def examples(folder: Path) -> list[list[str]]:
    """Scenes that training never saw, with a question each: [[path, question], …]."""
    from mm.zoo.evaluate import held_out_wide_scenes

    return [
        [save_picture(sample.images[0], folder / f"{number}.png"), sample.question]
        for number, sample in enumerate(held_out_wide_scenes(0, 4))
    ]
