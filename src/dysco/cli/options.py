"""Options that several commands share, and what the global ones said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class Globals:
    """What stands before the command's name."""

    socket: Path | None = None


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The host.toml.", show_default=False)]


def socket_of(context: typer.Context) -> Path | None:
    """Give the control socket that was asked for; None: the client finds it."""
    found = context.find_root().obj
    return found.socket if isinstance(found, Globals) else None
