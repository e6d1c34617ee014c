"""How a command's answer gets onto the screen: a table for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dysco.views import View

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPE_WIDTH: Final = 200  # columns; nobody cuts lines for a pipe at 80


def console(*, screen: bool = False) -> Console:
    """Make a console that takes no text for markup; into a pipe it does not cut tables, but a screen's frame."""
    from rich.console import Console

    width = None if screen or sys.stdout.isatty() else _PIPE_WIDTH
    # Markup would swallow every IPv6 address in brackets.
    return Console(markup=False, emoji=False, highlight=False, width=width)


def emit(value: Any, as_json: bool, picture: Callable[[Any], RenderableType]) -> None:
    """Print a value as JSON or as the picture that `picture` makes of it."""
    if as_json:
        print_json(value)
    else:
        console().print(picture(value))


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Print values or views as JSON on stdout: for people to read too, or one object a line."""
    text = json.dumps(value, indent=None if one_line else 2, ensure_ascii=False, default=_plain)
    print(text, flush=True)


def say(text: str, as_json: bool = False) -> None:
    """Print a sentence for people; silent where a program reads."""
    if not as_json:
        print(text, flush=True)


def _plain(value: object) -> object:
    if isinstance(value, View):
        return value.plain()
    raise TypeError(f"{value!r} is no value for JSON")
