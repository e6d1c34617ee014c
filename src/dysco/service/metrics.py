"""Metrics in Prometheus' text format, for `dysco metrics` and an optional HTTP address."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from dysco.errors import HostError

if TYPE_CHECKING:
    from dysco.service.agent import AgentService

_REQUEST_S: Final = 5.0


def text(agent: AgentService) -> str:
    """Everything that is counted, and how much there is now."""
    lines: list[str] = []
    _counters(lines, "dysco_core_total", "What the protocol core counted.", agent.core.counters)
    _counters(lines, "dysco_channel_total", "Datagrams of the control channel by what became of them.",
              agent.channel.counters)  # fmt: skip
    _counters(lines, "dysco_dataplane_total", "What the data path counted.", agent.forwarder.counters)
    _counters(
        lines, "dysco_steering_total", "What the kernel programs counted.", agent.kernel.steering.counters()
    )
    _counters(lines, "dysco_agent_total", "What the agent survived.", {"internal_errors": agent.faults})
    boxes = ((name, device.counters) for name, device in agent.devices.by_name.items())
    _labelled(lines, "dysco_box_total", "What Python middleboxes did.", boxes)
    _gauge(lines, "dysco_sessions", "Sessions at this agent.", len(agent.core))
    _gauge(lines, "dysco_sessions_at_rest", "Sessions of which a record is kept.", agent.core.at_rest)
    _gauge(lines, "dysco_flows", "Entries of the flow table, but for sessions at rest.", len(agent.table))
    _gauge(lines, "dysco_ports", "Pairs of ports that subsessions opened here hold.", _ports(agent))
    _gauge(
        lines, "dysco_peers_up", "Peers with an association.", sum(one.up for one in agent.channel.status())
    )
    _gauge(lines, "dysco_loop_lag_seconds", "How late the event loop was when last looked at.", agent.lag_s)
    return "\n".join(lines) + "\n"


async def listen(address: str, content: Callable[[], str]) -> Callable[[], Awaitable[None]]:
    """Serve the text at ADDRESS:PORT over HTTP; returns what stops it. Raises HostError."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError),
        ):
            async with asyncio.timeout(_REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                found = head.split(b" ", 2)[1:2] in ([b"/metrics"], [b"/"])
                body = content().encode() if found else b"not found\n"
                status = b"200 OK" if found else b"404 Not Found"
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body
                )
                await writer.drain()

    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(serve, host.strip("[]"), int(port))
    except OSError as error:
        raise HostError(f"agent.metrics: {address}: {error.strerror}") from error

    async def stop() -> None:
        server.close()

    return stop


def _ports(agent: AgentService) -> int:
    """Pairs that subsessions hold, without those that lie ready for the kernel."""
    return agent.core.ports_held() - (0 if agent.opening is None else agent.opening.laid)


def _counters(lines: list[str], name: str, help_: str, values: Mapping[str, int]) -> None:
    lines += [f"# HELP {name} {help_}", f"# TYPE {name} counter"]
    lines += [f'{name}{{what="{what}"}} {value}' for what, value in sorted(values.items())]


def _labelled(
    lines: list[str], name: str, help_: str, values: Iterable[tuple[str, Mapping[str, int]]]
) -> None:
    lines += [f"# HELP {name} {help_}", f"# TYPE {name} counter"]
    for box, counters in values:
        lines += [f'{name}{{box="{box}",what="{what}"}} {value}' for what, value in sorted(counters.items())]


def _gauge(lines: list[str], name: str, help_: str, value: float) -> None:
    lines += [f"# HELP {name} {help_}", f"# TYPE {name} gauge", f"{name} {value}"]
