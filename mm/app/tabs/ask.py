"""Ask: one question to LaVi and to a model that concatenates visual tokens, and where each word looks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import (
    gradio,
    model_input,
    needed,
    over_picture,
    own_folder,
    picture_input,
    results,
    save_picture,
)

LAVI, CONCATENATION = ("lavi_tiny",), ("llava_tiny",)


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    with gr.Row():
        with gr.Column():
            picture = picture_input("ask", value=shown[0][0])
            question = gr.Textbox(shown[0][1], label="Question", elem_id="ask_question", submit_btn=False)
            run = gr.Button("Ask", variant="primary", elem_id="ask_run")
            gr.Examples(shown, [picture, question], label="Held-out boards of digits, and scenes")
            with gr.Accordion("Real weights", open=False):
                lavi = model_input("ask", LAVI, "LaVi")
                other = model_input("ask", CONCATENATION, "Concatenation", name="other")
        with gr.Column():
            answers = gr.HTML(label="Answers", elem_id="ask_result")
            looks = gr.Gallery(label="Where each word looks (LaVi)", columns=4, height="auto", elem_id="ask_looks")
    inputs, outputs = [picture, question, lavi, other], [answers, looks]
    run.click(guarded(ask), inputs, outputs, api_name="ask")
    question.submit(guarded(ask), inputs, outputs, api_visibility="private")


def ask(
    picture: str | None, question: str, lavi: str, other: str, progress: Any = quiet
) -> tuple[str, list[tuple[Any, str]]]:
    """Answers and costs of both models as an HTML table, and a map per word of the question.

    Args:
        picture: Path of a picture.
        question: What to ask.
        lavi: Name, folder or hub id of the first model; maps are drawn if it is a LaVi model.
        other: The model to compare with.
        progress: Told what is being done.

    Raises:
        ValueError: no picture, no question, or a file or model that cannot be read.
    """
    import numpy as np

    from mm.encoders.lavi.diagnostics import word_looks
    from mm.encoders.lavi.model import LaviModel
    from mm.vision import load_image
    from mm.vlm import open_model

    image = load_image(needed(picture, "a picture"))
    needed(question, "a question")
    rows, looks = [], []
    for step, name in enumerate((lavi, other)):
        progress(step / 2, desc=f"{name} reads the picture")
        with shelf.lent(name, open_model) as model:
            rows.append({"model": name, **answered(model, image, question)})
            if isinstance(model, LaviModel):
                looks += word_looks(model, image, question)
    pixels = np.asarray(image)
    maps = [(over_picture(pixels, look.attention.numpy()), f"{look.word} · {look.strength:.2f}") for look in looks]
    return results(rows, "One run each, on this machine; sequence = what the language model reads."), maps


def answered(model: Any, image: Any, question: str) -> dict[str, Any]:
    """Answer, tokens and milliseconds.

    Raises:
        ValueError: the model does not answer questions.
    """
    if not hasattr(model, "ask") or not hasattr(model, "tokens_per_picture"):
        raise ValueError(f"A {type(model).__name__} does not answer questions; choose a vision-language model.")
    batch = model.prepare([image], question)
    start = time.perf_counter()
    answer = model.ask([image], question)
    return {
        "answer": answer,
        "sequence": int(batch["attention_mask"].sum()),
        "visual tokens": len(batch["pixel_values"]) * model.tokens_per_picture,
        "ms": round(1000 * (time.perf_counter() - start)),
    }


def examples(folder: Path) -> list[list[str]]:
    """Pictures that training never saw, with a question each: [[path, question], …]."""
    from mm.zoo.evaluate import held_out_boards, held_out_scenes

    samples = [*held_out_boards(0, 3), *held_out_scenes(0, 2)]
    return [
        [save_picture(sample.images[0], folder / f"{number}.png"), sample.question]
        for number, sample in enumerate(samples)
    ]
