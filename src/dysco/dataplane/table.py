"""The flow table of the Python data path: a dictionary for each port that packets are read from.

Keeps the kernel's steering in step: what a flow reads from HOST must be diverted when it leaves the host, and what
a flow reads from UNDERLAY must be diverted when it arrives, unless it is a subsession, which the reserved port
range diverts by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from dysco.dataplane.steer import DIVERT, IN, OUT
from dysco.protocol.flow import HOST, UNDERLAY, Flow
from dysco.wire.tuples import FiveTuple


class Steer(Protocol):
    """What the table needs of `dysco.dataplane.steer.Steering`."""

    def add(self, match: FiveTuple, direction: int, entry: bytes = DIVERT) -> None: ...

    def remove(self, match: FiveTuple, direction: int) -> None: ...


class PythonFlowTable:
    """Implements `dysco.protocol.flow.FlowTable`; the hot loop looks into `ports` itself."""

    def __init__(self, steer: Steer, addresses: tuple[bytes, ...], port_range: tuple[int, int]) -> None:
        self.ports: defaultdict[int, dict[bytes, Flow]] = defaultdict(dict)
        self._steer = steer
        self._addresses = frozenset(addresses)
        self._low, self._high = port_range
        self._captured: set[FiveTuple] = set()

    def move(self, addresses: tuple[bytes, ...]) -> None:
        """Know the host's own addresses; flows that are there are left as they are."""
        self._addresses = frozenset(addresses)

    def __len__(self) -> int:
        """How many flows there are."""
        return sum(len(flows) for flows in self.ports.values())

    def insert(self, flow: Flow) -> None:
        """Keep a flow, and have the kernel divert its packets."""
        self.ports[flow.port][flow.match] = flow
        direction = self._direction(flow.port, flow.match)
        if direction:
            self._steer.add(flow.match, direction, self._entry(flow))

    def delete(self, port: int, match: FiveTuple) -> None:
        """Forget a flow."""
        if self.ports[port].pop(match, None) is not None:
            direction = self._direction(port, match)
            if direction == OUT and match in self._captured:
                self._steer.add(match, OUT)
            elif direction:
                self._steer.remove(match, direction)

    def get(self, port: int, match: FiveTuple) -> Flow | None:
        """The flow, if there is one."""
        return self.ports[port].get(match)

    def capture(self, match: FiveTuple) -> None:
        """Divert a SYN that is expected."""
        if match not in self._captured:
            self._captured.add(match)
            if match not in self.ports[HOST]:
                self._steer.add(match, OUT)

    def expects(self, match: FiveTuple) -> bool:
        """Whether a SYN with this tuple is inside a box."""
        return match in self._captured

    def release(self, match: FiveTuple) -> None:
        """Expect it no more."""
        if match in self._captured:
            self._captured.discard(match)
            if match not in self.ports[HOST]:
                self._steer.remove(match, OUT)

    def divert_only(self, entries: Iterable[tuple[FiveTuple, int]]) -> int:
        """Of what the kernel diverts, remove what no flow and no capture asks for; give how many there were.

        For an agent that has taken over the maps of another one and has restored its sessions.
        """
        stale = [entry for entry in entries if not self._is_wanted(*entry)]
        for match, direction in stale:
            self._steer.remove(match, direction)
        return len(stale)

    def _is_wanted(self, match: FiveTuple, direction: int) -> bool:
        if direction == OUT:
            return match in self.ports[HOST] or match in self._captured
        return direction == IN and match in self.ports[UNDERLAY] and self._direction(UNDERLAY, match) == IN

    def refresh(self, flow: Flow) -> int:
        """Counters of this table are always up to date."""
        return flow.packets

    def refresh_all(self) -> AbstractContextManager[None]:
        """Within this context, counters are those of its beginning: for whoever asks for many."""
        return nullcontext()

    def _entry(self, flow: Flow) -> bytes:
        """What the kernel does with packets of a flow."""
        return DIVERT

    def _direction(self, port: int, match: FiveTuple) -> int:
        if port == HOST:
            return OUT
        if port == UNDERLAY and not (self._low <= match.dport <= self._high and match.dst in self._addresses):
            return IN
        return 0
