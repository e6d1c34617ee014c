"""Devices without a kernel device behind them: a pair of sockets whose other end is the test."""

from __future__ import annotations

import contextlib
import socket

from dysco.dataplane.steer import DIVERT
from dysco.dataplane.tun import Tun
from dysco.wire import vnet
from dysco.wire.packet import Packet
from dysco.wire.tuples import FiveTuple

BUFFER = 1 << 20


class FakeTun(Tun):
    """Reads and writes as a TUN device does; `feed` and `taken` are the kernel's side."""

    def __init__(self, *, offload: bool = True) -> None:
        self.name = "fake"
        self.offloads = 15 if offload else 0
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (self._near, self._far):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.fd = self._near.fileno()

    def feed(self, packet: Packet) -> None:
        """Let the kernel have a packet for the agent."""
        self.feed_bytes(vnet.pack(packet) + packet.data if self.has_offload else bytes(packet.data))

    def feed_bytes(self, frame: bytes) -> None:
        """Let the kernel have anything for the agent."""
        self._far.send(frame)

    def taken(self) -> list[Packet]:
        """What the agent has written."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while frame := self._far.recv(1 << 17):
                frames.append(vnet.unpack(frame if self.has_offload else vnet.NO_HEADER + frame))
        return frames

    def close(self) -> None:
        """Close both ends."""
        self._near.close()
        self._far.close()

    def cut(self) -> None:
        """Close the kernel's end."""
        self._far.close()


class Steer:
    """Remembers what is diverted."""

    def __init__(self) -> None:
        self.diverted: set[tuple[FiveTuple, int]] = set()
        self.taken_out: list[FiveTuple] = []

    def add(self, match: FiveTuple, direction: int, entry: bytes = DIVERT) -> None:
        self.diverted.add((match, direction))

    def remove(self, match: FiveTuple, direction: int) -> None:
        self.diverted.discard((match, direction))

    def take_out(self, match: FiveTuple) -> None:
        self.taken_out.append(match)
