"""`dysco chain`: changing the chains of live sessions, with each phase shown as it comes.

The exit status is 0 if every session was changed, 5 if somebody refused one, 6 if one took too long, 1 if what is
wanted cannot be; the sentence on stderr says who and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dysco.chains import Changing, Step, check
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.output import console, print_json
from dysco.client import Dysco

app = typer.Typer(no_args_is_help=True)


class MovingState(StrEnum):
    """How the state of a replaced box comes to the new one."""

    NONE = "none"
    COPY = "copy"
    FREEZE = "freeze"


SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="SESSION",
        help="A chain id or its beginning, a five-tuple, or a match expression; then all that match.",
        show_default=False,
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for each session.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the chain before and after; change nothing.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="What is taken out is dead: do not wait until it is empty.")
]


@app.command("insert")
def insert(
    context: typer.Context,
    session: SessionArgument,
    box: Annotated[
        str, typer.Argument(metavar="BOX", help="The box to put in: PEER, PEER/BOX or an address.")
    ],
    after: Annotated[
        str, typer.Option(help="The hop behind which it shall stand. Default: the chain's first agent.")
    ] = "",
    wait: WaitOption = True,
    timeout: TimeoutOption = 30.0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put a box into the chain of live sessions."""
    terms = {"wait": wait, "timeout": timeout, "dry_run": dry_run}
    _run(context, session, as_json, lambda handle: handle.insert(box, after=after, **terms))


@app.command("remove")
def remove(
    context: typer.Context,
    session: SessionArgument,
    box: Annotated[str, typer.Argument(metavar="BOX", help="The hop to take out.")],
    wait: WaitOption = True,
    timeout: TimeoutOption = 30.0,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take a box out of the chain of live sessions."""
    terms = {"wait": wait, "timeout": timeout, "dry_run": dry_run, "force": force}
    _run(context, session, as_json, lambda handle: handle.remove(box, **terms))


@app.command("replace")
def replace(
    context: typer.Context,
    session: SessionArgument,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The hop to take out.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The box to put into its place.")],
    state: Annotated[
        MovingState,
        typer.Option(
            help="What becomes of the old box's state: copied while packets pass, or while they wait."
        ),
    ] = MovingState.NONE,
    wait: WaitOption = True,
    timeout: TimeoutOption = 30.0,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put another box into the place of one in the chain of live sessions."""
    terms = {"wait": wait, "timeout": timeout, "dry_run": dry_run, "force": force, "state": state.value}
    _run(context, session, as_json, lambda handle: handle.replace(old, new, **terms))


@app.command("set")
def set_hops(
    context: typer.Context,
    session: SessionArgument,
    hops: Annotated[
        str, typer.Argument(metavar="HOP,HOP", help="All hops between the ends, in order; '' for none.")
    ],
    wait: WaitOption = True,
    timeout: TimeoutOption = 30.0,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say which hops the chain of live sessions has; those that stay are not touched."""
    names = [name.strip() for name in hops.split(",") if name.strip()]
    terms = {"wait": wait, "timeout": timeout, "dry_run": dry_run, "force": force}
    _run(context, session, as_json, lambda handle: handle.set_hops(names, **terms))


def _run(context: typer.Context, session: str, as_json: bool, change: Any) -> None:
    ends = asyncio.run(follow(socket_of(context), as_json, lambda agent: change(agent.session(session))))
    check(ends)


async def follow(socket: Path | None, as_json: bool, begin: Callable[[Dysco], Changing]) -> list[Step]:
    """Show the steps of a change as they come; returns the last ones."""
    from dysco.cli import render
    from dysco.client import connect

    shown = None if as_json else console()
    ends: list[Step] = []
    async with connect(socket) as agent:
        async for step in begin(agent):
            if shown is None:
                print_json(step, one_line=True)
            elif (step.kind, step.phase) != ("phase", "done"):  # the end says so
                shown.print(render.step(step), soft_wrap=True)
            if step.kind == "end":
                ends.append(step)
    if shown is not None and len(ends) > 1:
        shown.print(render.outcomes(ends))
    return ends
