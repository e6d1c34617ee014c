"""The flow table of the Python data path: a dictionary for each port that packets are read from.

Keeps the kernel's steering in step: what a flow reads from HOST must be diverted when it leaves the host, and what
a flow reads from UNDERLAY must be diverted when it arrives, unless it is a subsession, which the reserved port
range diverts by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from dysco.dataplane.steer import DIVERT, IN, OUT
from dysco.protocol.flow import HOST, UNDERLAY, AtRest, Flow, FlowKey, Nobody
from dysco.wire.tuples import FiveTuple, trusted


class Steer(Protocol):
    """What the table needs of `dysco.dataplane.steer.Steering`."""

    def add(self, match: FiveTuple, direction: int, entry: bytes = DIVERT) -> None: ...

    def remove(self, match: FiveTuple, direction: int) -> None: ...

    def take_out(self, match: FiveTuple) -> None: ...


class PythonFlowTable:
    """Implements `dysco.protocol.flow.FlowTable`; the hot loop looks into `ports` itself."""

    def __init__(self, steer: Steer, addresses: tuple[bytes, ...], port_range: tuple[int, int]) -> None:
        self.ports: defaultdict[int, dict[bytes, Flow]] = defaultdict(dict)
        self._steer = steer
        self._addresses = frozenset(addresses)
        self._low, self._high = port_range
        self._captured: set[FiveTuple] = set()
        self._expected: set[FiveTuple] = set()
        self.at_rest: AtRest = Nobody()

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

    def adopt(self, flow: Flow) -> None:
        """Keep a flow that the kernel has let in by itself for an agent that left this to it; now it comes here."""
        self.insert(flow)

    def expect(self, match: FiveTuple) -> None:
        """The kernel has given a SYN with this tuple to a box, and sends it on by itself."""
        self._expected.add(match)

    def drop(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        """Take away what the kernel has let in by itself, and nobody has adopted; nothing is known of it here."""
        for port, plain in keys:
            match = trusted(plain)
            direction = self._direction(port, match)
            if direction:
                self._steer.remove(match, direction)
        return [(0, 0)] * len(keys)

    def forget(self, port: int, match: bytes) -> None:
        """Forget a flow in whose place the kernel has let in another one."""
        self.ports[port].pop(match, None)

    def carried(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        """This table's flows are carried by the agent."""
        return [(0, 0)] * len(keys)

    def delete(self, port: int, match: FiveTuple) -> None:
        """Forget a flow."""
        if self.ports[port].pop(match, None) is not None:
            direction = self._direction(port, match)
            if direction == OUT and match in self._captured:
                self._steer.add(match, OUT)
            elif direction:
                self._steer.remove(match, direction)

    def get(self, port: int, match: bytes) -> Flow | None:
        """The flow, if there is one."""
        flow = self.ports[port].get(match)
        return self.ports[port].get(match) if flow is None and self.at_rest.wakes(match) else flow

    def may_rest(self, flow: Flow) -> bool:
        """This table's flows are carried by the agent."""
        return False

    def rest(self, flow: Flow) -> None:
        """Give up the object of a flow that the kernel goes on carrying."""
        del self.ports[flow.port][flow.match]

    def capture(self, match: FiveTuple) -> None:
        """Divert a SYN that is expected."""
        self._take_out(match)
        if match not in self._captured:
            self._captured.add(match)
            if not self._has(HOST, match):
                self._steer.add(match, OUT)

    def expects(self, match: FiveTuple) -> bool:
        """Whether a SYN with this tuple is inside a box."""
        return match in self._captured or match in self._expected

    def release(self, match: FiveTuple) -> None:
        """Expect it no more."""
        self._take_out(match)
        if match in self._captured:
            self._captured.discard(match)
            if not self._has(HOST, match):
                self._steer.remove(match, OUT)

    def _take_out(self, match: FiveTuple) -> None:
        if match in self._expected:
            self._expected.discard(match)
            self._steer.take_out(match)

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
            return match in self._captured or self._has(HOST, match)
        return direction == IN and self._direction(UNDERLAY, match) == IN and self._has(UNDERLAY, match)

    def _has(self, port: int, match: FiveTuple) -> bool:
        """Whether a flow is in the table, or of a session at rest."""
        return match in self.ports[port] or self.at_rest.has(match)

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
