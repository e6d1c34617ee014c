"""`dysco tun`: bring the agent of this host up, look at it, take it down."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from dysco.cli import fetch
from dysco.cli.options import ConfigOption, JsonOption, socket_of
from dysco.cli.output import emit, print_json, say
from dysco.errors import DyscoError, NoAgentError, TimedOutError

app = typer.Typer(no_args_is_help=True)

RUN: Final = Path("/run/dysco")
STOP_S: Final = 80.0  # seconds that a running agent has to reset its sessions and undo what it did
_LOOK_S: Final = 0.05


@app.command()
def up(
    config: ConfigOption,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print each change to the kernel, make none.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Run in the background; return when it is up.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the agent up. It runs until SIGTERM, and then undoes every change."""
    from dysco import config as configuration

    loaded = configuration.load(config)
    if dry_run:
        from dysco.service import kernel

        plan = kernel.plan(loaded)
        if as_json:
            print_json({"changes": plan.show(), "notes": list(plan.notes)})
            return
        for line in plan.show():
            say(line)
        for note in plan.notes:
            say(f"# {note}")
    elif detach:
        from dysco.cli import detach as background

        arguments = ["tun", "up", "--config", str(config.resolve())]
        log = loaded.run_directory / "agent.log"
        pid = background.start(arguments, log, lambda: _answers(loaded.socket))
        if as_json:
            print_json({"pid": pid, "log": str(log), "socket": str(loaded.socket)})
        else:
            say(f"{loaded.agent.name} is up (process {pid}, log {log})")
    else:
        from dysco.service.process import run

        run(loaded, config.resolve())


@app.command()
def down(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The host.toml. Default: every agent of /run/dysco.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Stop the agent and undo all it did; also what an agent that was killed has left."""
    from dysco import config as configuration
    from dysco.host.transaction import clean

    if config is not None:
        loaded = configuration.load(config)
        places = [(loaded.run_directory, socket_of(context) or loaded.socket)]
    else:
        places = [
            (journal.parent, journal.parent.with_suffix(".sock"))
            for journal in sorted(RUN.glob("*/host.journal"))
        ]
    left: list[str] = []
    for directory, socket in places:
        with contextlib.suppress(NoAgentError):
            _stop(socket)
        left += clean(directory)
        for name in ("sessions.journal", "sessions.new"):
            (directory / name).unlink(missing_ok=True)
    if as_json:
        print_json({"cleaned": [str(directory) for directory, _ in places], "left": left})
        return
    for text in left:
        say(text)
    say(f"{len(places)} agent{'s' if len(places) != 1 else ''} down")


@app.command()
def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """Say how the agent of this host is."""
    from dysco.cli import render

    emit(fetch.ask(socket_of(context), lambda agent: agent.status()), as_json, render.status)


def _answers(socket: Path) -> bool:
    try:
        fetch.ask(socket, lambda agent: agent.status(), timeout_s=1.0)
    except DyscoError:
        return False
    return True


def _stop(socket: Path) -> None:
    """Stop the agent and wait for its process to end: it undoes its changes after it has hung up."""
    pid = fetch.ask(socket, lambda agent: agent.status()).pid
    deadline = time.monotonic() + STOP_S
    with _process(pid) as process:
        fetch.ask(socket, lambda agent: agent.stop(for_good=True))
        while _answers(socket):
            if time.monotonic() > deadline:
                raise TimedOutError(f"the agent at {socket} did not stop within {STOP_S:g} s")
            time.sleep(_LOOK_S)
        # Without a descriptor the process has ended, or lives where its number means nothing here.
        if (
            process is not None
            and not select.select([process], [], [], max(0.0, deadline - time.monotonic()))[0]
        ):
            raise TimedOutError(f"the agent (process {pid}) did not end within {STOP_S:g} s")


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """Give a descriptor that becomes readable when the process ends; None if there is no such process."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
