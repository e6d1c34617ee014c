"""How a command's answer gets onto the screen: a table for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPE_WIDTH: Final = 200  # columns; nobody cuts lines for a pipe at 80


def console() -> Console:
    """Make a console that neither guesses at markup nor cuts tables when it writes into a pipe."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def emit(value: Any, as_json: bool, picture: Callable[[Any], RenderableType]) -> None:
    """Print a value as JSON or as the picture that `picture` makes of it."""
    if as_json:
        print_json(value)
    else:
        console().print(picture(value))


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Print JSON on stdout: for people to read too, or one object a line."""
    print(json.dumps(value, indent=None if one_line else 2, ensure_ascii=False), flush=True)


def say(text: str, as_json: bool = False) -> None:
    """Print a sentence for people; silent where a program reads."""
    if not as_json:
        print(text, flush=True)
