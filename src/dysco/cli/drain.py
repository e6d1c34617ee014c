"""`dysco drain` and `dysco undrain`: freeing a box of its sessions, with a bar that shows how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dysco.chains import Drained
from dysco.cli import fetch
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.output import console, print_json, say
from dysco.errors import RemoteError, TimedOutError

if TYPE_CHECKING:
    from rich.progress import Progress

    from dysco.client import Dysco

BoxArgument = Annotated[
    str,
    typer.Argument(
        metavar="BOX", help="A box of this host, this host, a peer, or PEER/BOX.", show_default=False
    ),
]


def drain(
    context: typer.Context,
    box: BoxArgument,
    to: Annotated[str, typer.Option(help="The box that takes them. Default: they go on without one.")] = "",
    timeout: Annotated[str, typer.Option(help="How long it may take, such as 60 or 60s or 5m.")] = "60s",
    as_json: JsonOption = False,
) -> None:
    """Free a box of its sessions, and keep new ones away from it until `dysco undrain`."""
    limit = seconds(timeout)
    reports = follow(socket_of(context), box, lambda agent: agent.drain(box, to=to, timeout=limit), as_json)
    last = asyncio.run(reports)
    if last.reasons and not as_json:
        for reason, count in last.reasons.items():
            say(f"{count} stay: {reason}")
    if last.failed:
        raise RemoteError(f"{last.box}: {last.failed} sessions could not leave")
    if not last.empty:
        raise TimedOutError(f"{last.box}: {last.left} sessions are still there after {timeout}")
    say(f"{last.box} is empty: {last.moved} sessions have left it in {last.after_s:.2f} s", as_json)


def undrain(context: typer.Context, box: BoxArgument, as_json: JsonOption = False) -> None:
    """Let a drained box have new sessions again."""
    was = fetch.ask(socket_of(context), lambda agent: agent.undrain(box))
    if as_json:
        print_json({"box": box, "was_drained": was})
    else:
        say(f"{box} gets new sessions again" if was else f"{box} was not drained")


async def follow(
    socket: Path | None, what: str, ask: Callable[[Dysco], AsyncIterator[Drained]], as_json: bool
) -> Drained:
    """Show the reports of a drain as a bar, or as JSON, and give the last."""
    from dysco.client import connect

    bar = None if as_json else _bar()
    last: Drained | None = None
    with bar or nullcontext():
        task = None if bar is None else bar.add_task(what, total=None)
        async with connect(socket) as agent:
            async for last in ask(agent):
                if bar is None or task is None:
                    print_json(last, one_line=True)
                else:
                    total = last.moved + last.failed + last.left
                    bar.update(task, completed=last.moved + last.failed, total=total or None)
    assert last is not None
    return last


def _bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console(), transient=True)


def seconds(text: str) -> float:
    """Read a time of a command line."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    digits, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        found = float(digits) * unit
    except ValueError:
        found = 0.0
    if not 0 < found <= 3600:
        raise typer.BadParameter(f"{text!r} is no time such as 60s, and not more than an hour")
    return found
