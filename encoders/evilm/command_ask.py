"""`mm video ask`: a question about a clip."""

from __future__ import annotations

from typing import Any

from mm.command import OK, CommandParser, emit_json, emit_table, positive
from mm.encoders.evilm.command_parts import add_model, unknown_words, video_model


def ask(argv: list[str]) -> int:
    """Answer a question about a clip."""
    parser = CommandParser(
        "video ask",
        about="Answer a question about a clip in one word, or with an entry of the model's list of answers. The\n"
        "probabilities are those among the allowed answers.",
        example="mm video ask CLIP.mp4 --question 'left or right?' --answers left right",
        json_output=True,
    )
    parser.add_argument("clip", metavar="CLIP", help="video file")
    parser.add_argument("-q", "--question", required=True, help="plain text")
    parser.add_argument(
        "--answers", nargs="+", metavar="ANSWER", help="what may be answered (default: the model's list)"
    )
    parser.add_argument("-k", "--top", type=positive, help="answers to show (default: 3, or as many as there are)")
    parser.add_argument("--frames", type=positive, default=4, help="evenly spaced frames to look at (default: 4)")
    add_model(parser)
    arguments = parser.parse_args(argv)
    if not arguments.question.strip():
        raise ValueError("the question is empty; write what you want to know")

    from mm.training.video_features import frames_uint8
    from mm.vision import read_video

    clip = read_video(arguments.clip, arguments.frames)
    model = video_model(arguments.model, arguments.device)
    allowed = list(dict.fromkeys(arguments.answers)) if arguments.answers else None
    names = allowed or list(model.config.answers)
    top = arguments.top or min(3, len(names) or 3)
    frames = frames_uint8(clip.frames, model.image_preprocessing).to(next(model.parameters()).device)
    found = model.answer(frames, arguments.question, top, answers=allowed)
    rows: list[dict[str, Any]] = [{"answer": answer, "probability": share} for answer, share in found]
    notes = [*clip.problems, *unknown_words(model, arguments.question)]
    if arguments.json:
        times = {"first_s": float(clip.times_s[0]), "last_s": float(clip.times_s[-1])}
        about = {"clip": clip.info.name, "question": arguments.question, "frames": len(frames), **times}
        emit_json(about | {"answers": rows, "notes": notes})
    else:
        emit_table(rows)
        for note in notes:
            print(f"note: {note}")
    return OK
