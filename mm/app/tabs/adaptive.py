"""Adaptive: what VisionThink saw first, whether it asked for the full picture, and the visual tokens that it spent."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import gradio, model_input, needed, own_folder, picture_input, results

if TYPE_CHECKING:
    from PIL import Image

MODELS = ("visionthink_tiny",)
MODES = ("auto", "never", "always")


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    with gr.Row():
        with gr.Column():
            picture = picture_input("adaptive", value=shown[0][0])
            question = gr.Textbox(shown[0][1], label="Question", elem_id="adaptive_question")
            mode = gr.Radio(MODES, value="auto", label="Who decides to see more", elem_id="adaptive_mode")
            bias = gr.Slider(-8, 8, value=0, step=0.5, label="How readily it asks (0: as trained)")
            run = gr.Button("Ask", variant="primary", elem_id="adaptive_run")
            gr.Examples(shown, [picture, question], label="Held-out pictures, an easy and a hard question each")
            with gr.Accordion("Real weights", open=False):
                model = model_input("adaptive", MODELS)
        with gr.Column():
            table = gr.HTML(label="Answer and cost", elem_id="adaptive_result")
            seen = gr.Gallery(label="What it saw", columns=2, height="auto", elem_id="adaptive_seen")
            talk = gr.HTML(label="The conversation", elem_id="adaptive_talk")
    inputs, outputs = [picture, question, mode, bias, model], [table, seen, talk]
    run.click(guarded(look), inputs, outputs, api_name="adaptive")
    question.submit(guarded(look), inputs, outputs, api_visibility="private")


def look(
    picture: str | None, question: str, mode: str, bias: float, model: str, progress: Any = quiet
) -> tuple[str, list[tuple[Any, str]], str]:
    """The answer with its cost as a table, the pictures that were shown, and the conversation.

    Args:
        picture: Path of a picture.
        question: What to ask.
        mode: Who decides about the full picture: auto (the model), never, always.
        bias: Added to the logit of a call.
        model: Name, folder or hub id: our demonstration, Qwen2-VL or Qwen2.5-VL.
        progress: Told what is being done.

    Raises:
        ValueError: no picture, no question, or a file or model that cannot be read or has one resolution only.
    """
    from mm.pruning.visionthink.command import adaptive_generator
    from mm.vision import load_image
    from mm.vlm import open_model

    image = load_image(needed(picture, "a picture"))
    needed(question, "a question")
    progress(0, desc=f"{model} takes a first look")
    with shelf.lent(model, open_model) as host:
        generate = adaptive_generator(host, mode=mode, call_bias=float(bias))
        found = generate(image, question)
        low, full = generate.policy.pair(image)
    seen = [(_shown(low), f"first look, {low.width} x {low.height}: {found.tokens_low} tokens")]
    if found.called:
        seen.append((_shown(full), f"on request, {full.width} x {full.height}: {found.tokens_full} tokens"))
    row = {
        "answer": found.answer or "(none)",
        "asked for more": "yes" if found.called else "no",
        "visual tokens": found.tokens_low + found.tokens_full,
        "full picture alone": found.tokens_reference,
        "share": found.retain_ratio,
    }
    return results([row], "Visual tokens that the language model read."), seen, _talk(found.transcript)


def _shown(image: Image.Image) -> Image.Image:
    """Small pictures are enlarged, so that the pixels that it saw can be seen."""
    scale = max(1, 224 // max(image.size))
    return image.resize((image.width * scale, image.height * scale), 0)


def _talk(transcript: list[tuple[str, str]]) -> str:
    turns = (f"<p><b>{html.escape(role)}</b> {html.escape(text)}</p>" for role, text in transcript)
    return f"<details><summary>The conversation</summary>{''.join(turns)}</details>"


def examples(folder: Path) -> list[list[str]]:
    """Pictures that training never saw: first the hard, then the easy question about each."""
    from mm.pruning.visionthink.evaluate import held_out

    shown = []
    for number, sample in enumerate(held_out(4, 1)):
        path = folder / f"{number // 2}.png"
        sample.image.save(path)
        shown.append((sample.kind != "hard", [str(path), sample.question]))
    return [example for _, example in sorted(shown, key=lambda entry: entry[0])]
