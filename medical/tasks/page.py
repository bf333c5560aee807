"""One HTML page per case: text, tables and pictures inside the file, no script, nothing from a network, no name."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.checkpoint import write_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = "Research use only. Not a medical device; not for diagnosis or treatment."
"""Stands on every page and in every JSON file."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; max-width: 66rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem }
.note { background: #fff4d6; border: 1px solid #d9a514; padding: .6rem .9rem; border-radius: 4px }
table { border-collapse: collapse; margin: .8rem 0 } caption, figcaption { color: #5b6675; font-size: .92rem;
  text-align: left }
th, td { border: 1px solid #d8dee6; padding: .3rem .65rem; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } figure img { max-width: 100%; border-radius: 4px }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem }
.gallery > div { border: 1px solid #d8dee6; border-radius: 6px; padding: .7rem }
"""


class CasePage:
    """A page that is filled while a case is worked on.

    Args:
        title: Heading.

    Example:
        >>> page = CasePage("Case 1")
        >>> page.text("5 < 6")
        >>> "5 &lt; 6" in page.html()
        True
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """A sub-heading."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def listed(self, lines: Sequence[str]) -> None:
        """A list; nothing for no lines."""
        if lines:
            self._parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")

    def table(self, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        """Rows under the union of their keys; nothing for no rows."""
        if not rows:
            return
        columns = list(dict.fromkeys(column for row in rows for column in row))
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join(f"<tr>{''.join(_cell(row.get(column)) for column in columns)}</tr>" for row in rows)
        told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._parts.append(f"<table>{told}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def figure(self, figure: Figure, caption: str) -> None:
        """A matplotlib figure, embedded as PNG."""
        self._parts.append(f"<figure>{_image(png_of(figure), caption)}<figcaption>{html.escape(caption)}</figcaption>")
        self._parts.append("</figure>")

    def gallery(self, cards: Sequence[tuple[bytes, str, str]]) -> None:
        """Cards of (PNG, heading, text) side by side."""
        inside = "".join(
            f"<div>{_image(png, head)}<strong>{html.escape(head)}</strong><p>{html.escape(text)}</p></div>"
            for png, head, text in cards
        )
        self._parts.append(f'<div class="gallery">{inside}</div>')

    def html(self) -> str:
        """The whole document."""
        title = html.escape(self.title)
        return "\n".join(
            [
                '<!doctype html><html lang="en"><head><meta charset="utf-8">',
                f'<title>{title}</title><meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
                f'<p class="note">{html.escape(NOTE)}</p>',
                *self._parts,
                "</body></html>",
            ]
        )

    def save(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        with write_aside(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")


def png_of(figure: Figure, dpi: int = 100) -> bytes:
    """A figure as PNG with its own background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{html.escape(str(value))}</td>"
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f'<td class="number">{value:.4g}</td>'
