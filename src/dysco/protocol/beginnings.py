"""The first bytes of sessions that begin or end at a program of this host, for who must tell which belong together.

A proxy's two sessions begin alike, after what it took off or put before. Each direction of a session that is watched
goes through the core until its first bytes have passed, or so many packets without them; from then on it is a flow like
any other, which a kernel may carry by itself. So the cost is bounded for each session, and none later.

Bytes are kept as they lie in the stream, from the first one on, whatever the network repeats or reorders; one that was
not seen here leaves the whole session unknown. They stay in memory until the session ends, and are written nowhere.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from dysco.protocol.chain import Chain, role
from dysco.protocol.flow import Flow, FlowTable
from dysco.protocol.settings import Settings, unwatched
from dysco.wire.numbers import MASK32
from dysco.wire.packet import Located, Packet
from dysco.wire.tuples import FiveTuple

MOST_BYTES: Final = (
    1024  # ours: longer than PROXY lines and CONNECT exchanges, and enough to tell sessions apart
)
MOST_PACKETS: Final = 64  # ours: a direction that only acknowledges is not looked at for longer
MOST_SESSIONS: Final = 4096  # ours: 8 MiB at most
_HALF: Final = 1 << 31


class Way:
    """One direction: what has come of it from its first byte on, and how much has passed."""

    __slots__ = ("_data", "_isn", "_packets", "_top")

    def __init__(self, isn: int) -> None:
        self._isn = isn
        self._data = bytearray()
        self._packets = 0
        self._top = 0

    def see(self, packet: Packet, at: Located) -> None:
        """Take a packet; `at` as it came in, with numbers of the handshake."""
        self._packets += 1
        begin = (at.seq - self._isn - 1) & MASK32
        if not at.payload_len or begin >= _HALF:
            return
        self._top = max(self._top, begin + at.payload_len)
        have = len(self._data)
        if begin <= have < begin + at.payload_len and have < MOST_BYTES:
            first = at.payload_offset + have - begin
            end = min(at.payload_offset + at.payload_len, first + MOST_BYTES - have)
            self._data += packet.data[first:end]

    @property
    def is_over(self) -> bool:
        """Whether it need not be looked at any more."""
        return len(self._data) >= MOST_BYTES or self._packets >= MOST_PACKETS

    @property
    def known(self) -> bytes | None:
        """Its first bytes; None if one of them was not seen."""
        return bytes(self._data) if len(self._data) >= min(self._top, MOST_BYTES) else None


class Beginnings:
    """First bytes of the sessions that `Settings.watch` names, by the five-tuple of the SYN at this host's stack."""

    def __init__(self, table: FlowTable) -> None:
        self._table = table
        self._known: OrderedDict[FiveTuple, tuple[Way, Way]] = OrderedDict()

    def get(self, session: FiveTuple) -> tuple[bytes, bytes] | None:
        """What who opened a session has sent first, and what was answered; None if that was not seen."""
        ways = self._known.get(session)
        if ways is None:
            return None
        sent, answered = ways[0].known, ways[1].known
        return None if sent is None or answered is None else (sent, answered)

    def begin(self, chain: Chain, settings: Settings) -> None:
        """A session is open: watch it, if it is to be and nothing of it has passed yet."""
        if settings.watch is unwatched:
            return
        session = _session(chain)
        if session is None or not settings.watch(session, role(chain) == "last"):
            return
        facing = chain.left if role(chain) == "last" else chain.right
        assert facing is not None
        halves = facing.forward, facing.backward
        flows = []
        for port, match in chain.flow_keys():
            flow = self._table.get(port, match)
            assert flow is not None
            flows.append(flow)
            half = halves[0] if chain.is_forward(flow) else halves[1]
            self._table.refresh(flow)
            if flow.top_seq >= 0 and flow.top_seq != (half.isn + 1) & MASK32:
                return
        self._known[session] = Way(halves[0].isn), Way(halves[1].isn)
        if len(self._known) > MOST_SESSIONS:
            self._known.popitem(last=False)
        for flow in flows:
            self._insert(flow, slow=True)

    def see(self, chain: Chain, flow: Flow, packet: Packet, at: Located) -> None:
        """Take a packet of a flow that is slow and whose chain is not being changed, once it is counted."""
        session = _session(chain)
        ways = None if session is None else self._known.get(session)
        if ways is not None:
            way = ways[0] if chain.is_forward(flow) else ways[1]
            way.see(packet, at)
            if not way.is_over:
                return
        self._insert(flow, slow=False)

    def forget(self, chain: Chain) -> None:
        """A session has ended."""
        session = _session(chain) if self._known else None
        if session is not None:
            self._known.pop(session, None)

    def __len__(self) -> int:
        return len(self._known)

    def _insert(self, old: Flow, *, slow: bool) -> None:
        flow = Flow(
            old.port, old.match, old.out, old.rewrite, owner=old.owner, slow=slow, translation=old.translation
        )
        flow.carry_over(old)
        self._table.insert(flow)


def _session(chain: Chain) -> FiveTuple | None:
    """The session at this host's stack, if the stack is an end of it and no middlebox stands between."""
    if chain.box is not None or role(chain) not in ("first", "last"):
        return None
    return chain.session_out if role(chain) == "last" else chain.session_in
