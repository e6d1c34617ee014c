"""The process in the middle of emulated links: reads frames of one TAP device, writes them to the other,
later.

Knows TAP devices and the clock; what happens to a frame is decided in emulator.py. One process serves all
links of a lab: `python -m dysco.lab.wire` with the links as JSON on its standard input; it writes a line
when all devices are open. TAP devices have no offloads, so that every frame is one packet of at most the MTU
with a complete checksum.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import select
import signal
import struct
import sys
import time
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Final

from dysco.host import run_in
from dysco.lab.emulator import Impairment, Shaper

_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME: Final = 65536 + 64
_BURST: Final = 64  # frames of one device before the others have their turn


@dataclass(frozen=True)
class End:
    """One end of an emulated link."""

    netns: str
    device: str


@dataclass(frozen=True)
class Wire:
    """An emulated link."""

    ends: tuple[End, End]
    impairment: Impairment
    seed: int

    def record(self) -> dict[str, Any]:
        """Give it as JSON."""
        return asdict(self)


def from_record(record: dict[str, Any]) -> Wire:
    """Make a wire of its JSON."""
    one, other = (End(**end) for end in record["ends"])
    return Wire((one, other), Impairment(**record["impairment"]), record["seed"])


def _open(device: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


class Emulator:
    """All emulated links of a lab; opening raises OSError if a device is not there."""

    def __init__(self, wires: list[Wire]) -> None:
        self._out: dict[int, tuple[int, Shaper]] = {}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        for wire in wires:
            one, other = (run_in(end.netns, _open, end.device) for end in wire.ends)
            self._out[one] = (other, Shaper(wire.impairment, wire.seed, 0))
            self._out[other] = (one, Shaper(wire.impairment, wire.seed, 1))

    @property
    def counts(self) -> list[dict[str, int]]:
        """What happened to packets, for each direction of each link."""
        return [shaper.counts for _, shaper in self._out.values()]

    def run(self) -> None:
        """Move frames for ever."""
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            # select waits to the microsecond, epoll to the millisecond
            readable, _, _ = select.select(self._out, (), (), wait)
            for descriptor in readable:
                self._read(descriptor)
            self._deliver()

    def _read(self, descriptor: int) -> None:
        target, shaper = self._out[descriptor]
        for _ in range(_BURST):
            try:
                frame = os.read(descriptor, _FRAME)
            except BlockingIOError:
                return
            for at in shaper.push(len(frame), time.monotonic()):
                self._count += 1
                heapq.heappush(self._due, (at, self._count, target, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._due)
            try:
                os.write(target, frame)
            except OSError:
                continue  # the device is down, or its queue full: the frame is lost, as on any cable


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    """Serve the links that standard input describes until SIGTERM."""
    signal.signal(signal.SIGTERM, _end)
    emulator = Emulator([from_record(record) for record in json.load(sys.stdin)])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    emulator.run()


if __name__ == "__main__":
    main()
