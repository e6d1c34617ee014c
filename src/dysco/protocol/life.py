"""How sessions live and end: the table of chains, FIN and RST, timers, what is given back.

Established packets never come here, so activity is what the flow table counted since it was last asked. A
timer that finds activity waits again; one that finds none ends the session. A RST is passed on and judged
by the endpoint (RFC 5961); here it only shortens the session's time, and packets that go on after it take
that back.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from dysco.protocol.chain import BACKWARD_FIN, FORWARD_FIN, Chain, Input, State
from dysco.protocol.events import SessionClosed, SessionEstablished, SessionForgotten, SessionRecord
from dysco.protocol.flow import HOST, Flow, FlowTable
from dysco.protocol.neighbours import Neighbours
from dysco.protocol.output import Output
from dysco.protocol.records import write_record
from dysco.protocol.settings import Settings
from dysco.wire.packet import ACK, RST, Located, build_tcp


class Life:
    """The sessions of an agent by key (chain id and hop index)."""

    def __init__(
        self,
        settings: Settings,
        table: FlowTable,
        neighbours: Neighbours,
        output: Output,
        counters: Counter[str],
    ) -> None:
        self.settings = settings
        self.chains: dict[bytes, Chain] = {}
        self.embryonic: dict[bytes, Chain] = {}
        self.via: Counter[bytes] = Counter()
        self.resetting: dict[bytes, int] = {}
        self._table = table
        self._neighbours = neighbours
        self._output = output
        self._counters = counters
        self._heap: list[tuple[float, bytes]] = []

    def add(self, chain: Chain, now: float) -> None:
        """Take a chain that begins; if too many are being opened, the oldest of them makes room."""
        if len(self.embryonic) >= self.settings.limits.embryonic:
            self._counters["embryonic_evicted"] += 1
            self.close(next(iter(self.embryonic.values())), "embryonic", now)
        self.chains[chain.key] = chain
        self.embryonic[chain.key] = chain
        self.arm(chain, now + self.settings.timers.embryonic)

    def established(self, chain: Chain, now: float) -> None:
        """The SYN-ACK has passed: what only an opening needs is dropped, the journal is told."""
        chain.opening = None
        self.embryonic.pop(chain.key, None)
        self._counters["established"] += 1
        self._output.event(SessionEstablished(chain.chain_id, chain.hop_index, chain.session_in))
        self._output.event(SessionRecord(chain.key, write_record(chain)))
        self.arm(chain, now + self.settings.timers.established)

    def restore(self, chain: Chain, now: float) -> bool:
        """Take up a chain from the journal with flows and ports; False if it is there already."""
        if chain.key in self.chains or chain.right is None:
            return False
        self.chains[chain.key] = chain
        for flow in (*chain.left_flows(), *chain.right_flows()):
            self._table.insert(flow)
        right = chain.right
        neighbour = None if right.peer is None else self._neighbours.by_name.get(right.peer)
        if neighbour is not None and right.opened:
            pool = self._neighbours.pool(right.tuple.src, right.tuple.dst, neighbour)
            pool.claim(right.tuple.sport, right.tuple.dport)
            self.via[right.tuple.dst] += 1
        self.arm(chain, now + self._patience(chain))
        return True

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and record of each session that is established."""
        for chain in self.chains.values():
            if chain.opening is None:
                yield chain.key, write_record(chain)

    def closing(self, chain: Chain, *, forward: bool, reset: bool, now: float) -> None:
        """A FIN or RST has passed."""
        if reset:
            changed = chain.advance(Input.RST)
        else:
            chain.fins |= FORWARD_FIN if forward else BACKWARD_FIN
            both = chain.fins == FORWARD_FIN | BACKWARD_FIN
            changed = chain.advance(Input.FIN_BOTH if both else Input.FIN_ONE)
        if not changed:
            return
        if chain.opening is not None:
            chain.opening = None
            self.embryonic.pop(chain.key, None)
        chain.active = self.traffic(chain)[0]
        self.arm(chain, now + self._patience(chain))

    def expired(self, chain: Chain, now: float) -> None:
        """The timer of a session that is not being opened."""
        packets = self.traffic(chain)[0]
        if packets != chain.active:
            chain.active = packets
            if chain.state is State.RESET:
                chain.advance(Input.ACTIVE)
            self.arm(chain, now + self._patience(chain))
            return
        reason = {State.TIME_WAIT: "closed", State.RESET: "reset"}.get(chain.state, "idle")
        self.close(chain, reason, now)

    def close(self, chain: Chain, reason: str, now: float) -> None:
        """Give everything back that a session has."""
        packets, octets = self.traffic(chain)
        for port, match in chain.flow_keys():
            flow = self._table.get(port, match)
            if flow is not None and flow.owner is chain:
                self._table.delete(port, match)
        if chain.box is not None and chain.box.right_read == HOST:
            self._table.release(chain.session_in)
        right = chain.right
        if right is not None and right.opened and right.peer is not None:
            self.via[right.tuple.dst] -= 1
            neighbour = self._neighbours.by_name.get(right.peer)
            if neighbour is not None:
                pool = self._neighbours.pool(right.tuple.src, right.tuple.dst, neighbour)
                pool.release(right.tuple.sport, right.tuple.dport, now)
        known = chain.opening is None
        chain.advance(Input.FORGET)
        self.chains.pop(chain.key, None)
        self.embryonic.pop(chain.key, None)
        self.resetting.pop(chain.key, None)
        self._counters[f"closed_{reason}"] += 1
        self._output.event(
            SessionClosed(
                chain.chain_id,
                chain.hop_index,
                chain.session_in,
                reason,
                packets,
                octets,
                None if chain.box is None else chain.box.name,
            )
        )
        if known:
            self._output.event(SessionForgotten(chain.key))

    def begin_reset(self, chain: Chain, now: float) -> None:
        """Begin to reset both ends of a session, because this agent goes down for good.

        A reset must carry the number that its receiver expects next (RFC 5961 section 3.2), which nobody here knows.
        So each end is sent an ACK far out of its window; it answers with one that says what it expects (RFC 9293
        section 3.10.7.4), and that answer is answered with the reset. Sessions that are being opened are closed.
        """
        right = chain.right
        if chain.opening is not None or right is None:
            self.close(chain, "stopped", now)
            return
        for old in (*chain.left_flows(), *chain.right_flows()):
            old.slow = True
            self._table.insert(old)
        self.resetting[chain.key] = 0
        self._output.packet(chain.left.write, build_tcp(chain.left.tuple.reversed(), 0, 0, ACK, 0))
        self._output.packet(right.write, build_tcp(right.tuple, 0, 0, ACK, 0))

    def answer_with_reset(self, chain: Chain, flow: Flow, at: Located, now: float) -> None:
        """A packet of a session that is being reset tells what both ends expect: exactly for its sender, nearly for
        the other end, which answers a reset that is only near with what it does expect (RFC 5961 section 3.2)."""
        right = chain.right
        assert right is not None
        ends = ((1, chain.left, chain.left.tuple.reversed()), (2, right, right.tuple))
        sender = next(
            (end for end in ends if (flow.port, flow.match) == (end[1].read, end[2].reversed())), None
        )
        if sender is None:
            return  # it came out of the middlebox
        for bit, facing, towards in ends:
            exact = bit == sender[0]
            seq, ack = (at.ack, at.next_seq) if exact else (at.seq, at.ack)
            self._output.packet(facing.write, build_tcp(towards, seq, ack, RST | ACK, 0))
        self.resetting[chain.key] |= sender[0]
        if self.resetting[chain.key] == 3:
            self.close(chain, "stopped", now)

    def traffic(self, chain: Chain) -> tuple[int, int]:
        """Packets and bytes that the flows of a session have counted."""
        packets = octets = 0
        for port, match in chain.flow_keys():
            flow = self._table.get(port, match)
            if flow is not None:
                packets += self._table.refresh(flow)
                octets += flow.bytes
        return packets, octets

    def arm(self, chain: Chain, deadline: float) -> None:
        """Set the one timer of a chain; an entry that is in the heap for later is left and found stale."""
        chain.deadline = deadline
        heapq.heappush(self._heap, (deadline, chain.key))

    def next_deadline(self) -> float | None:
        """The earliest deadline of all."""
        while self._heap:
            deadline, key = self._heap[0]
            chain = self.chains.get(key)
            if chain is not None and chain.deadline == deadline:
                return deadline
            heapq.heappop(self._heap)
        return None

    def due(self, now: float) -> Iterator[Chain]:
        """Take the chains whose time has come."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            yield self.chains[heapq.heappop(self._heap)[1]]

    def _patience(self, chain: Chain) -> float:
        timers = self.settings.timers
        if chain.state in (State.TIME_WAIT, State.RESET):
            return timers.time_wait
        return timers.half_closed if chain.state is State.HALF_CLOSED else timers.established
