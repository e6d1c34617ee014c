"""Commands that ask the running agent: what it has, what it does, what a reload would change."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dysco import views
from dysco.chains import Trace
from dysco.cli import fetch
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.output import console, emit, print_json, say
from dysco.errors import LocalError

if TYPE_CHECKING:
    from dysco.client import Dysco

TRACE_S: Final = 2.0  # seconds; who is on a chain is known within two round trips


def sessions(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the sessions chained through this host."""
    from dysco.cli import render

    emit(
        fetch.ask(socket_of(context), lambda agent: agent.sessions(), fetch.LIST_S), as_json, render.sessions
    )


def chains(
    context: typer.Context,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Control socket of another agent on the way; may be repeated."),
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="Only chains in this state at the first agent, such as established.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw chains: all agents on each from end to end, and the subsessions of those that were asked."""
    from dysco.cli import render

    found = views.chains(
        fetch.ask(socket, _name_and_sessions, fetch.LIST_S)
        for socket in (socket_of(context), *(others or ()))
    )
    places = fetch.ask(socket_of(context), _places)
    wanted = [one for one in found if state in (None, one.state)]
    emit([replace(one, places=places.get(one.chain_id, ())) for one in wanted], as_json, render.chains)


async def _places(agent: Dysco) -> dict[str, tuple[views.Place, ...]]:
    """Who is on each chain; a chain that ends at this moment may not answer in time, and goes without."""
    found: dict[str, tuple[views.Place, ...]] = {}
    with suppress(TimeoutError, LocalError):
        async with asyncio.timeout(TRACE_S):
            async for one in agent.stream("trace"):
                trace = Trace.of(one)
                found[trace.chain_id] = trace.places
    return found


async def _name_and_sessions(agent: Dysco) -> tuple[str, list[views.Session]]:
    return (await agent.status()).name, await agent.sessions()


def peers(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the neighbours."""
    from dysco.cli import render

    emit(fetch.ask(socket_of(context), lambda agent: agent.peers()), as_json, render.peers)


def metrics(context: typer.Context) -> None:
    """Print counters in Prometheus' text format."""
    print(fetch.ask(socket_of(context), lambda agent: agent.metrics()), end="")


def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events happen.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the last events. With --json one object a line."""
    asyncio.run(_events(socket_of(context), follow, as_json))


async def _events(socket: Path | None, follow: bool, as_json: bool) -> None:
    from dysco.client import connect

    shown = None
    if not as_json:
        from dysco.cli import render

        shown = console()
    async with connect(socket) as agent:
        async for event in agent.events(follow=follow):
            if shown is None:
                print_json(event, one_line=True)
            else:
                shown.print(render.event(event), soft_wrap=True)


def reload(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read the configuration again. Shows what differs; live sessions stay as they are."""
    answer = fetch.ask(socket_of(context), lambda agent: agent.reload(dry_run=dry_run))
    if as_json:
        print_json(answer)
        return
    for change in answer.changes:
        say(change.text)
    if not answer.changes:
        say("nothing differs")
    elif dry_run:
        say("nothing was changed (--dry-run)")
