"""An agent as a process of its own: signals, the event loop, logs, and the service manager. `dysco tun up` runs it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

from dysco.config.models import HostConfig
from dysco.dataplane.bpf import programs
from dysco.dataplane.steer import OBJECT
from dysco.errors import DyscoError, HostError
from dysco.policy.parse import parse
from dysco.service import logs, pages
from dysco.service.agent import AgentService
from dysco.service.logs import log


def preload() -> None:
    """Import and read what every agent needs, for those that are forked from this process."""
    import uvloop  # noqa: F401

    programs(OBJECT)
    parse("tcp")


async def serve(config: HostConfig, path: Path | None, ready: Callable[[], None] = lambda: None) -> None:
    """Run an agent until SIGTERM, SIGINT or the `stop` command; SIGHUP reloads. Raises what starting raises.

    A second SIGTERM or SIGINT ends it without the resets that are still to come.
    """
    loop = asyncio.get_running_loop()
    service = AgentService(config, path)
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await service.reload()
        except DyscoError as error:
            log("reload_refused", reason=str(error))

    def hup() -> None:
        task = loop.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def end() -> None:
        if service.stopped.is_set():
            service.hurry()
        service.stopped.set()

    async with service:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        loop.add_signal_handler(signal.SIGHUP, hup)
        pages.gather()
        _notify("READY=1")
        ready()
        await service.stopped.wait()
        _notify("STOPPING=1")
    if service.failure is not None:
        raise HostError(f"the agent has stopped because a device failed: {service.failure.strerror}")


def run(config: HostConfig, path: Path | None) -> None:
    """Run an agent on the loop that the configuration names, with logs as it says. Raises DyscoError."""
    listener = logs.start(config.agent.log_format, config.agent.log_level)
    # Sessions are long-lived and have few cycles: looking through all of them often only costs.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        if config.agent.loop == "uvloop":
            import uvloop

            uvloop.run(serve(config, path))
        else:
            asyncio.run(serve(config, path))
    finally:
        listener.stop()


def _notify(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
