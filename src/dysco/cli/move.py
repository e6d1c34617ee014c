"""`dysco move`: this host is reached at another address, and its sessions go on, with each phase shown as it comes."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Annotated

import typer

from dysco.chains import check
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.reconfigure import DryRunOption, TimeoutOption, WaitOption, follow
from dysco.errors import ConfigError


def move(
    context: typer.Context,
    address: Annotated[
        list[str],
        typer.Option(
            "--address",
            help="The new address, which a device of this host has; once for each family that moves.",
            show_default=False,
        ),
    ],
    wait: WaitOption = True,
    timeout: TimeoutOption = 30.0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let this host be reached at another address; all its sessions go on, as client, server and middlebox."""
    for one in address:
        try:
            ip_address(one)
        except ValueError:
            raise ConfigError(f"--address {one}: not an IPv4 or IPv6 address") from None
    terms = {"wait": wait, "timeout": timeout, "dry_run": dry_run}
    ends = asyncio.run(follow(socket_of(context), as_json, lambda agent: agent.move(*address, **terms)))
    check(ends)
