"""A page of results that a program fills while it runs, and the one HTML file it becomes.

Everything is inside the file (pictures as base64, style inline), so that it can be mailed and opened offline. Numbers
that a page shows are kept beside it as JSON; nothing can be on a page that was not handed over by the code of that run.
"""

from __future__ import annotations

import base64
import html
import io
import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.app.solid_view import SCRIPT, solid_figure
from mm.checkpoint import write_aside

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --soft: #5b6675; --line: #d8dee6; --mark: #2563a8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --paper: #14181f; --soft: #9aa6b5; --line: #303844; --mark: #7db4ee } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.7rem } h2 { font-size: 1.35rem; border-bottom: 2px solid var(--mark); margin-top: 3rem }
h3 { font-size: 1.08rem; margin-top: 2rem }
nav a { margin-right: 1rem } a { color: var(--mark) }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto }
th, td { border: 1px solid var(--line); padding: .3rem .65rem; text-align: left } td.number { text-align: right }
canvas { max-width: 100%; touch-action: none; cursor: grab }
figure { margin: 1rem 0 } figure img { max-width: 100%; background: #fff; border-radius: 4px }
img.pixels { image-rendering: pixelated }
figcaption, caption { color: var(--soft); font-size: .92rem; text-align: left }
footer { margin-top: 4rem; color: var(--soft); font-size: .9rem }
"""


class Page:
    """One section of the report.

    Args:
        name: Anchor and key of the page's numbers.
        title: Heading.
        seed: Every page draws its randomness from this one number.
    """

    def __init__(self, name: str, title: str = "", *, seed: int = 0) -> None:
        self.name = name
        self.title = title or name
        self.seed = seed
        self.numbers: dict[str, Any] = {}
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """A sub-heading."""
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str) -> None:
        """A paragraph; blank lines separate paragraphs."""
        self._parts += [f"<p>{html.escape(block.strip())}</p>" for block in text.split("\n\n") if block.strip()]

    def table(self, rows: Sequence[Mapping[str, Any]], caption: str, *, key: str) -> None:
        """Rows under the union of their keys; kept as JSON under `key`.

        Raises:
            ValueError: no row, or `key` is used already.
        """
        if not rows:
            raise ValueError(f"page {self.name!r}: table {key!r} has no rows")
        self.record(key, [dict(row) for row in rows])
        self._parts.append(html_table(rows, caption))

    def figure(self, figure: Figure, caption: str) -> None:
        """A matplotlib figure, embedded as PNG at 110 dpi; it is closed."""
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        self._image(buffer.getvalue(), caption)

    def picture(self, pixels: np.ndarray, caption: str, *, scale: int = 1) -> None:
        """An image (H, W, 3) uint8, enlarged `scale` times without smoothing."""
        from PIL import Image

        image = Image.fromarray(pixels)
        if scale > 1:
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        self._image(buffer.getvalue(), caption, css="pixels" if scale > 1 else "")

    def strip(self, frames: Sequence[np.ndarray], caption: str, *, scale: int = 1, gap: int = 4) -> None:
        """Images (H, W, 3) uint8 of one height side by side, for the frames of a clip or the slices of a volume."""
        import numpy as np

        white = np.full((frames[0].shape[0], max(1, gap // scale), 3), 255, dtype=np.uint8)
        parts = [part for frame in frames for part in (frame, white)][:-1]
        self.picture(np.concatenate(parts, axis=1), caption, scale=scale)

    def sound(self, samples: np.ndarray, sample_rate: int, caption: str) -> None:
        """A player for one channel of sound, embedded as 16-bit WAV.

        Args:
            samples: (T,) real, -1 to 1; what is outside is cut off.
            sample_rate: Hz.
            caption: What is heard.
        """
        data = base64.b64encode(wav_bytes(samples, sample_rate)).decode()
        self._parts.append(
            f'<figure><audio controls preload="metadata" aria-label="{html.escape(caption, quote=True)}" '
            f'src="data:audio/wav;base64,{data}"></audio><figcaption>{html.escape(caption)}</figcaption></figure>'
        )

    def solid(self, vertices: np.ndarray, faces: np.ndarray, caption: str) -> None:
        """A solid of triangles that can be turned: vertices (V, 3), faces (F, 3)."""
        self._parts.append(solid_figure(vertices, faces, caption))

    def record(self, key: str, value: Any) -> None:
        """Keep numbers of the run beside the page.

        Raises:
            ValueError: `key` is used already.
        """
        if key in self.numbers:
            raise ValueError(f"page {self.name!r} already has numbers under {key!r}")
        self.numbers[key] = value

    def _image(self, png: bytes, caption: str, css: str = "") -> None:
        data = base64.b64encode(png).decode()
        alt = html.escape(caption, quote=True)
        self._parts.append(
            f'<figure><img class="{css}" alt="{alt}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def animation(self, frames: Sequence[np.ndarray], caption: str, *, milliseconds: int = 120) -> None:
        """Images (H, W, 3) uint8 as one animated PNG that repeats; browsers play it without a script.

        Raises:
            ValueError: no frame.
        """
        from PIL import Image

        if not frames:
            raise ValueError(f"page {self.name!r}: an animation needs at least one frame")
        first, *others = (Image.fromarray(frame) for frame in frames)
        buffer = io.BytesIO()
        first.save(buffer, format="PNG", save_all=True, append_images=others, duration=milliseconds, loop=0)
        self._image(buffer.getvalue(), caption)

    def body(self) -> str:
        """The section as HTML."""
        return f'<section id="{html.escape(self.name, quote=True)}"><h2>{html.escape(self.title)}</h2>' + "\n".join(
            [*self._parts, "</section>"]
        )


def wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    """A WAV file with one channel of 16 bits; samples (T,) of -1 to 1."""
    import numpy as np

    whole = np.round(np.clip(np.asarray(samples, dtype=np.float64), -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(whole.tobytes())
    return buffer.getvalue()


def html_table(rows: Sequence[Mapping[str, Any]], caption: str, *, mark: str = "") -> str:
    """Rows as an HTML table under the union of their keys; every cell is escaped.

    Example:
        >>> html_table([{"answer": "<b>"}], "one").count("&lt;b&gt;")
        1
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(column)) for column in columns)}</tr>" for row in rows)
    return (
        f'<table class="{mark}"><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{html.escape(str(value))}</td>"
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f'<td class="number">{value:.4g}</td>'


def write_report(folder: Path, title: str, pages: Sequence[Page], *, about: str, footer: str) -> Path:
    """Write `index.html` and `numbers.json`, each whole or not at all.

    Returns:
        Path of the HTML file.
    """
    links = " ".join(f'<a href="#{page.name}">{html.escape(page.title)}</a>' for page in pages)
    document = "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>',
            f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p><nav>{links}</nav>",
            *(page.body() for page in pages),
            f"<footer>{html.escape(footer)}</footer><script>{SCRIPT}</script></body></html>",
        ]
    )
    with write_aside(folder / "numbers.json") as temporary:
        temporary.write_text(json.dumps({page.name: page.numbers for page in pages}, indent=2), encoding="utf-8")
    with write_aside(folder / "index.html") as temporary:
        temporary.write_text(document, encoding="utf-8")
    return folder / "index.html"
