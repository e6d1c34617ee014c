"""`dysco doctor`: what this machine can do for an agent, and what to do where it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dysco.cli import fetch
from dysco.cli.options import JsonOption, socket_of
from dysco.cli.output import print_json, say
from dysco.errors import DyscoError, ExitStatus, NoAgentError

if TYPE_CHECKING:
    from dysco.config import HostConfig
    from dysco.host.doctor import Finding

_RUN: Final = Path("/run/dysco")
_SIGNS: Final = {"good": "ok  ", "note": "note", "bad": "BAD "}


def doctor(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The host.toml: its devices, boxes and peers are looked at too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine this machine. Each finding with its remedy; exit status 1 if something keeps an agent from working."""
    from dysco.config import load

    findings = []
    for finding in _examine(load(config) if config is not None else None, socket_of(context)):
        findings.append(finding)
        say(f"{_SIGNS[finding.level]}  {finding.subject}: {finding.text}", as_json)
        if finding.remedy is not None:
            say(f"      -> {finding.remedy}", as_json)
    bad = any(finding.level == "bad" for finding in findings)
    if as_json:
        print_json({"ok": not bad, "findings": [dataclasses.asdict(finding) for finding in findings]})
    if bad:
        raise typer.Exit(ExitStatus.FAILED)


def _examine(config: HostConfig | None, socket: Path | None) -> Iterator[Finding]:
    from dysco.host import doctor as host

    yield from host.machine()
    yield host.pinning(config.run_directory if config is not None else _RUN)
    if config is not None:
        yield from host.devices(config.agent.underlay)
        kernel_box = any(box.kind == "kernel" for box in config.box)
        yield from host.switches(kernel_box=kernel_box, session_tun=config.tun.session)
        others = [
            host.Neighbour(peer.name, address.packed) for peer in config.peer for address in peer.addresses
        ]
        yield from host.peers(others, config.agent.control_port)
    yield from _agent(socket or (config.socket if config is not None else None))


def _agent(socket: Path | None) -> Iterator[Finding]:
    from dysco.host.doctor import Finding

    try:
        status = fetch.ask(socket, lambda agent: agent.status())
        peers = fetch.ask(socket, lambda agent: agent.peers())
    except NoAgentError:
        yield Finding("agent", "note", "none runs here", "dysco tun up --config HOST.TOML")
        return
    except DyscoError as error:
        yield Finding("agent", "bad", str(error), "look into its log, and start it again")
        return
    yield Finding("agent", "good", f"{status.name} runs, mode {status.mode}")
    for peer in peers:
        if not peer.up:
            failure = peer.last_failure or "no association"
            remedy = (
                "install one version of dysco on both hosts"
                if "speaks version" in failure
                else "see that its agent runs, that UDP gets through, and that its certificate is of the same CA"
            )
            yield Finding(f"peer {peer.name}", "bad", failure, remedy)
        elif peer.mtu is not None and peer.mtu < status.mtu:
            text = f"packets of {peer.mtu} bytes reach it, {status.mtu} leave here: sessions are clamped"
            yield Finding(f"peer {peer.name}", "note", text, "a larger MTU on the way is faster")
        else:
            yield Finding(f"peer {peer.name}", "good", "associated, and speaks our version")
