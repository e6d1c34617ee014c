"""The flow table: what the core decides and a data plane applies.

A `Flow` says of one direction of one session at one place what becomes of its packets. The core inserts and
deletes flows; the Python data path, the in-kernel fast path and the simulator each implement `FlowTable`.

Ports name where packets come from and go to; the service maps them to devices:

    HOST      read: what the host's stack (applications, or networks behind a gateway) sent and was captured
              write: given to the host's stack, or sent on the wire, as though it had come from the wire
    UNDERLAY  read: subsession packets addressed to this host; write: subsession packets of this host
    LOOP      write only: looked up again as though read from UNDERLAY (two hops of a chain on one host)
    FORWARD   write only: handed to the kernel to be forwarded through a middlebox in the agent's own
              namespace; what it forwards is captured and read from HOST
    FIRST_BOX and up: the left (even) and right (odd) device of a middlebox that has devices of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from dysco.wire.numbers import MASK32
from dysco.wire.packet import ACK, Located
from dysco.wire.tuples import FiveTuple

HOST: Final = 0
UNDERLAY: Final = 1
LOOP: Final = 2
FORWARD: Final = 3
FIRST_BOX: Final = 4
FlowKey = tuple[int, bytes]
"""Port that a flow is read from, and its match, which need not be of the type of matches."""

UNKNOWN: Final = -1
FORGOTTEN: Final = -2
"""As UNKNOWN, but packets have passed before: the session comes from a journal."""
_HALF: Final = 1 << 31


class Translation:
    """What a flow adds to numbers besides addresses and ports. All modulo 2**32.

    window_shift: how far windows are shifted to the left; negative: to the right. strip_sack: take SACK blocks out.
    """

    __slots__ = ("ack_delta", "seq_delta", "strip_sack", "tsecr_delta", "tsval_delta", "window_shift")

    def __init__(
        self,
        seq_delta: int = 0,
        ack_delta: int = 0,
        tsval_delta: int = 0,
        tsecr_delta: int = 0,
        window_shift: int = 0,
        strip_sack: bool = False,
    ) -> None:
        self.seq_delta = seq_delta
        self.ack_delta = ack_delta
        self.tsval_delta = tsval_delta
        self.tsecr_delta = tsecr_delta
        self.window_shift = window_shift
        self.strip_sack = strip_sack

    @property
    def is_plain(self) -> bool:
        """Whether it only adds to numbers, which every data path can do at full speed."""
        return not self.window_shift and not self.strip_sack

    def __add__(self, other: Translation) -> Translation:
        """Both, one after the other."""
        return Translation(
            self.seq_delta + other.seq_delta,
            self.ack_delta + other.ack_delta,
            self.tsval_delta + other.tsval_delta,
            self.tsecr_delta + other.tsecr_delta,
            self.window_shift + other.window_shift,
            self.strip_sack or other.strip_sack,
        )


class Flow:
    """One direction of a session at one place: packets `match` read from `port` leave as `rewrite` by `out`.

    address_delta and full_delta are 16-bit ones-complement sums to add to a checksum (RFC 1624): of the
    addresses alone, and of addresses and ports. `slow` hands every packet to the core instead. `owner` is
    whatever the core needs to find its own state again; a data plane never looks at it. All but the
    counters is fixed once made: to change a flow, insert another under the same port and match.

    top_seq and top_ack are the number behind the last byte that was read and the highest acknowledgement, both as
    they came in: what a reconfiguration must know at once, also of an idle session. UNKNOWN until a packet passed.
    """

    __slots__ = (
        "address_delta", "bytes", "full_delta", "match", "out", "owner", "packets", "port", "rewrite", "slow",
        "top_ack", "top_seq", "translation",
    )  # fmt: skip

    def __init__(
        self,
        port: int,
        match: FiveTuple,
        out: int,
        rewrite: FiveTuple,
        *,
        owner: object = None,
        slow: bool = False,
        translation: Translation | None = None,
    ) -> None:
        self.port = port
        self.match = match
        self.out = out
        self.rewrite = rewrite
        self.owner = owner
        self.slow = slow
        self.translation = translation
        self.packets = 0
        self.bytes = 0
        self.top_seq = UNKNOWN
        self.top_ack = UNKNOWN
        old, new = bytes(match), bytes(rewrite)
        self.address_delta = _delta(old[:-4], new[:-4])
        self.full_delta = _delta(old, new)

    def count(self, at: Located, size: int) -> None:
        """Count a packet of `size` bytes that is neither SYN nor RST."""
        self.packets += 1
        self.bytes += size
        if self.top_seq < 0 or (at.next_seq - self.top_seq) & MASK32 < _HALF:
            self.top_seq = at.next_seq
        if at.flags & ACK and (self.top_ack < 0 or (at.ack - self.top_ack) & MASK32 < _HALF):
            self.top_ack = at.ack

    def does_as(self, other: Flow) -> bool:
        """Whether it does the same with packets as another flow of the same match."""
        if (self.out, self.rewrite, self.slow) != (other.out, other.rewrite, other.slow):
            return False
        return self._adds() == other._adds()

    def _adds(self) -> tuple[int, ...]:
        one = self.translation or Translation()
        return (
            one.seq_delta,
            one.ack_delta,
            one.tsval_delta,
            one.tsecr_delta,
            one.window_shift,
            one.strip_sack,
        )

    def carry_over(self, old: Flow) -> None:
        """Go on counting where another flow of the same match has come to."""
        self.packets, self.bytes = old.packets, old.bytes
        self.top_seq, self.top_ack = old.top_seq, old.top_ack


class AtRest(Protocol):
    """Sessions of which the table has no flows, for nothing is to be done about them (see `resting`)."""

    def has(self, match: FiveTuple) -> bool:
        """Whether one of them has a flow with this tuple."""
        ...

    def wakes(self, match: bytes) -> bool:
        """Wake the one that has a flow with this tuple; True if the table has it now."""
        ...


class Nobody:
    """No session is at rest."""

    def has(self, match: FiveTuple) -> bool:
        return False

    def wakes(self, match: bytes) -> bool:
        return False


class FlowTable(Protocol):
    """Keeps flows by (port, match). An insert under a key that is there replaces that flow.

    at_rest: whose flows the kernel carries while the table does not have them.
    """

    at_rest: AtRest

    def insert(self, flow: Flow) -> None: ...

    def delete(self, port: int, match: FiveTuple) -> None:
        """Forget a flow; no error if it is not there."""
        ...

    def get(self, port: int, match: bytes) -> Flow | None: ...

    def adopt(self, flow: Flow) -> None:
        """Keep a flow that the kernel has let in by itself, as it is there."""
        ...

    def expect(self, match: FiveTuple) -> None:
        """The kernel has given a SYN with this tuple to a box and sends it on itself; until `capture` or `release`."""
        ...

    def drop(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        """Take away what the kernel has let in by itself, and nobody has adopted; packets and bytes of each."""
        ...

    def forget(self, port: int, match: bytes) -> None:
        """Forget a flow in whose place the kernel has let in another one."""
        ...

    def carried(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        """Packets and bytes that the kernel has carried by each of these flows, adopted or not."""
        ...

    def may_rest(self, flow: Flow) -> bool:
        """Whether the kernel carries a flow and has counted all that was counted of it."""
        ...

    def rest(self, flow: Flow) -> None:
        """Give up the object of a flow that may rest; `adopt` takes it back."""
        ...

    def capture(self, match: FiveTuple) -> None:
        """Have the kernel divert SYNs with this tuple to HOST although no flow exists yet; idempotent."""
        ...

    def release(self, match: FiveTuple) -> None:
        """Undo `capture`; no error if there was none. Does not touch a flow with that key."""
        ...

    def refresh(self, flow: Flow) -> int:
        """Bring `packets`, `bytes`, `top_seq` and `top_ack` up to date and return `packets`."""
        ...


def _delta(old: bytes, new: bytes) -> int:
    # 2**16 is 1 modulo 0xffff: the difference of the sums of words is the difference of the numbers.
    return _SUMS[(int.from_bytes(new, "big") - int.from_bytes(old, "big")) % 0xFFFF]


# Eight of these stand in each session: every value is there once, instead of 32 bytes each time.
_SUMS: Final = tuple(range(0xFFFF))
