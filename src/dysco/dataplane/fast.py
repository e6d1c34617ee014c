"""The flow table of the in-kernel data path: established sessions are rewritten where they arrive or leave.

Knows the layout of a flow in fast.bpf.h. Every flow also stands in the Python table that this one extends: what the
programs hand over (SYN, FIN, RST, IP options, fragments, what a Python box sees, what is `slow`) is found there as in
the other mode, and a flow goes from kernel to agent, or back, by being inserted anew.

    UNDERLAY -> HOST       up the stack          HOST -> UNDERLAY   to the wire
    UNDERLAY -> FORWARD    into the kernel's forwarding, as though it had arrived on the session TUN
    UNDERLAY -> UNDERLAY   to the wire           UNDERLAY -> box in a namespace of its own     by our veth pair
    all others             the agent             such a box -> UNDERLAY                        to the wire
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from dysco.dataplane.steer import DIVERT, IN, NOTHING, OUT, Tally
from dysco.dataplane.table import PythonFlowTable, Steer
from dysco.protocol.flow import FORWARD, HOST, UNDERLAY, UNKNOWN, Flow, FlowKey, Translation
from dysco.wire.numbers import MASK32
from dysco.wire.tuples import FiveTuple, trusted

TO_AGENT: Final = 0
TO_STACK: Final = 1
TO_BOX: Final = 2
TO_WIRE: Final = 3
TO_DEVICE: Final = 4

_FLOW = struct.Struct("=BBBB12xIIII16s16s4sHHIIQQ")
_HOP = struct.Struct("=II")
_HOP_AT: Final = 4  # hop_ifindex, and the box's device behind it
_SWAPS: Final = sys.byteorder == "little"
_KNOWN_SEQ: Final = 1
_KNOWN_ACK: Final = 2
_TELLS: Final = 5  # FINs are carried, and told
_NO_DELTAS: Final = (0, 0, 0, 0)
_MOST_AHEAD: Final = 1 << 26  # ours: more bytes than are under way in any session


class Counting(Steer, Protocol):
    """What this table needs of `dysco.dataplane.steer.Steering`."""

    def tally(self, match: FiveTuple, direction: int) -> Tally: ...

    def all_tallies(self) -> dict[tuple[FiveTuple, int], Tally]: ...

    def carried(
        self, entries: Sequence[tuple[bytes, int]], *, take_away: bool = False
    ) -> list[tuple[int, int]]: ...

    def stop(self, match: FiveTuple, direction: int) -> Tally: ...


class BoxDevice(NamedTuple):
    """A device of a box in a namespace of its own: its index there, and that of our end of the veth pair."""

    ifindex: int
    veth_ifindex: int


class KernelFlowTable(PythonFlowTable):
    """Implements `dysco.protocol.flow.FlowTable` with the kernel's help."""

    def __init__(
        self,
        steer: Counting,
        addresses: tuple[bytes, ...],
        port_range: tuple[int, int],
        boxes: Mapping[int, BoxDevice] | None = None,
    ) -> None:
        """`boxes`: by port."""
        super().__init__(steer, addresses, port_range)
        self._kernel = steer
        self._boxes = dict(boxes or {})
        self._all: dict[tuple[FiveTuple, int], Tally] | None = None
        # What `refresh` has seen last; nothing is kept of flows that nobody has asked for and that began at no number.
        self._seen: dict[Flow, Tally] = {}

    def insert(self, flow: Flow) -> None:
        """Keep a flow; the next packet is treated as it says."""
        old = self.get(flow.port, flow.match)
        if old is not None and self.action(old) != TO_AGENT:
            packets, octets, seq, ack = old.packets, old.bytes, old.top_seq, old.top_ack
            self._bring_up(old, self._kernel.stop(flow.match, self._direction(flow.port, flow.match)))
            self._seen.pop(old, None)
            if old.owner is flow.owner and old is not flow:
                # What passed since the core has asked and carried over.
                flow.packets += old.packets - packets
                flow.bytes += old.bytes - octets
                flow.top_seq, flow.top_ack = (
                    _further(flow.top_seq, old.top_seq, seq),
                    _further(flow.top_ack, old.top_ack, ack),
                )
        super().insert(flow)
        if (flow.packets or flow.top_seq >= 0 or flow.top_ack >= 0) and self.action(flow) != TO_AGENT:
            # Where the kernel begins: later, what it has done since cannot be told from what the agent has heard.
            self._seen[flow] = Tally(flow.packets, flow.bytes, _known(flow.top_seq), _known(flow.top_ack))

    def adopt(self, flow: Flow) -> None:
        """Keep a flow that the kernel has let in by itself, as it is there."""
        self.ports[flow.port][flow.match] = flow

    def delete(self, port: int, match: FiveTuple) -> None:
        """Forget a flow."""
        flow = self.get(port, match)
        if flow is not None:
            self._seen.pop(flow, None)
        super().delete(port, match)

    def refresh(self, flow: Flow) -> int:
        """Add what the kernel has counted since it was last asked."""
        if self.action(flow) != TO_AGENT:
            direction = self._direction(flow.port, flow.match)
            if self._all is None:
                self._bring_up(flow, self._kernel.tally(flow.match, direction))
            elif (tally := self._all.get((flow.match, direction))) is not None:
                self._bring_up(flow, tally)
        return flow.packets

    def forget(self, port: int, match: bytes) -> None:
        """Forget a flow in whose place the kernel has let in another one."""
        flow = self.get(port, match)
        if flow is not None:
            self._seen.pop(flow, None)
        super().forget(port, match)

    def carried(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        """Packets and bytes that the kernel has carried by each of these flows."""
        entries = self._entries_of(keys)
        if self._all is None:
            return self._kernel.carried(entries)
        return [self._all.get((trusted(match), side), NOTHING)[:2] for match, side in entries]

    def drop(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        """Take away what the kernel has let in by itself, and nobody has adopted; packets and bytes of each.

        What has not carried a FIN is of a new session of which nobody has heard yet, and stays.
        """
        return self._kernel.carried(self._entries_of(keys), take_away=True)

    def may_rest(self, flow: Flow) -> bool:
        """Whether the kernel carries a flow and has counted all that was counted of it."""
        if self.action(flow) == TO_AGENT:
            return False
        seen = self._seen.get(flow, NOTHING)
        return (
            (flow.packets, flow.bytes) == (seen.packets, seen.bytes)
            and flow.top_seq in (UNKNOWN, seen.top_seq)
            and flow.top_ack in (UNKNOWN, seen.top_ack)
        )

    def rest(self, flow: Flow) -> None:
        """Give up the object of a flow that the kernel goes on carrying."""
        self._seen.pop(flow, None)
        super().rest(flow)

    @contextmanager
    def refresh_all(self) -> Iterator[None]:
        """Ask the kernel once for all flows."""
        self._all = self._kernel.all_tallies()
        try:
            yield
        finally:
            self._all = None

    def _bring_up(self, flow: Flow, now: Tally) -> None:
        if now == NOTHING:
            return  # the entry is gone, or nothing has passed, ever
        before, self._seen[flow] = self._seen.get(flow, NOTHING), now
        flow.packets += now.packets - before.packets
        flow.bytes += now.bytes - before.bytes
        if now.top_seq is not None:
            flow.top_seq = _further(flow.top_seq, now.top_seq, before.top_seq)
        if now.top_ack is not None:
            flow.top_ack = _further(flow.top_ack, now.top_ack, before.top_ack)

    def action(self, flow: Flow) -> int:
        """What the programs may do with packets of a flow."""
        if flow.slow or (flow.translation is not None and not flow.translation.is_plain):
            return TO_AGENT
        if flow.port == HOST:
            return TO_WIRE if flow.out == UNDERLAY else TO_AGENT
        if flow.port == UNDERLAY:
            if flow.out == HOST:
                return TO_STACK if flow.rewrite.dst in self._addresses else TO_WIRE
            if flow.out == UNDERLAY:
                return TO_WIRE
            if flow.out == FORWARD:
                return TO_BOX
            if flow.out in self._boxes:
                return TO_DEVICE
        elif flow.port in self._boxes and flow.out == UNDERLAY:
            return TO_WIRE
        return TO_AGENT

    def _entry(self, flow: Flow) -> bytes:
        action = self.action(flow)
        if action == TO_AGENT:
            return DIVERT
        entry = pack(flow, action)
        if action != TO_DEVICE:
            return entry
        box = self._boxes[flow.out]
        hop = _HOP.pack(box.veth_ifindex, box.ifindex)
        return entry[:_HOP_AT] + hop + entry[_HOP_AT + len(hop) :]

    def _entries_of(self, keys: Sequence[FlowKey]) -> list[tuple[bytes, int]]:
        return [(match, self._direction(port, match)) for port, match in keys]

    def _direction(self, port: int, match: bytes) -> int:
        if port == HOST:
            return OUT
        if port == UNDERLAY:
            return IN
        return port if port in self._boxes else 0

    def _is_wanted(self, match: FiveTuple, direction: int) -> bool:
        if direction in self._boxes:
            return self._has(direction, match)
        return super()._is_wanted(match, direction)


def pack(flow: Flow, action: int) -> bytes:
    """A flow as the programs know it: they go on counting where it stands."""
    new, numbers, seq, ack = flow.rewrite, flow.translation, flow.top_seq, flow.top_ack
    half = (len(new) - 4) // 2
    address_delta = flow.address_delta
    deltas = _NO_DELTAS if numbers is None else [value & MASK32 for value in _values(numbers)]
    return _FLOW.pack(
        action,
        numbers is not None,
        (_KNOWN_SEQ if seq >= 0 else 0) | (_KNOWN_ACK if ack >= 0 else 0),
        _TELLS,
        *deltas,
        new[:half],
        new[half:-4],
        new[-4:],
        _sum(address_delta),
        _sum((flow.full_delta - address_delta) % 0xFFFF),
        max(seq, 0),
        max(ack, 0),
        flow.packets,
        flow.bytes,
    )


def _further(ours: int, kernel: int, before: int | None = None) -> int:
    """Where a flow stands, by what the agent knows and what the kernel has seen; a negative number is unknown.

    The kernel began where the agent stood and may have gone on by gigabytes since it was asked last (`before`), so
    halves of the number space say nothing. What the agent has heard from an anchor is ahead by a window at most.
    """
    if ours < 0 or kernel < 0:
        return max(ours, kernel)
    return kernel if ours == before or (ours - kernel) & MASK32 >= _MOST_AHEAD else ours


def _known(top: int) -> int | None:
    return top if top >= 0 else None


def _values(numbers: Translation) -> tuple[int, int, int, int]:
    return numbers.seq_delta, numbers.ack_delta, numbers.tsval_delta, numbers.tsecr_delta


def _sum(delta: int) -> int:
    """A sum of big-endian words as the sum of the same bytes in words of this machine (RFC 1071 section 2)."""
    return (delta & 0xFF) << 8 | delta >> 8 if _SWAPS else delta
