"""`dysco splice`: taking an unmodified proxy out of a live session, with each phase shown as it comes."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from dysco.chains import check
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.reconfigure import TimeoutOption, follow


def splice(
    context: typer.Context,
    left: Annotated[
        str,
        typer.Argument(
            metavar="LEFT",
            help="The session that ends at the proxy: chain id or its beginning, five-tuple, or match expression.",
            show_default=False,
        ),
    ],
    right: Annotated[
        str,
        typer.Argument(metavar="RIGHT", help="The session that begins at the proxy.", show_default=False),
    ],
    added_right: Annotated[
        int,
        typer.Option(
            help="Bytes that the proxy has written more to the right than it has read from the left."
        ),
    ] = 0,
    added_left: Annotated[
        int,
        typer.Option(
            help="Bytes that the proxy has written more to the left than it has read from the right."
        ),
    ] = 0,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Take the proxy of this host out of the session that passes it; both its sockets see an ordinary end."""
    terms = {"added_right": added_right, "added_left": added_left, "timeout": timeout}
    ends = asyncio.run(follow(socket_of(context), as_json, lambda agent: agent.splice(left, right, **terms)))
    check(ends)
