"""`mm medical embed`: the vectors of a scan from a trained VELVET-Med model."""

from __future__ import annotations

from mm.command import OK, CommandParser, emit_json, emit_table
from mm.medical.command.source import add_source, load


def run(argv: list[str]) -> int:
    """Run `mm medical embed`."""
    parser = CommandParser(
        "medical embed",
        about="Bring a scan to RAS order, window it, squeeze it to the model's cube and write its vectors.",
        example="mm medical embed scan.nii.gz --out scan.safetensors",
        json_output=True,
    )
    add_source(parser)
    parser.add_argument(
        "--model", default="velvet_tiny", help="model folder, shipped name or hub id (default: velvet_tiny)"
    )
    parser.add_argument("--window", default="abdomen", help="intensity window (default: abdomen, -175..250 HU)")
    parser.add_argument("--out", metavar="FILE", help="write all levels as safetensors: report, sentence, word")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda")
    arguments = parser.parse_args(argv)

    from mm.medical.volumes.windows import window_named

    window = window_named(arguments.window)
    volume = load(arguments)

    import torch
    from safetensors.torch import save_file

    from mm.medical.velvet.model import VelvetModel
    from mm.medical.velvet.volume_views import global_volume

    model = VelvetModel.from_pretrained(arguments.model, device=arguments.device).eval()
    scan = torch.from_numpy(window(volume.hu))[None]  # (1, X, Y, Z)
    cube = global_volume(scan, model.config.vision.volume_size)[None].to(model.device)
    with torch.inference_mode():
        found = model.volume_embeddings(model.encode_volume(cube))
    levels: dict[str, torch.Tensor] = {
        level: getattr(found, level)[0].float().cpu().contiguous() for level in model.config.levels
    }
    if arguments.out:
        save_file(levels, arguments.out)
    shapes = {level: list(vectors.shape) for level, vectors in levels.items()}
    summary = {**volume.summary(), "window": [window.low, window.high], "cube": list(cube.shape[2:]), "levels": shapes}
    if arguments.json:
        emit_json({**summary, "report": levels["report"].tolist() if "report" in levels else None})
    else:
        rows = [{"level": level, "vectors": " x ".join(map(str, shape))} for level, shape in shapes.items()]
        emit_table(rows, title=f"{volume.unit} volume of {' x '.join(map(str, volume.hu.shape))} voxels")
        for note in volume.provenance.notes:
            print(f"note: {note}")
    return OK
