"""Make shipped weights: train by the packaged configuration, store in half precision, evaluate, write card and recipe.

python -m mm.zoo.build lavi_tiny
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
import yaml

import mm
from mm.catalog import EVALUATORS
from mm.checkpoint import load, write_aside
from mm.zoo.borrow import borrow
from mm.zoo.verify import RECIPE_FILE, read_metrics, read_recipe, write_metrics

LICENCE = "Apache-2.0"
TOLERANCE = 0.03
"""Absolute, for shares on some 500 samples: half precision and another processor move a few answers."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one demonstration is made."""

    config: str
    """Packaged run configuration."""
    about: str
    """What it is, in a sentence."""
    data: str
    """What it was trained on."""
    stages: str = ""
    """Command that trains it in several stages; its result goes to `--trained`. "" is one run of `config`."""
    lenders: tuple[str, ...] = ()
    """Shipped weights that it holds frozen; what equals theirs is not stored again."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Tolerances of single scores where `TOLERANCE` is not right, because they rest on fewer samples."""


R1_AMONG_64 = dict.fromkeys(("text_to_video_r1", "video_to_text_r1", "text_to_video_r1_unimodal"), 0.05)
"""Three queries of 64."""

RECIPES = {
    "tiny_lm": Recipe(
        config="zoo/tiny_lm",
        about="A Llama of 1.3 million parameters that knows the language of the procedural world and nothing else.",
        data="text documents of mm.data.text: boards and scenes in shorthand, descriptions, moves; no picture",
    ),
    "tiny_vit": Recipe(
        config="zoo/tiny_vit",
        about="A vision transformer of 0.3 million parameters for pictures of 64 pixels.",
        data="boards of scikit-learn's scanned digits (training part) and drawn scenes with a label per patch",
    ),
    "tiny_vit_256": Recipe(
        config="zoo/tiny_vit_256",
        about="A vision transformer of 0.6 million parameters for pictures of 128 pixels, with a class token that was "
        "asked what is where.",
        data="drawn wide scenes (small things in large pictures) with a label per patch and per place",
    ),
    "flame_tiny": Recipe(
        config="flame/tiny",
        about="A vision transformer of 0.3 million parameters, trained on captions that the frozen tiny_lm has read.",
        data="drawn scenes and one half of scikit-learn's scanned digits, both with captions and no labels",
    ),
    "lavi_tiny": Recipe(
        config="lavi/tiny",
        about="LaVi on tiny_lm and tiny_vit, both frozen: answers about boards, scenes and clips.",
        data="boards of scikit-learn's scanned digits (training part), drawn scenes, drawn clips",
        lenders=("tiny_lm", "tiny_vit"),
    ),
    "semantic_vq_tiny": Recipe(
        config="semantic_vq/tiny",
        about="E-ViLM's tokenizer with 0.4 million parameters: 8 x 8 codes of a 64-pixel frame, taught by an oracle "
        "that sees colour and shape and no texture.",
        data="drawn scenes; the oracle's features come from their description",
    ),
    "semantic_vq_tiny_pixels": Recipe(
        config="semantic_vq/tiny_pixels",
        about="The control of semantic_vq_tiny: the same sizes, but its codes rebuild pixels.",
        data="drawn scenes",
    ),
    "evilm_tiny": Recipe(
        config="evilm/tiny",
        about="E-ViLM of 0.8 million parameters on clips of four 64-pixel frames: matches sentences, names hidden "
        "codes, answers what moves and which way.",
        data="drawn clips of one moving thing, captions and questions (mm.encoders.evilm.scenes); 64 of 256 "
        "combinations of colour, shape and direction are left out",
        stages="mm fit --config evilm/tiny --out runs/evilm/tiny; "
        "mm fit --config evilm/tiny_finetune --out runs/evilm/tuned",
        tolerances=R1_AMONG_64,
    ),
    "evilm_tiny_slim": Recipe(
        config="evilm/tiny",
        about="evilm_tiny with half the channels in its trunk, as evilm_slim is to evilm_30m.",
        data="drawn clips, captions and questions, as for evilm_tiny",
        stages="mm fit --config evilm/tiny --model.preset evilm_tiny_slim --trainer.max_steps 3360 --out "
        "runs/evilm/slim; mm fit --config evilm/tiny_finetune --model.evilm runs/evilm/slim/model --trainer.max_steps "
        "1920 --out runs/evilm/slim_tuned",
        tolerances=R1_AMONG_64,
    ),
    "semanticodec_tiny": Recipe(
        config="semanticodec/diffusion_tiny",
        about="SemantiCodec of 1.6 million parameters for 1.28-s segments, 50 tokens and up to 400 bits per second.",
        data="speech-like syllables, notes, noise, hits and sweeps made from seeds; no recording",
        stages="python -m mm.codecs.semanticodec.recipe --out runs/semanticodec",
        tolerances={  # two sounds of 32; a linear probe of noise; losses around 0.1
            **dict.fromkeys(("retrieval_top1", "retrieval_top1_shuffled"), 0.07),
            "probe_shuffled_labels": 0.07,
            "level_db": 0.5,
            **dict.fromkeys(("v_error_unquantized", "v_error_tokens", "v_error_semantic_only"), 0.003),
        },
    ),
    "openecad_tiny": Recipe(
        config="cad/tiny",
        about="OpenECAD of 1.7 million parameters: one picture of a part -> the program that builds it.",
        data="290,300 procedural parts of mm.cad.procedural (TINY; its training split shares no part with the held-out "
        "ones), iso view of 64 pixels, drawn by the package's own rasteriser",
        stages="mm fit --config cad/tiny --out runs/cad --data.config.batch_size 256 --trainer.max_steps 5700 "
        "--model.optimizer.lr 2e-3 --data.config.workers 5 --trainer.precision bf16-mixed",
    ),
    "visionthink_tiny": Recipe(
        config="visionthink/tiny",
        about="A Qwen2.5-VL of 0.5 million parameters that asks for the full picture when a question needs it.",
        data="drawn flags whose colour survives half the resolution and whose weave does not",
        stages="mm fit --config visionthink/warm_start --out runs/warm_start; "
        "mm fit --config visionthink/tiny --out runs/visionthink",
    ),
    "llava_tiny": Recipe(
        config="llava/tiny",
        about="The concatenation host on the same frozen tiny_lm and tiny_vit: only its projector is trained.",
        data="boards of scikit-learn's scanned digits (training part), drawn scenes",
        lenders=("tiny_lm", "tiny_vit"),
    ),
    "llava_tiny_256": Recipe(
        config="llava/tiny_256",
        about="The concatenation host with 256 visual tokens, on frozen tiny_lm and tiny_vit_256: only its projector "
        "is trained. It is there to lose tokens.",
        data="drawn wide scenes (small things in large pictures)",
        lenders=("tiny_lm", "tiny_vit_256"),
    ),
    "velvet_tiny": Recipe(
        config="medical/tiny",
        about="VELVET-Med with 0.6 million parameters: volumes of 36 voxels and their reports. It went on from an "
        "earlier run of about six minutes; batch size and loss settings of both runs were not recorded, so the command "
        "below names the time and the pool of the last run and does not repeat it exactly.",
        data="procedural CT phantoms of mm.medical.phantoms and their reports (training seeds); no patient",
        stages="python -m mm.medical.velvet.recipe --out runs/velvet --patients 12000 --set '{\"seconds\": 375}'",
    ),
    "velvet_tiny_segmenter": Recipe(
        config="medical/tiny",
        about="A SwinUNETR of 1.8 million parameters that finds seven organs at 6 mm; it started from the vision "
        "encoder of a sister run of velvet_tiny on volumes of 48 voxels.",
        data="procedural CT phantoms of mm.medical.phantoms with their label maps (training seeds); no patient",
        stages="python -m mm.medical.velvet.transfer --scans 200 --steps 500 --batch-size 4 --out runs/segmenter",
    ),
    "velvet_tiny_writer": Recipe(
        config="medical/writer",
        about="Answers to questions and draft reports on frozen velvet_tiny: its fused question states in front of a "
        "Llama of a few hundred thousand parameters.",
        data="questions and reports about procedural CT phantoms of mm.medical.phantoms (training seeds); no patient",
    ),
}


def build(name: str, *, trained: Path | None = None, made_with: str = "", seed: int = 0) -> Path:
    """Make the shipped folder of one demonstration.

    Args:
        name: One of `RECIPES`.
        trained: A finished model folder (`model/` of a run); None trains now.
        made_with: Machine and duration, for the recipe.
        seed: Of the evaluation.

    Returns:
        The folder inside the package.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if trained is None and recipe.stages:
        raise ValueError(f"{name} is trained in stages: {recipe.stages}; then add --trained FOLDER")
    if trained is None:
        from mm.training.cli import fit

        out = Path("runs/zoo") / name
        fit(["--config", recipe.config, "--out", str(out)])
        trained = out / "model"
    folder = Path(str(files("mm.zoo"))) / name
    load(trained).save_pretrained(folder, dtype=torch.float16)  # type: ignore[operator]
    if recipe.lenders:
        borrow(folder, recipe.lenders)
    found = EVALUATORS.get(name)(load(folder), seed=seed)
    write_metrics(folder, found, seed=seed, tolerance=dict.fromkeys(found, TOLERANCE) | dict(recipe.tolerances))
    text = {
        "command": f"{recipe.stages}; python -m mm.zoo.build {name} --trained FOLDER"
        if recipe.stages
        else f"python -m mm.zoo.build {name}",
        "config": recipe.config,
        "data": recipe.data,
        "licence": LICENCE,
        "made_with": f"mm {mm.__version__}, torch {torch.__version__}" + (f", {made_with}" if made_with else ""),
    }
    with write_aside(folder / RECIPE_FILE) as path:
        path.write_text(yaml.safe_dump(text, sort_keys=False, width=120), encoding="utf-8")
    with write_aside(folder / "README.md") as path:
        path.write_text(card(name, folder), encoding="utf-8")
    return folder


def card(name: str, folder: Path) -> str:
    """The card of a demonstration, from its recipe and scores."""
    recipe, stated = RECIPES[name], read_metrics(folder)
    made_with = read_recipe(folder)["made_with"]
    scores = "\n".join(f"| {metric} | {entry['value']:.3f} |" for metric, entry in stated["metrics"].items())
    return (
        f"# {name}\n\n{recipe.about} A small demonstration, not a released model of the paper's authors.\n\n"
        f"- Data: {recipe.data}.\n- Licence: {LICENCE}.\n"
        f"- Made by `{recipe.stages or f'mm fit --config {recipe.config}'}` ({made_with}).\n"
        f"- Weights are stored in float16.\n"
        f"- Limits: it knows nothing outside the procedural world.\n\n"
        f"| held-out score | value |\n|---|---|\n{scores}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--trained", type=Path, help="a finished model folder; default: train now")
    parser.add_argument("--made-with", default="", help="machine and duration, for the recipe")
    arguments = parser.parse_args(argv)
    print(build(arguments.name, trained=arguments.trained, made_with=arguments.made_with))
    return 0


if __name__ == "__main__":
    sys.exit(main())
