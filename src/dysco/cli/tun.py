"""`dysco tun`: bring the agent of this host up, look at it, take it down."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)
