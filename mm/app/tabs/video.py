"""Video: semantic codes over the frames of a clip, a question about it, and clips found by a sentence (E-ViLM)."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import as_path, gradio, model_input, needed, own_folder

MODELS, TOKENIZERS = ("evilm_tiny",), ("semantic_vq_tiny",)
FRAMES = 4
"""Frames of a clip that are looked at; the demonstration was trained on as many."""
QUESTION = "in which direction does the thing move?"
QUERY = "a large red circle moves left"
SHOWN, ANSWERS = 6, 4


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    with gr.Row():
        with gr.Column():
            clip = as_path(gr.Video(shown[0][0], label="Clip", elem_id="video_clip", height=280))
            question = gr.Textbox(QUESTION, label="Question", elem_id="video_question")
            with gr.Row():
                run = gr.Button("Ask", variant="primary", elem_id="video_run")
                see = gr.Button("Show codes", elem_id="video_see")
            gr.Examples(shown, [clip, question], label="Held-out clips, with questions")
        with gr.Column():
            answers = gr.Label(label="Probability among the known answers", elem_id="video_result")
            notes = gr.HTML(label="Notes", elem_id="video_notes")
            codes = gr.Gallery(
                label="Frames, and one colour per code", columns=FRAMES, height="auto", elem_id="video_codes"
            )
    gr.Markdown("### Find clips")
    with gr.Row():
        with gr.Column():
            query = gr.Textbox(QUERY, label="Description", elem_id="video_query")
            files = gr.File(label="Your clips (empty: 64 held-out ones)", file_count="multiple")
            find = gr.Button("Find", variant="primary", elem_id="video_find")
        found = gr.Gallery(label="Best first", columns=2, height="auto", elem_id="video_found")
    with gr.Accordion("Real weights", open=False):
        model = model_input("video", MODELS)
        tokenizer = model_input("video", TOKENIZERS, "Tokenizer", name="tokenizer")
    run.click(guarded(ask), [clip, question, model], [answers, notes], api_name="ask_clip")
    see.click(guarded(look), [clip, tokenizer], [codes], api_name="clip_codes")
    find.click(guarded(search), [query, files, model], [found], api_name="find_clips")
    query.submit(guarded(search), [query, files, model], [found], api_visibility="private")


def ask(clip: str | None, question: str, model: str, progress: Any = quiet) -> tuple[dict[str, float], str]:
    """Probabilities of the best answers, and notes about the file and the question as HTML.

    Args:
        clip: Path of a video.
        question: What to ask.
        model: Name, folder or hub id of an E-ViLM.
        progress: Told what is being done.

    Raises:
        ValueError: no clip, no question, or a file or model that cannot be read.
    """
    frames, problems = _frames(needed(clip, "a clip"))
    needed(question, "a question")
    progress(0.5, desc="looking")
    with shelf.lent(model, _evilm) as evilm:
        pixels = _prepared(frames, evilm.image_preprocessing)
        count = min(ANSWERS, len(evilm.answer_names()))
        answers = dict(evilm.answer(pixels, question, count))
        unknown = evilm.unknown_words(question)
    if unknown:
        problems.append(f"This model does not know {', '.join(dict.fromkeys(unknown))}: it reads all such words alike.")
    return answers, "".join(f"<p>{html.escape(problem)}</p>" for problem in problems)


def look(clip: str | None, tokenizer: str, progress: Any = quiet) -> list[tuple[Any, str]]:
    """Frames of a clip as the tokenizer sees them, then the same under the colours of their codes.

    Args:
        clip: Path of a video.
        tokenizer: Name, folder or hub id of a semantic tokenizer.
        progress: Told what is being done.

    Raises:
        ValueError: no clip, or a file or tokenizer that cannot be read.
    """
    from einops import rearrange

    from mm.codecs.semantic_vq.picture import over_frames
    from mm.vision import read_video

    video = read_video(needed(clip, "a clip"), FRAMES)
    progress(0.5, desc="tokenising")
    with shelf.lent(tokenizer, _tokenizer) as codes_of:
        pixels = _prepared(video.frames, codes_of.image_preprocessing)
        codes = codes_of.encode(pixels).cpu().numpy()
    seen = rearrange(pixels, "t c h w -> t h w c").numpy()
    plain, coloured = over_frames(seen, codes, strength=0.0), over_frames(seen, codes)
    times = [f"{time:.2f} s" for time in video.times_s]
    names = [f"{time} · {len(set(map_.flatten().tolist()))} codes" for time, map_ in zip(times, codes, strict=True)]
    return [*zip(plain, times, strict=True), *zip(coloured, names, strict=True)]


def search(query: str, files: list[str] | None, model: str, progress: Any = quiet) -> list[tuple[Any, str]]:
    """The clips that fit a description best, as strips of frames with their scores.

    Args:
        query: The description.
        files: Paths of videos; held-out clips if there are none.
        model: As for `ask`.
        progress: Told what is being done.

    Raises:
        ValueError: no description, or a file or model that cannot be read.
    """
    import torch

    from mm.encoders.evilm.search import exhaustive_scores

    needed(query, "a description")
    named = [(Path(file).name, _frames(file)[0]) for file in files] if files else _held_out()
    progress(0.3, desc=f"scoring {len(named)} clips")
    with shelf.lent(model, _evilm) as evilm, torch.inference_mode():
        pixels = [_prepared(frames, evilm.image_preprocessing) for _, frames in named]
        text = evilm.encode_text(**evilm.tokenize([query]))
        scores = exhaustive_scores(evilm, evilm.encode_video(torch.stack(pixels)), text)[:, 0]
    best = scores.sort(descending=True, stable=True)
    chosen = zip(best.values.tolist()[:SHOWN], best.indices.tolist()[:SHOWN], strict=True)
    return [(_strip(pixels[place]), f"{score:.2f} · {named[place][0]}") for score, place in chosen]


def _frames(path: str) -> tuple[Any, list[str]]:
    """Frames (T, H, W, 3) of a file, and what is wrong with it."""
    from mm.vision import read_video

    video = read_video(path, FRAMES)
    return video.frames, list(video.problems)


def _prepared(frames: Any, preprocessing: Any) -> Any:
    """(T, 3, S, S) uint8 as a model wants them."""
    from mm.training.video_features import frames_uint8

    return frames_uint8(frames, preprocessing)


def _strip(pixels: Any) -> Any:
    """Frames (T, 3, S, S) side by side, twice as large, (2 S, 2 T S, 3) uint8."""
    from einops import rearrange

    row = rearrange(pixels, "t c h w -> h (t w) c").numpy()
    return row.repeat(2, 0).repeat(2, 1)


def _held_out() -> list[tuple[str, Any]]:
    """(Caption, frames) of one clip per combination that training left out."""
    from mm.encoders.evilm.data import held_out_clips

    return [(clip.caption, clip.frames) for clip in held_out_clips(0)]


def _evilm(name: str) -> Any:
    from mm.encoders.evilm.model import EViLM

    return EViLM.from_pretrained(name).eval()


def _tokenizer(name: str) -> Any:
    from mm.codecs.semantic_vq.command import load_tokenizer

    return load_tokenizer(name).eval()


def examples(folder: Path) -> list[list[str]]:
    """Clips that training never saw, as files, with a question each: [[path, question], …]."""
    from mm.encoders.evilm.data import held_out_clips
    from mm.vision.video_write import write_video

    kinds = ("direction", "shape", "colour", "size", "choice")
    clips = held_out_clips(1)[5::13]
    return [
        [str(write_video(folder / f"{number}.mp4", clip.frames, fps=2, scale=4)), clip.ask(kind)[0]]
        for number, (clip, kind) in enumerate(zip(clips, kinds, strict=True))
    ]
