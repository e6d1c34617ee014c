"""How sessions live and end: the table of chains, FIN and RST, timers, what is given back.

Established packets never come here, so activity is what the flow table counted since it was last asked. A
timer that finds activity waits again; one that finds none ends the session. `states` has the machine; this
does its actions.

One heap holds the timers. A chain has one deadline and one entry that counts, which comes up then or sooner;
entries that it left behind are thrown out when they come up, or all together when they are the greater part: a
session that was to live two hours and was closed at once must not be remembered for two hours.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from dysco.protocol.chain import BACKWARD_FIN, FORWARD_FIN, Chain, Facing, Opening
from dysco.protocol.events import SessionClosed, SessionEstablished, SessionForgotten, SessionRecord
from dysco.protocol.flow import FORGOTTEN, Flow, FlowTable
from dysco.protocol.neighbours import Neighbours
from dysco.protocol.output import Output
from dysco.protocol.records import write_record
from dysco.protocol.resting import Chains
from dysco.protocol.settings import Settings
from dysco.protocol.states import GRACE_S, Action, Default, Input, State, step
from dysco.wire.numbers import FAR, MASK32
from dysco.wire.packet import ACK, RST, Located, Packet, build_tcp
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple

RESET_S: Final = 5.0  # ours: how long the ends of a session may take to answer so that they can be reset
ASK_S: Final = (
    0.6  # ours: Linux answers what is out of the window once in 0.5 s (net.ipv4.tcp_invalid_ratelimit)
)
_LEAST_STALE: Final = 1024
_REASONS: Final = {State.TIME_WAIT: "closed", State.PROBED: "reset", State.DENIED: "denied"}


class _Why(NamedTuple):
    """Why a session is being reset, until when at most, and whether until then."""

    reason: str
    until: float
    stays: bool


_STOPPED: Final = _Why("stopped", math.inf, False)


class Life:
    """The sessions of an agent by key (chain id and hop index).

    `opening_over` and `no_association` belong to whoever makes chains; `Setup` puts its own here. `established`,
    `before_close` and `after_restore` belong to whoever changes them.
    """

    def __init__(
        self,
        settings: Settings,
        table: FlowTable,
        neighbours: Neighbours,
        output: Output,
        counters: Counter[str],
    ) -> None:
        self.settings = settings
        self.chains = Chains(table, lambda: self.settings.limits.awake)
        self.embryonic: dict[bytes, Chain] = {}
        self.via: Counter[bytes] = Counter()
        self.resetting: dict[bytes, int] = {}
        self._why_reset: dict[bytes, _Why] = {}
        self.opening_over: Callable[[Chain, Opening], None] = lambda chain, opening: None
        self.no_association: Callable[[Chain, float], None] = lambda chain, now: None
        self.established: Callable[[Chain, float], None] = lambda chain, now: None
        self.before_close: Callable[[Chain, float], None] = lambda chain, now: None
        self.after_restore: Callable[[Chain, float], None] = lambda chain, now: None
        self._table = table
        self._neighbours = neighbours
        self._output = output
        self._counters = counters
        self._heap: list[tuple[float, bytes]] = []

    def add(self, chain: Chain, now: float) -> bool:
        """Take a chain that begins; what is being opened makes room, what is open never. False: no room."""
        limits = self.settings.limits
        if len(self.chains) >= limits.sessions and not self.embryonic:
            return False
        if len(self.chains) >= limits.sessions or len(self.embryonic) >= limits.embryonic:
            self._counters["embryonic_evicted"] += 1
            self.close(next(iter(self.embryonic.values())), "evicted", now)
        self.chains[chain.key] = chain
        self.embryonic[chain.key] = chain
        self.arm(chain, now + self.settings.timers.embryonic)
        return True

    def begin_anew(self, is_stale: Callable[[Opening, Facing], bool], now: float) -> None:
        """Forget sessions that begin here and whose SYN has gone where no answer will come from: TCP repeats it.

        Nothing is agreed on yet, so that is simpler than to change their chains. A host further on cannot do it: the
        header of what is repeated was seen there. What the first chain has left there is replaced, or expires.
        """
        for chain in list(self.embryonic.values()):
            opening, right = chain.opening, chain.right
            begins_here = not chain.left.peer  # or at this host's own hop before
            if begins_here and opening is not None and right is not None and is_stale(opening, right):
                self.close(chain, "replaced", now)

    def advance(self, chain: Chain, what: Input, now: float) -> bool:
        """Give a chain an input and do what the table says; True if it was more than a repetition."""
        found = step(chain.state, what)
        if isinstance(found, Default):
            if found is Default.BUG:
                self._counters["bug"] += 1
            return False
        action, new = found
        old, chain.state = chain.state, new
        if action is Action.CLOSE:
            chain.state = old
            self.close(chain, _REASONS.get(old, "idle" if chain.opening is None else "embryonic"), now)
            return True
        if action is Action.FAIL:
            self.no_association(chain, now)
            return True
        if action is Action.ESTABLISH:
            self._established(chain)
            self.established(chain, now)
        elif action is Action.RECORD:
            self._output.event(SessionRecord(chain.key, write_record(chain)))
        elif action is Action.PROBE:
            self._probe(chain)
        if action in (Action.MARK, Action.PROBE, Action.RECORD):
            chain.active = self.traffic(chain)[0]
        self.arm(chain, now + self._patience(chain))
        return True

    def _established(self, chain: Chain) -> None:
        self._end_opening(chain)
        self._counters["established"] += 1
        self._output.event(SessionEstablished(chain.chain_id, chain.hop_index, chain.session_in))
        self._output.event(SessionRecord(chain.key, write_record(chain)))

    def _end_opening(self, chain: Chain) -> None:
        opening, chain.opening = chain.opening, None
        self.embryonic.pop(chain.key, None)
        if opening is not None:
            self.opening_over(chain, opening)

    def record(self, chain: Chain) -> None:
        """What the journal has of an open session has changed."""
        if chain.opening is None:
            self._output.event(SessionRecord(chain.key, write_record(chain)))

    def restore(self, chain: Chain, now: float) -> bool:
        """Take up a chain from the journal with flows and ports; False if it is there already."""
        right = chain.right
        if chain.key in self.chains or right is None:
            return False
        self.chains[chain.key] = chain
        for flow in (*chain.left_flows(), *chain.right_flows()):
            flow.top_seq = flow.top_ack = FORGOTTEN
            self._table.insert(flow)
        if right.opened:
            self.claim(right)
        self.after_restore(chain, now)
        self._counters["restored"] += 1
        self.arm(chain, now + self._patience(chain))
        return True

    def claim(self, facing: Facing) -> None:
        """Take the ports of a subsession that a journal remembers."""
        subsession = facing.tuple
        self.via[subsession.dst] += 1
        neighbour = None if facing.peer is None else self._neighbours.by_name.get(facing.peer)
        if neighbour is not None:
            pool = self._neighbours.pool(subsession.src, subsession.dst, neighbour)
            pool.claim(subsession.sport, subsession.dport)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and record of each session that is established."""
        return self.chains.records()

    def closing(self, chain: Chain, *, forward: bool, reset: bool, now: float) -> None:
        """A FIN or RST has passed."""
        if reset:
            # What answers a probe with RST is dead: it must not look like activity.
            chain.active += 1
            self.advance(chain, Input.RST, now)
            return
        chain.fins |= FORWARD_FIN if forward else BACKWARD_FIN
        both = chain.fins == FORWARD_FIN | BACKWARD_FIN
        self.advance(chain, Input.FIN_BOTH if both else Input.FIN_ONE, now)

    def expired(self, chain: Chain, now: float) -> None:
        """The timer of a session."""
        if chain.key in self._why_reset:
            why = self._why_reset[chain.key]
            if now >= why.until:
                self.close(chain, why.reason, now)
            else:
                self._ask_ends(chain)
                self.arm(chain, min(now + ASK_S, why.until))
            return
        if chain.opening is not None:
            self.advance(chain, Input.TIMER, now)
            return
        active = self.traffic(chain)[0] != chain.active
        self.advance(chain, Input.ACTIVE if active else Input.IDLE, now)

    def close(self, chain: Chain, reason: str, now: float) -> None:
        """Give everything back that a session has."""
        if chain.state is State.CLOSED:
            return
        packets, octets = self.traffic(chain)
        for port, match in chain.flow_keys():
            flow = self._table.get(port, match)
            if flow is not None and flow.owner is chain:
                self._table.delete(port, match)
        self.before_close(chain, now)
        if chain.right is not None and chain.right.opened:
            self.leave(chain.right.tuple, now)
        known = chain.opening is None
        self._end_opening(chain)
        chain.state = State.CLOSED
        self.chains.pop(chain.key)
        self.resetting.pop(chain.key, None)
        self._why_reset.pop(chain.key, None)
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

    def leave(self, subsession: FiveTuple, now: float) -> None:
        """Give back the ports of a subsession that was opened here."""
        self.via[subsession.dst] -= 1
        if not self.via[subsession.dst]:
            del self.via[subsession.dst]
        self._neighbours.release(subsession, now)

    def reset(self, chain: Chain, reason: str, now: float, *, stays: bool = False) -> None:
        """End a session that cannot go on; it is gone when its ends have answered, or soon.

        stays: not when they have answered, for they may hear of each other past this chain, and expect more by then.
        """
        self._why_reset[chain.key] = _Why(reason, now + RESET_S, stays)
        self._begin_reset(chain, now)
        self.arm(chain, now + ASK_S)

    def stop(self, chain: Chain, now: float) -> None:
        """Begin to reset a session, for this agent goes down for good; it is gone when its ends have answered."""
        self._why_reset.pop(chain.key, None)
        self._begin_reset(chain, now)

    def _begin_reset(self, chain: Chain, now: float) -> None:
        """Begin to reset both ends of a session.

        A reset must carry the number that its receiver expects next (RFC 5961 section 3.2), which nobody here knows.
        So each end is sent an ACK far behind its window; it answers with one that says what it expects (RFC 9293
        section 3.10.7.4), and that answer is answered with the reset. Sessions that are being opened are closed.
        """
        right = chain.right
        if chain.opening is not None or right is None:
            self.close(chain, "stopped", now)
            return
        for new in (*chain.left_flows(), *chain.right_flows()):
            old = self._table.get(new.port, new.match)
            if old is not None:
                self._table.refresh(old)
                new.carry_over(old)
            new.slow = True
            self._table.insert(new)
        self.resetting[chain.key] = 0
        self._ask_ends(chain)

    def _ask_ends(self, chain: Chain) -> None:
        """Ask the ends of a session that is being reset what they expect, but for those that have said it.

        Hosts on the way count these numbers, and anchors with two paths go by them: so they are near the true ones.
        """
        right, answered = chain.right, self.resetting[chain.key]
        assert right is not None
        for bit, facing, towards in ((1, chain.left, chain.left.tuple.reversed()), (2, right, right.tuple)):
            if not answered & bit:
                self._output.packet(facing.write, self._question(chain, facing, towards))

    def _question(self, chain: Chain, facing: Facing, towards: FiveTuple) -> Packet:
        """Ask with the numbers that packets to this end have come to, if that is known."""
        for one in (*chain.left_flows(), *chain.right_flows()):
            flow = self._table.get(one.port, one.match)
            if flow is None or (flow.out, flow.rewrite) != (facing.write, towards):
                continue
            if flow.top_seq >= 0 and flow.top_ack >= 0:
                packet = build_tcp(flow.match, (flow.top_seq - FAR) & MASK32, flow.top_ack, ACK, 0)
                apply(packet, flow)
                return packet
        return question(facing, towards)

    def answer_with_reset(self, chain: Chain, flow: Flow, at: Located, now: float) -> None:
        """A packet of a session that is being reset tells what both ends expect.

        It says so exactly for its sender, and nearly for the other end, which answers a reset that is only near with
        what it does expect (RFC 5961 section 3.2). A RST is never answered.
        """
        right = chain.right
        assert right is not None
        ends = ((1, chain.left, chain.left.tuple.reversed()), (2, right, right.tuple))
        sender = next(
            (end for end in ends if (flow.port, flow.match) == (end[1].read, end[2].reversed())), None
        )
        if sender is None:
            return  # it came out of the middlebox
        for bit, facing, towards in ends if not at.flags & RST else ():
            exact = bit == sender[0]
            if not exact and self.resetting[chain.key] & bit:
                continue  # it has had its own
            seq, ack = (at.ack, at.next_seq) if exact else (at.seq, at.ack)
            self._output.packet(facing.write, build_tcp(towards, seq, ack, RST | ACK, 0))
        self.resetting[chain.key] |= sender[0]
        why = self._why_reset.get(chain.key, _STOPPED)
        if self.resetting[chain.key] == 3 and not why.stays:
            self.close(chain, why.reason, now)

    def traffic(self, chain: Chain) -> tuple[int, int]:
        """Packets and bytes that the flows of a session have counted."""
        packets = octets = 0
        if self.chains.is_at_rest(chain.key):
            for count, size in self._table.carried(tuple(chain.flow_keys())):
                packets, octets = packets + count, octets + size
            return packets, octets
        for port, match in chain.flow_keys():
            flow = self._table.get(port, match)
            if flow is not None and flow.owner is chain:
                packets += self._table.refresh(flow)
                octets += flow.bytes
        return packets, octets

    def arm(self, chain: Chain, deadline: float) -> None:
        """Set the one timer of a chain; an entry of it that comes up sooner is left, and put off then."""
        chain.deadline = deadline
        if deadline >= chain.queued:
            return
        chain.queued = deadline
        heapq.heappush(self._heap, (deadline, chain.key))
        if len(self._heap) > _LEAST_STALE + 2 * len(self.chains):
            self._heap = list(self.chains.timers())
            heapq.heapify(self._heap)

    def next_deadline(self) -> float | None:
        """The earliest deadline of all."""
        while self._heap:
            at, key = self._heap[0]
            queued, deadline = self.chains.timer(key)
            if queued != at:
                heapq.heappop(self._heap)
            elif deadline != at:
                self.chains[key].queued = deadline
                heapq.heapreplace(self._heap, (deadline, key))
            else:
                return at
        return None

    def let_rest(self, now: float) -> None:
        """Let chains rest about which there is nothing to be done, if there are many."""
        self.chains.let_rest(now, lambda deadline, key: heapq.heappush(self._heap, (deadline, key)))

    def due(self, now: float) -> Iterator[Chain]:
        """Take the chains whose time has come."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            chain = self.chains[heapq.heappop(self._heap)[1]]
            chain.queued = math.inf
            yield chain

    def _probe(self, chain: Chain) -> None:
        """Ask the endpoints beside this agent whether they live; see `states`."""
        self._counters["probed_after_reset"] += 1
        right = chain.right
        if chain.left.peer is None:
            self._output.packet(chain.left.write, build_tcp(chain.left.tuple.reversed(), 0, 0, ACK, 0))
        if right is not None and right.peer is None:
            self._output.packet(right.write, build_tcp(right.tuple, 0, 0, ACK, 0))

    def _patience(self, chain: Chain) -> float:
        timers, state = self.settings.timers, chain.state
        if state is State.OPENING or state is State.AT_BOX:
            return timers.embryonic
        if state is State.ESTABLISHED:
            return timers.established
        if state is State.HALF_CLOSED:
            return timers.half_closed
        if state is State.WAITING:
            return timers.association_wait
        return min(GRACE_S, timers.time_wait) if state is State.RESET else timers.time_wait


def question(facing: Facing, towards: FiveTuple) -> Packet:
    """Ask an end where it stands, if nobody knows: far out of its window (RFC 9293 section 3.10.7.4)."""
    isns = facing.forward.isn, facing.backward.isn
    own, its = isns if towards == facing.tuple else isns[::-1]
    return build_tcp(towards, (own - FAR) & MASK32, (its + 1) & MASK32, ACK, 0)
