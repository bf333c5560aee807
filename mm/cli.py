"""The `mm` program: a table of commands, each imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

import mm
from mm.catalog import VERBS
from mm.command import OK, USAGE, configure_logging, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after `mm`; `None` takes them from the command line.

    Returns:
        Exit code: 0 done, 1 wrong input or failed work, 2 wrong usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(help_text())
        return OK if words else USAGE
    if words[0] == "--version":
        print(f"mm {mm.__version__}")
        return OK
    verb, *rest = words
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS.names(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "mm --help lists them"
        print(f"error: unknown command {verb!r}; {hint}", file=sys.stderr)
        return USAGE
    configure_logging()
    return run_command(lambda arguments: VERBS.get(verb)(arguments), rest)


def help_text() -> str:
    """What `mm --help` prints: each command with one line."""
    verbs = VERBS.in_order()
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}  {VERBS.about(verb)}" for verb in verbs]
    return "\n".join(
        [
            "usage: mm COMMAND [OPTIONS]",
            "",
            "Efficient multimodal models on one trunk.",
            "",
            "commands:",
            *lines,
            "",
            "mm COMMAND --help explains one command with an example; --debug shows the traceback of an error.",
            "example:",
            "  mm models",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
