"""CAD: a picture of a part becomes a program, which is edited while the solid follows, and taken away as files."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import gradio, model_input, needed, own_folder, picture_input, save_picture

MODELS = ("openecad_tiny",)
SAMPLES = 4
"""Further candidates per picture, among which the best drawing wins."""
SIDE = 256
"""Side of the example pictures, pixels."""
FORMATS = ("step", "stl", "glb")


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    with gr.Row():
        with gr.Column(scale=2):
            picture = picture_input("cad", label="Picture of a part on white", value=shown[0])
            run = gr.Button("Write the program", variant="primary", elem_id="cad_run")
            gr.Examples(shown, picture, label="Held-out parts")
            with gr.Accordion("Real weights", open=False):
                model = model_input("cad", MODELS)
            found = gr.HTML(elem_id="cad_result")
        with gr.Column(scale=3):
            program = gr.Code(language="python", label="Program: change a number", elem_id="cad_program")
        with gr.Column(scale=3):
            view = gr.Model3D(
                label="Solid",
                elem_id="cad_view",
                clear_color=(0.96, 0.97, 0.98, 1.0),
                camera_position=(45, 60, None),
                height=340,
            )
            status = gr.HTML(elem_id="cad_status")
            take = gr.Button("STEP, STL and GLB", elem_id="cad_export")
            files = gr.File(label="Files", file_count="multiple", elem_id="cad_files", interactive=False)
    run.click(guarded(write), [picture, model], [program, found], api_name="cad_write")
    program.change(
        guarded(rebuild),
        program,
        [view, status],
        api_name="cad_rebuild",
        trigger_mode="always_last",
        show_progress="hidden",
    )
    take.click(guarded(export), program, files, api_name="cad_export")


def write(picture: str | None, model: str, progress: Any = quiet) -> tuple[str, str]:
    """The program of the part in a picture, and how sure one may be of it.

    Args:
        picture: Path of a picture; a part on a white ground.
        model: Name, folder or hub id of an OpenECAD model.
        progress: Told what is being done.

    Returns:
        Program text, and a sentence as HTML.

    Raises:
        ValueError: no picture, one that shows no part, or another kind of model.
        FileNotFoundError: no such picture or model.
    """
    from mm.cad.generate import generate
    from mm.cad.model import finished

    path = needed(picture, "a picture")
    with shelf.lent(model, finished) as reader:
        progress(0.1, desc=f"{1 + SAMPLES} candidates")
        found = generate(reader, path, samples=SAMPLES)
    place = f"Agreement of the drawing with the picture {found.agreement:.2f}, best of {1 + SAMPLES} candidates."
    if found.uncertain:
        place = f"<b>Low confidence.</b> {place} The model knows one kind of part in one view; check every number."
    return found.candidate.text, f"<p>{place}</p>"


def rebuild(program: str | None) -> tuple[str | None, str]:
    """The solid of a program while it is typed: what is wrong with it is said, not raised.

    Returns:
        Path of a GLB file, or None while there is no solid; a sentence as HTML.
    """
    if program is None or not program.strip():
        return None, "<p>No program yet.</p>"
    try:
        solid = _solid(program, "mesh")
    except ValueError as error:
        return None, f"<p><b>No solid:</b> {html.escape(str(error))}</p>"
    low, high = solid.bounds
    sizes = " x ".join(f"{value:.4g}" for value in high - low)
    path = solid.export(own_folder() / "part.glb")
    return str(path), f"<p>{sizes} mm, volume {solid.volume:.6g} mm³, built in {solid.seconds:.2f} s.</p>"


def export(program: str | None, progress: Any = quiet) -> list[str]:
    """The part as files: STEP from the exact kernel, STL and GLB.

    Raises:
        ValueError: no program, one that cannot be read (with line and column), or one without a solid.
        ImportError: the exact kernel is not installed.
    """
    progress(0.1, desc="exact solid")
    solid = _solid(needed(program, "a program"), "occ")
    folder = own_folder()
    return [str(solid.export(folder / f"part.{ending}")) for ending in FORMATS]


def _solid(program: str, kernel: Any) -> Any:
    """Build what a person typed; the time limit keeps the tab alive whatever it is."""
    from mm.cad import Limits, build, parse

    return build(parse(program), kernel=kernel, limits=Limits(seconds=20.0, cpu_seconds=20.0))


def examples(folder: Path) -> list[str]:
    """Pictures of parts that training never saw."""
    from mm.cad.drawing import render
    from mm.cad.kernel.evaluate import features
    from mm.cad.kernel.manifold import build_mesh
    from mm.cad.procedural import sample_part
    from mm.data.split import Split

    parts = sorted(map(sample_part, Split("test").seeds[40:80]), key=lambda part: -len(part.program.extrudes))
    chosen = list({part.family: part for part in reversed(parts)}.values())[::-1][:4]
    return [
        save_picture(render(build_mesh(features(part.program)), size=SIDE), folder / f"{part.family}.png")
        for part in chosen
    ]
