"""State of a live session that goes from a box here to its replacement on another host, or comes from there.

Knows the kinds of state that a box can have and how each is read and put in. Must not know who asks, when, and how the
bytes travel. Bytes to be put in come from a peer that may lie: each mover checks that they speak of the session in
question, and their length. Nothing here blocks the event loop.

The order at the new host is: path handshake, then `install`, then data. A Python box must have seen the handshake; a
conntrack entry and a command do not mind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from dysco.config import Box, HostConfig
from dysco.errors import LocalError
from dysco.host.conntrack import Conntrack
from dysco.service.boxes import Device
from dysco.service.state_command import CommandMover, NotReadyError
from dysco.wire.tuples import FiveTuple

__all__ = ["CommandMover", "ConntrackMover", "NotReadyError", "PythonMover", "StateMover", "movers"]


class StateMover(Protocol):
    """Reads and puts in the state of one session of one box.

    session: the tuple of the SYN before the box. right: behind it. `install` may come again with the same bytes.
    """

    async def export(self, session: FiveTuple, right: FiveTuple) -> bytes | None:
        """Give the state, None if there is none to move. Raises NotReadyError (ask again) and DyscoError."""

    async def install(self, session: FiveTuple, right: FiveTuple, state: bytes) -> None:
        """Put in state that another host has exported. Raises DyscoError, and then nothing was put in."""


class ConntrackMover:
    """The entry of a session in the connection tracker of a namespace; None is the agent's own.

    The socket is opened for each call: a container that was restarted has a new namespace by the old name.
    """

    def __init__(self, netns: str | None) -> None:
        self.netns = netns

    async def export(self, session: FiveTuple, right: FiveTuple) -> bytes | None:
        def work() -> bytes | None:
            with Conntrack(self.netns) as tracker:
                return tracker.export(session)

        return await asyncio.to_thread(work)

    async def install(self, session: FiveTuple, right: FiveTuple, state: bytes) -> None:
        def work() -> None:
            with Conntrack(self.netns) as tracker:
                tracker.install(session, state, right)

        await asyncio.to_thread(work)


class PythonMover:
    """What a Python class keeps. It runs in the event loop, as the class does."""

    def __init__(self, device: Device, limit: int) -> None:
        self.device = device
        self.limit = limit

    async def export(self, session: FiveTuple, right: FiveTuple) -> bytes | None:
        state = self.device.export_state(session)
        if state is None:
            raise NotReadyError(f"box {self.device.name}: {session} cannot move now")
        self._check(state)
        return state

    async def install(self, session: FiveTuple, right: FiveTuple, state: bytes) -> None:
        self._check(state)
        self.device.import_state(session, state)

    def _check(self, state: bytes) -> None:
        if len(state) > self.limit:
            raise LocalError(
                f"box {self.device.name}: {len(state)} bytes of state are more than state_limit = {self.limit}"
            )


def movers(config: HostConfig, devices: Mapping[str, Device]) -> dict[str, StateMover]:
    """Make the movers of all boxes that have state to move, by name; devices: those of Python boxes."""
    found: dict[str, StateMover] = {}
    for box in config.box:
        mover = _mover(box, devices.get(box.name))
        if mover is not None:
            found[box.name] = mover
    return found


def _mover(box: Box, device: Device | None) -> StateMover | None:
    if box.state == "conntrack":
        return ConntrackMover(box.namespace if box.kind == "namespace" else None)
    if box.state == "command":
        return CommandMover(box.name, box.state_command, box.state_timeout, box.state_limit)
    if box.state == "python" and device is not None:
        return PythonMover(device, box.state_limit)
    return None
