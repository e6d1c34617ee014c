"""`dysco proxy`: the proxies of the agent's host, their pairs of sessions, and taking them out of all of these."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from dysco.cli import fetch
from dysco.cli.drain import follow, seconds
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.output import emit, print_json, say
from dysco.errors import RemoteError, TimedOutError
from dysco.views import ProxyState

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_LIST_S = 60.0  # seconds; a proxy with many sessions is asked about each

ProxyArgument = Annotated[
    str, typer.Argument(metavar="PROXY", help="The name of a [[proxy]] in host.toml.", show_default=False)
]


@app.command("list")
def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the proxies of this host and their pairs of sessions: which of them it may leave, and why not."""
    found = fetch.ask(socket_of(context), lambda agent: agent.proxies(), _LIST_S)
    emit(found, as_json, picture)


@app.command()
def drain(
    context: typer.Context,
    proxy: ProxyArgument,
    timeout: Annotated[str, typer.Option(help="How long it may take, such as 60 or 60s or 5m.")] = "60s",
    as_json: JsonOption = False,
) -> None:
    """Take a proxy out of all its sessions, and out of those that come until `dysco proxy undrain`.

    They go on between client and server; the proxy sees each end in an ordinary way, and can be restarted when it is
    empty. Sessions that need it keep it, and are named with the reason.
    """
    limit = seconds(timeout)
    reports = follow(
        socket_of(context), proxy, lambda agent: agent.drain_proxy(proxy, timeout=limit), as_json
    )
    last = asyncio.run(reports)
    if not as_json:
        for reason, count in last.reasons.items():
            say(f"{count} {'stays' if count == 1 else 'stay'}: {reason}")
    if last.failed:
        raise RemoteError(f"{proxy}: {last.failed} sessions could not leave it")
    if not last.empty:
        raise TimedOutError(f"{proxy}: {last.left} sessions are still with it after {last.after_s:.1f} s")
    say(f"{proxy} is empty: {last.moved} sessions have left it in {last.after_s:.2f} s", as_json)


@app.command()
def undrain(context: typer.Context, proxy: ProxyArgument, as_json: JsonOption = False) -> None:
    """Let a drained proxy stay in the sessions to come, as its section in host.toml says."""
    was = fetch.ask(socket_of(context), lambda agent: agent.undrain_proxy(proxy))
    if as_json:
        print_json({"proxy": proxy, "was_drained": was})
    else:
        say(f"{proxy} stays in its sessions again" if was else f"{proxy} was not drained")


def picture(proxies: list[ProxyState]) -> RenderableType:
    """Draw the proxies, each with its pairs."""
    from rich.console import Group
    from rich.text import Text

    from dysco.cli import render

    if not proxies:
        return Text("there is no [[proxy]] in this agent's configuration")
    parts: list[RenderableType] = []
    for one in proxies:
        safe = sum(pair.safe for pair in one.pairs)
        head = f"{one.name} ({one.adapter}), remove = {one.remove}{', drained' * one.drained}: "
        head += f"{len(one.pairs)} pairs, {safe} may leave it; it has left {one.removed}"
        parts.append(Text(render.clean(head)))
        if one.trouble:
            parts.append(Text(f"  cannot be asked: {render.clean(one.trouble)}"))
        if one.pairs:
            made = render.table("client", "server", "added", "may leave", "why")
            for pair in one.pairs:
                added = _added(pair.added_right, pair.added_left)
                cells = (pair.left, pair.right, added, "yes" if pair.safe else "no", pair.why)
                made.add_row(*(Text(render.clean(cell)) for cell in cells))
            parts.append(made)
    return Group(*parts)


def _added(right: int, left: int) -> str:
    return f"{right:+d} {left:+d}" if right or left else "0"
