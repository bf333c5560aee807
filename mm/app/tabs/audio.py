"""Audio: sound as tokens and back, with the size of the file, the tokens and both spectrograms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import as_path, gradio, model_input, needed, own_folder, results

MODELS = ("semanticodec_tiny",)
LONGEST_S = 30.0
"""Longest sound that is taken, seconds; `mm codec` takes any."""
PIXELS = 16
"""Side of a token in the strip."""


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    with gr.Row():
        with gr.Column():
            sound = as_path(
                gr.Audio(
                    shown[0][0],
                    label=f"Sound (at most {LONGEST_S:g} s)",
                    sources=["upload", "microphone"],
                    type="filepath",
                    elem_id="audio_sound",
                )
            )
            steps = gr.Slider(2, 50, value=25, step=1, label="Sampling steps", elem_id="audio_steps")
            guidance = gr.Slider(1, 4, value=2, step=0.5, label="Guidance (1 is off)", elem_id="audio_guidance")
            run = gr.Button("Encode and decode", variant="primary", elem_id="audio_run")
            gr.Examples(shown, [sound], label="Held-out made sounds")
            with gr.Accordion("Real weights", open=False):
                model = model_input("audio", MODELS)
        with gr.Column():
            decoded = gr.Audio(label="Decoded from the tokens", elem_id="audio_decoded", interactive=False)
            table = gr.HTML(label="Sizes and times", elem_id="audio_result")
            strip = gr.Image(label="Tokens", elem_id="audio_tokens", interactive=False)
            mels = gr.Plot(label="Mel spectrograms", elem_id="audio_mels")
            file = gr.File(label="Tokens as a file", elem_id="audio_file")
    inputs, outputs = [sound, steps, guidance, model], [decoded, table, strip, mels, file]
    run.click(guarded(audio), inputs, outputs, api_name="audio")


def audio(
    sound: str | None, steps: float, guidance: float, model: str, progress: Any = quiet
) -> tuple[str, str, Any, Any, str]:
    """A sound there and back.

    Args:
        sound: Path of a sound or video file.
        steps: Sampling steps.
        guidance: Strength of the condition, 1 is off.
        model: Name, folder or hub id of a SemantiCodec.
        progress: Told what is being done.

    Returns:
        Path of the decoded WAV, table of sizes, token strip (H, W, 3) uint8, figure of both spectrograms, path of the
        token file.

    Raises:
        ValueError: no sound, a file without sound, too long, or another kind of model.
    """
    from mm.codecs.semanticodec import Sampling, SemantiCodec
    from mm.codecs.semanticodec.audio import audio_writer
    from mm.codecs.semanticodec.round_trip import packed, read_wave, unpacked
    from mm.codecs.semanticodec.show import mel_figure, token_strip

    path = Path(needed(sound, "a sound"))
    wave = read_wave(path, name=path.name, longest_s=LONGEST_S)
    with shelf.lent(model) as codec:
        if not isinstance(codec, SemantiCodec):
            raise ValueError(f"{model}: a {type(codec).__name__} does not code sound; choose a SemantiCodec.")
        progress(0.1, desc="sound to tokens")
        begun = time.perf_counter()
        tokens, file = packed(codec, wave)
        encoded = time.perf_counter()
        progress(0.3, desc="tokens to sound")
        found = unpacked(codec, file, Sampling(steps=int(steps), guidance=guidance))
        done = time.perf_counter()
        pictures = {"source": wave, "decoded": found}
        figure, strip = mel_figure(codec, pictures, per_row=1), token_strip(codec, tokens)
    folder = own_folder()
    out, stored = folder / f"{path.stem}_decoded.wav", folder / f"{path.stem}.stk"
    with audio_writer(out) as write:
        write(found)
    stored.write_bytes(file)
    seconds = len(wave) / codec.sample_rate
    rows = [
        {"what": "length, s", "value": seconds},
        {"what": "token pairs", "value": len(tokens)},
        {"what": "bit/s of the tokens", "value": codec.bitrate},
        {"what": "bytes of the file, 48 of them its header", "value": len(file)},
        {"what": "times smaller than 16-bit samples", "value": 2 * len(wave) / len(file)},
        {"what": "encoding, s", "value": encoded - begun},
        {"what": "decoding, s", "value": done - encoded},
    ]
    caption = "Semantic tokens above the white line, acoustic ones below, low sounds at the bottom, a colour per token."
    return str(out), results(rows, caption), strip.repeat(PIXELS, 0).repeat(PIXELS, 1), figure, str(stored)


def examples(folder: Path) -> list[list[str]]:
    """Made sounds that training never heard: [[path], …], one per kind."""
    import torch

    from mm.codecs.semanticodec.audio import audio_writer
    from mm.codecs.semanticodec.sounds import make_sound
    from mm.data.split import Split

    found = []
    for number, (name, domain) in enumerate((("syllables", "speech"), ("notes", "music"), ("noises", "general"))):
        wave = make_sound(Split("test").seed(number), 48_000, domain).wave
        with audio_writer(folder / f"{name}.wav") as write:
            write(torch.from_numpy(wave))
        found.append([str(folder / f"{name}.wav")])
    return found
