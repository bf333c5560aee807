"""`mm app`: the toolkit in a browser, one tab per modality. Nothing leaves the machine.

Uploads and results lie in a temporary folder of the app's own: each file is deleted an hour after its last use, the
folder when the app ends. Fonts and scripts are Gradio's own files, served from here; its usage reports are off.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mm
from mm.app.guard import sentence
from mm.app.models import shelf
from mm.app.ui import STYLE, gradio
from mm.catalog import TABS
from mm.command import OK, CommandParser

logger = logging.getLogger(__name__)

UPLOAD_LIMIT = "200mb"
"""Largest upload; a CT volume of 512 x 512 x 400 voxels has about 100 MB when packed."""
QUEUE_LIMIT = 24
"""Requests that may wait; more are refused with a sentence."""
SIDE_BY_SIDE = 2
"""Requests of one kind that run at once; a model itself serves one at a time."""
CLEANING_S, KEPT_S = 600, 3600
"""How often uploads are looked through, and how long one is kept."""
ORDER = ("ask", "prune", "adaptive", "search", "video", "audio", "cad", "ct")
"""Tabs that tell one story stand together; others follow as they are registered."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

ABOUT = (
    f"**mm {mm.__version__}** runs on this machine; nothing you upload leaves it. The weights called *tiny* are "
    "demonstrations trained on procedural data: they show what a method does, not how good a full-size model is."
)


def main(argv: list[str]) -> int:
    """Run the app until it is interrupted."""
    parser = CommandParser(
        "app",
        about="Open the toolkit in a browser: one tab per modality, with the demonstration weights or your own.",
        example="mm app --port 7860",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    parser.add_argument("--tabs", nargs="+", metavar="TAB", help=f"only these (default: {', '.join(tab_names())})")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers (default: off)")
    parser.add_argument("--allow", nargs="+", default=[], metavar="MODEL", help="models that other machines may load")
    arguments = parser.parse_args(argv)
    with running(
        arguments.tabs, host=arguments.host, port=arguments.port, share=arguments.share, allow=arguments.allow
    ) as app:
        print(f"open {app.share_url or app.local_url}  (stop with Ctrl+C)", file=sys.stderr, flush=True)
        app.block_thread()
    return OK


@contextmanager
def running(
    tabs: Sequence[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    allow: Sequence[str] = (),
) -> Iterator[Any]:
    """The app while it serves; afterwards its temporary folder is gone.

    Args:
        tabs: Names from `mm.catalog.TABS`; all by default.
        host: Address to listen on.
        port: Port, or the first free one from 7860.
        share: Ask Gradio's servers for a public link.
        allow: Models that visitors from other machines may load besides the shipped ones.

    Raises:
        OSError: the port is taken.
        ValueError: an unknown tab.
    """
    if share or host not in LOOPBACK:
        shelf.restrict(list(allow))
    with private_folder():
        gr = gradio()
        app = build(tabs)
        app.queue(max_size=QUEUE_LIMIT, default_concurrency_limit=SIDE_BY_SIDE)
        app.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,  # an error that no guard caught shows as "Error"
            max_file_size=UPLOAD_LIMIT,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api", "settings"],
            _frontend=False,  # skips a probe that gives up after three seconds, too soon for a busy machine
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=STYLE,
        )
        try:
            yield app
        finally:
            app.close(verbose=False)


def build(tabs: Sequence[str] | None = None) -> Any:
    """The page as `gr.Blocks`; a tab whose libraries are missing says which extra to install."""
    gr = gradio()
    with gr.Blocks(title="mm", analytics_enabled=False, delete_cache=(CLEANING_S, KEPT_S)) as page:
        gr.Markdown(ABOUT)
        with gr.Tabs():
            for name in tabs or tab_names():
                title, _, about = TABS.about(name).partition(": ")
                writer = TABS.get(name)
                with gr.Tab(title, id=name, elem_id=f"tab_{name}"):
                    gr.Markdown(f"{about[:1].upper()}{about[1:]}.")
                    try:
                        writer()
                    except ImportError as error:
                        gr.Markdown(f"This tab is not available: {sentence(error)}")
    return page


def tab_names() -> list[str]:
    """All tabs in the order of the page."""
    known = [name for name in ORDER if name in TABS]
    return known + [name for name in TABS.in_order() if name not in known]


@contextmanager
def private_folder() -> Iterator[Path]:
    """Gradio's files go to one new folder, readable by this user only, that is deleted in the end."""
    names = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")
    before = {name: os.environ.get(name) for name in names}
    folder = Path(tempfile.mkdtemp(prefix="mm_app_"))
    os.environ |= dict(zip(names, (str(folder), "False"), strict=True))
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
