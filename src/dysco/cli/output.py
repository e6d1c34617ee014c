"""How a command's answer gets onto the screen: a table for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dysco.views import View

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_LONG: Final = 500  # lines that a console takes half a second for
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
        return
    made = picture(value)
    text = None if sys.stdout.isatty() and not _is_long(made) else as_text(made)
    if text is None:
        console().print(made)
    else:
        print(text, flush=True)


def as_text(made: RenderableType) -> str | None:
    """A table, a text or several of them without colours, much sooner than by a console; None: something else."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    match made:
        case str():
            return made
        case Text():
            return made.plain
        case Table():
            return _table(made)
        case Group():
            parts = [as_text(one) for one in made.renderables]
            return None if None in parts else "\n".join(str(part) for part in parts)
        case _:
            return None


def _table(made: Table) -> str:
    """As the console shows it, but for its colours and its width: no line is cut."""
    from rich.cells import cell_len

    columns = []
    for one in made.columns:
        cells = [as_text(cell) or "" for cell in (one.header, *one.cells)]
        sizes = [cell_len(cell) for cell in cells]
        width = max(sizes)
        spaces = [" " * (width - size) for size in sizes]
        right = one.justify == "right"
        columns.append([s + c if right else c + s for c, s in zip(cells, spaces, strict=True)])
    head, *rows = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([head, "─" * max(map(cell_len, (head, *rows))), *rows])


def _is_long(made: RenderableType) -> bool:
    return _lines(made) > _LONG


def _lines(made: RenderableType) -> int:
    from rich.console import Group
    from rich.table import Table

    match made:
        case Table():
            return made.row_count
        case Group():
            return sum(map(_lines, made.renderables))
        case _:
            return 1


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
