"""How a chain begins at one agent: policy, chain header, middlebox, next hop, and refusal (DESIGN section 4).

    SYN from the host   --policy-->  chain with hops           --> next hop
    SYN with a header   --HMAC, replay, permission-->  last hop: the host;  else the box, or straight on
    SYN out of the box  --tuple, tag, fingerprint, API-->      --> next hop

The next hop gets the SYN with a chain header before its payload. A SYN that is repeated repeats ports,
chain id and header. What cannot go on is refused to the left, hop by hop, until the first agent does what
the policy says.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable

from dysco.protocol.boxes import AtBox
from dysco.protocol.chain import Chain, Facing, Input, Opening, State, facing_agent, facing_host
from dysco.protocol.events import SentNatively, SessionOpened, SetupRefused
from dysco.protocol.flow import HOST, UNDERLAY, Flow, FlowTable
from dysco.protocol.life import Life
from dysco.protocol.neighbours import SELF, Neighbour, Neighbours
from dysco.protocol.output import Output
from dysco.protocol.settings import Decide, LocalBox, Settings
from dysco.wire import chain_header
from dysco.wire.chain_header import CHAIN_ID_LEN, ChainHeader, Egress, Hop
from dysco.wire.messages import SynRefused
from dysco.wire.options import clamp_mss, strip_tag, syn_options
from dysco.wire.packet import ACK, RST, Located, Packet, build_tcp, complete, locate, set_payload
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple

_HEADERS = {4: 40, 6: 60}
_NATIVE_TRIES = 64


class Setup:
    """Makes chains; `Life` keeps them."""

    def __init__(
        self,
        settings: Settings,
        table: FlowTable,
        neighbours: Neighbours,
        life: Life,
        output: Output,
        counters: Counter[str],
        decide: Decide,
        rng: Callable[[int], bytes],
    ) -> None:
        self.settings = settings
        self.decide = decide
        self._table = table
        self._neighbours = neighbours
        self._life = life
        self._output = output
        self._counters = counters
        self._rng = rng
        self._at_box = AtBox(table, rng)
        self._waiting: dict[str, list[Chain]] = {}
        self._held: dict[tuple[int, FiveTuple], Chain] = {}

    def syn(self, port: int, packet: Packet, at: Located, flow: Flow | None, now: float) -> None:
        """Take a SYN without ACK from any port."""
        self._counters["syn"] += 1
        complete(packet)
        if flow is not None and isinstance(flow.owner, Chain):
            chain = flow.owner
            if chain.state in (State.TIME_WAIT, State.RESET) and at.seq != chain.isn:
                self._life.close(chain, "replaced", now)
            else:
                self._again(chain, flow, packet, at)
                return
        held = self._held.get((port, at.five_tuple))
        if held is not None:
            self._counters["syn_again"] += 1
            if held.isn == at.seq:
                return  # the first one waits for an association and will go
            self._drop(held, "replaced", now)
        if port == UNDERLAY:
            self._from_underlay(packet, at, now)
            return
        chain_at_box = self._at_box.match(port, packet, at, now)
        if chain_at_box is not None:
            self._out_of_box(chain_at_box, packet, at, now)
        elif port == HOST:
            self._from_host(packet, at, now)
        else:
            self._counters["unknown_session"] += 1

    def syn_ack(self, chain: Chain, flow: Flow, packet: Packet, at: Located, now: float) -> None:
        """Pass a SYN-ACK on to the left; the first one establishes the session here."""
        complete(packet)
        clamp_mss(packet, self._mss_limit(chain, at.family, now), at)
        apply(packet, flow, at)
        flow.packets += 1
        flow.bytes += len(packet.data)
        self._output.packet(flow.out, packet)
        opening = chain.opening
        if chain.advance(Input.SYN_ACK) and opening is not None:
            self._at_box.forget(chain, opening)
            self._life.established(chain, now)

    def associated(self, peer: str, now: float) -> None:
        """An association has come up: what waited for it goes on."""
        for chain in self._waiting.pop(peer, ()):
            self._held.pop(_entrance(chain), None)
            opening = chain.opening
            if chain.state is State.WAITING and opening is not None and opening.syn is not None:
                syn, opening.syn = opening.syn, None
                self._forward(chain, opening, syn, now)

    def expired(self, chain: Chain, now: float) -> None:
        """The timer of a chain that is being opened."""
        if chain.state is State.WAITING:
            self._counters["no_association"] += 1
            self._fail(chain, self.settings.name, "no association with the next hop", now)
        else:
            self._drop(chain, "embryonic", now)

    def refused_by(self, peer: str, message: SynRefused, now: float) -> None:
        """A next hop, or one behind it, refuses the chain."""
        for chain in list(self._life.embryonic.values()):
            right = chain.right
            if chain.chain_id == message.chain_id and right is not None and right.peer == peer:
                self._counters["refused_by_peer"] += 1
                self._fail(chain, peer, message.reason, now)

    def set_hops(self, session: FiveTuple, hops: tuple[Hop, ...]) -> bool:
        """Put other hops behind the box that holds this session's SYN."""
        chain = self._at_box.waiting_for(session)
        if chain is None or chain.opening is None:
            return False
        chain.opening.hops = (chain.opening.hops[0], *hops)
        return True

    def expect(self, session_in: FiveTuple, session_out: FiveTuple) -> bool:
        """Know the SYN that leaves the box by what the box said."""
        chain = self._at_box.waiting_for(session_in)
        if chain is None or chain.box is None or "api" not in chain.box.match:
            return False
        self._at_box.expect(chain, session_out)
        return True

    def _again(self, chain: Chain, flow: Flow, packet: Packet, at: Located) -> None:
        """A repeated SYN goes the way of the first; another SYN on a live tuple is the endpoint's affair."""
        self._counters["syn_again"] += 1
        header = b"" if chain.opening is None else chain.opening.header
        if flow.port == UNDERLAY and chain_header.peek(packet.data[at.payload_offset :]) is not None:
            set_payload(
                packet,
                bytes(
                    packet.data[at.payload_offset + chain_header.length(packet.data[at.payload_offset :]) :]
                ),
            )
        strip_tag(packet)
        apply(packet, flow)
        if chain.opening is not None and at.seq == chain.isn:
            if chain.box is not None and flow.out == chain.box.left_write and chain.opening.tag:
                self._at_box.mark(packet, chain.opening.tag)
            elif chain.right is not None and flow.rewrite == chain.right.tuple and header:
                self._with_header(packet, header, 0)
        flow.packets += 1
        flow.bytes += len(packet.data)
        self._output.packet(flow.out, packet)

    def _from_host(self, packet: Packet, at: Located, now: float) -> None:
        """A session begins here, unless no policy wants it or TCP itself forbids to touch it."""
        options = syn_options(packet, at)
        if options.has_md5 or options.has_ao or options.has_mptcp:
            self._native(packet, "tcp_signed" if not options.has_mptcp else "mptcp")
            return
        decision = self.decide(at.five_tuple, now)
        if decision is None or not (decision.hops or decision.failure):
            self._native(packet, "no_policy")
            return
        if decision.on_fail_open and any(self._avoided(hop, now) for hop in decision.hops):
            self._output.event(SentNatively(at.five_tuple, decision.policy, "a hop failed a short while ago"))
            self._native(packet, "sent_natively")
            return
        if len(self._life.chains) >= self.settings.limits.sessions:
            self._counters["table_full"] += 1
            return
        opening = Opening(decision.hops, decision.egress, decision.on_fail_open)
        key = self._rng(CHAIN_ID_LEN) + b"\0"
        chain = Chain(key, facing_host(at.five_tuple), at.five_tuple, at.seq, decision.policy, opening, now)
        self._begin(chain, now)
        if decision.failure:
            opening.syn = packet
            self._fail(chain, self.settings.name, decision.failure, now)
        else:
            self._forward(chain, opening, packet, now)

    def _from_underlay(self, packet: Packet, at: Located, now: float) -> None:
        """A SYN for a reserved port: a neighbour's chain, or ordinary TCP."""
        payload = bytes(packet.data[at.payload_offset : at.total_len])
        header = chain_header.peek(payload)
        if header is None:
            self._native(packet, "syn_without_header")
            return
        neighbour = self._neighbours.at(at.five_tuple.src) or self._neighbours.at(header.subsession.src)
        window = None if neighbour is None else neighbour.window_of(payload, now)
        if neighbour is None or window is None:
            self._counters["header_not_authentic"] += 1
            return
        if neighbour.peer.name != SELF and not window.accept(header.counter):
            self._counters["header_replayed"] += 1
            return
        set_payload(packet, payload[chain_header.length(payload) :], at)
        key = header.chain_id + bytes((header.hop_index + 1 & 0xFF,))
        left = facing_agent(at.five_tuple, neighbour.peer.name, opened=False)
        box = self._box_for(header)
        refusal = self._refusal(header, neighbour, key, box, now)
        if refusal is not None:
            self._counters["refused"] += 1
            self._output.event(SetupRefused(header.chain_id, header.session, self.settings.name, refusal))
            if neighbour.peer.name != SELF:
                self._output.message(neighbour.peer.name, SynRefused(header.chain_id, refusal))
            return
        opening = Opening(header.hops, header.egress, header.on_fail_open)
        chain = Chain(key, left, header.session, at.seq, "", opening, now)
        self._begin(chain, now)
        clamp_mss(packet, self._mss_limit(chain, at.family, now))
        if len(header.hops) == 1 and header.egress is Egress.AGENT:
            chain.right = facing_host(header.session)
            self._open(chain, packet, now)
        elif isinstance(box, LocalBox):
            chain.box = box
            chain.state = State.AT_BOX
            for flow in chain.left_flows():
                self._table.insert(flow)
            self._rewrite(packet, chain.left.tuple, header.session)
            self._at_box.deliver(chain, opening, packet, at, now, self.settings.timers.fingerprint)
            self._output.packet(box.left_write, packet)
        else:
            self._rewrite(packet, chain.left.tuple, header.session)
            self._onward(chain, opening, packet, now)

    def _refusal(
        self, header: ChainHeader, neighbour: Neighbour, key: bytes, box: LocalBox | str | None, now: float
    ) -> str | None:
        """Why this host will not be a hop of the chain; None if it will."""
        peer = neighbour.peer
        if header.hops[0].address not in self.settings.addresses:
            return "this host is not the hop that the header names"
        if isinstance(box, str):
            return box
        if (
            isinstance(box, LocalBox)
            and self._table.get(box.left_read, header.session.reversed()) is not None
        ):
            return f"the session passes the box {box.name} already"
        if key in self._life.chains or len(self._life.chains) >= self.settings.limits.sessions:
            return "the chain is here already" if key in self._life.chains else "the session table is full"
        if not neighbour.admit(self.settings.limits.setups_per_second, now) and peer.name != SELF:
            return "too many sessions a second"
        is_last = len(header.hops) == 1
        if not peer.accept:
            return f"{peer.name} may not send chains here"
        for hop in header.hops[1:]:
            next_one = self._neighbours.at(hop.address)
            if next_one is None:
                continue
            if peer.next_hops is not None and next_one.peer.name not in (SELF, *peer.next_hops):
                return f"{peer.name} may not go on to {next_one.peer.name}"
        if (
            not is_last
            and self._neighbours.at(header.hops[1].address) is None
            and not _routable(header.hops[1].address)
        ):
            return "a next hop has an address that is never a target"
        leaves = header.egress is not Egress.AGENT and is_last and peer.name != SELF
        if leaves and not (_routable(header.session.dst) and peer.may_use(header.session)):
            return f"{peer.name} may not send this session on from here"
        return None

    def _box_for(self, header: ChainHeader) -> LocalBox | str | None:
        """The box that the first hop means; None: no box; text: there is no such box."""
        wanted = header.hops[0].box
        if wanted:
            return next((box for box in self.settings.boxes if box.tag == wanted), "no such middlebox here")
        if len(header.hops) == 1 and header.egress is Egress.AGENT:
            return None
        return self.settings.boxes[0] if self.settings.boxes else None

    def _out_of_box(self, chain: Chain, packet: Packet, at: Located, now: float) -> None:
        """A SYN has left the box: its session may have another tuple now."""
        opening = chain.opening
        assert opening is not None
        strip_tag(packet, at)
        if at.five_tuple != chain.session_in:
            chain.session_out = at.five_tuple
            final = opening.hops[-1]
            if opening.egress is Egress.AGENT and final.address == chain.session_in.dst:
                opening.hops = (*opening.hops[:-1], Hop(at.five_tuple.dst, final.box))
        chain.isn = at.seq if chain.left.peer is None else chain.isn
        self._onward(chain, opening, packet, now)

    def _onward(self, chain: Chain, opening: Opening, packet: Packet, now: float) -> None:
        """Go to the hop behind this one, or out of the chain."""
        opening.hops = opening.hops[1:]
        if opening.hops:
            self._forward(chain, opening, packet, now)
            return
        session = chain.session_out
        if opening.egress is Egress.NAT:
            translated = self._native_port(session)
            if translated is None:
                self._fail(chain, self.settings.name, "no free port for NAT", now)
                return
            session = translated
        chain.right = Facing(UNDERLAY, HOST, session, None)
        self._open(chain, packet, now)

    def _forward(self, chain: Chain, opening: Opening, packet: Packet, now: float) -> None:
        """Send the SYN to the next hop, or keep it until there is an association."""
        hop = opening.hops[0]
        neighbour = self._neighbours.at(hop.address)
        opening.syn = packet
        if neighbour is None:
            self._fail(chain, self.settings.name, f"{hop} is no peer of this host", now)
            return
        if not neighbour.up:
            if chain.state is not State.WAITING:
                chain.state = State.WAITING
            self._waiting.setdefault(neighbour.peer.name, []).append(chain)
            self._held[_entrance(chain)] = chain
            self._life.arm(chain, now + self.settings.timers.association_wait)
            return
        own = self._neighbours.own(hop.address)
        pair = None if own is None else self._neighbours.pool(own, hop.address, neighbour).allocate(now)
        if own is None or pair is None:
            self._fail(
                chain, self.settings.name, "no free ports" if own else "no address of this family", now
            )
            return
        subsession = FiveTuple.of(own, pair[0], hop.address, pair[1])
        chain.right = facing_agent(subsession, neighbour.peer.name, opened=True)
        header = ChainHeader(
            chain.chain_id,
            chain.hop_index,
            chain.session_out,
            subsession,
            opening.hops,
            neighbour.next_counter(),
            opening.egress,
            opening.on_fail_open,
        )
        opening.header = chain_header.encode(header, neighbour.send_key)
        self._open(chain, packet, now)

    def _open(self, chain: Chain, packet: Packet, now: float) -> None:
        """Both sides are known: make the flows and let the SYN go. It has the tuple it came here with."""
        opening, right = chain.opening, chain.right
        at = locate(packet)
        assert opening is not None
        assert right is not None
        assert at is not None
        chain.state = State.OPENING
        self._life.via[right.tuple.dst] += right.opened
        self._life.arm(chain, now + self.settings.timers.embryonic)
        for flow in chain.right_flows():
            self._table.insert(flow)
        limit = self._mss_limit(chain, at.family, now)
        opening.syn = packet.copy() if chain.left.peer is None and opening.on_fail_open else None
        clamp_mss(packet, limit, at)
        self._rewrite(packet, at.five_tuple, right.tuple)
        if opening.header:
            self._with_header(packet, opening.header, limit + _HEADERS[at.family])
        self._output.packet(right.write, packet)

    def _with_header(self, packet: Packet, header: bytes, mtu: int) -> None:
        """Put the chain header before the payload; Fast Open data that no longer fit are left out (the SYN-ACK
        then acknowledges the SYN alone, and TCP sends them again: RFC 7413 section 4.1.2)."""
        at = locate(packet)
        assert at is not None
        data = bytes(packet.data[at.payload_offset : at.total_len])
        if data and mtu and at.total_len + len(header) > mtu:
            data = b""
        set_payload(packet, header + data)

    def _begin(self, chain: Chain, now: float) -> None:
        self._life.add(chain, now)
        self._counters["opened"] += 1
        self._output.event(SessionOpened(chain.chain_id, chain.hop_index, chain.session_in, chain.policy))

    def _fail(self, chain: Chain, by: str, reason: str, now: float) -> None:
        """The chain cannot be made: say so to the left, or do what the policy says."""
        opening = chain.opening
        self._output.event(SetupRefused(chain.chain_id, chain.session_in, by, reason))
        syn_tuple, isn = chain.left.tuple, chain.isn
        peer = chain.left.peer
        hops = opening.hops if opening is not None else ()
        self._drop(chain, "refused", now)
        if peer is not None:
            if peer != SELF:
                self._output.message(peer, SynRefused(chain.chain_id, reason[:200]))
            else:
                self.refused_by(SELF, SynRefused(chain.chain_id, reason), now)
        elif opening is not None and opening.on_fail_open:
            neighbour = self._neighbours.at(hops[0].address) if hops else None
            if neighbour is not None:
                neighbour.avoid_until = now + self.settings.timers.avoid
            self._counters["sent_natively"] += 1
            self._output.event(SentNatively(syn_tuple, chain.policy, reason))
            if opening.syn is not None:
                self._output.packet(HOST, opening.syn)
        else:
            reset = build_tcp(syn_tuple.reversed(), 0, isn + 1 & 0xFFFFFFFF, RST | ACK, 0)
            self._output.packet(HOST, reset)

    def _drop(self, chain: Chain, reason: str, now: float) -> None:
        if chain.opening is not None:
            self._at_box.forget(chain, chain.opening)
        if self._held.get(_entrance(chain)) is chain:
            del self._held[_entrance(chain)]
            for waiting in self._waiting.values():
                if chain in waiting:
                    waiting.remove(chain)
        self._life.close(chain, reason, now)

    def _native(self, packet: Packet, counter: str) -> None:
        """Let a SYN go as if there were no agent."""
        self._counters[counter] += 1
        self._output.packet(HOST, packet)

    def _native_port(self, session: FiveTuple) -> FiveTuple | None:
        """The session with an own address and a port of the reserved range as its source."""
        own = self._neighbours.own(session.dst)
        low, high = self.settings.port_range
        for _ in range(_NATIVE_TRIES if own is not None else 0):
            assert own is not None
            port = low + int.from_bytes(self._rng(4), "big") % (high - low + 1)
            translated = FiveTuple.of(own, port, session.dst, session.dport)
            if self._table.get(UNDERLAY, translated.reversed()) is None:
                return translated
        return None

    def _avoided(self, hop: Hop, now: float) -> bool:
        neighbour = self._neighbours.at(hop.address)
        return neighbour is not None and now < neighbour.avoid_until

    def _mss_limit(self, chain: Chain, family: int, now: float) -> int:
        """The largest segment that fits every path that this agent knows of the chain."""
        mtu = self.settings.mtu
        for facing in (chain.left, chain.right):
            if facing is not None and facing.peer:
                neighbour = self._neighbours.by_name.get(facing.peer)
                if neighbour is not None:
                    mtu = min(mtu, neighbour.mtu(now, mtu))
        return mtu - _HEADERS[family]

    def _rewrite(self, packet: Packet, old: FiveTuple, new: FiveTuple) -> None:
        if old != new:
            apply(packet, Flow(0, old, 0, new))


def _entrance(chain: Chain) -> tuple[int, FiveTuple]:
    """Where the SYN came in that waits to be sent on, and with which tuple."""
    if chain.box is not None:
        return chain.box.right_read, chain.session_out
    return chain.left.read, chain.left.tuple


def _routable(address: bytes) -> bool:
    """Whether an address may be a target of a chain at all (no loopback, link-local, multicast, unspecified)."""
    ip = ipaddress.ip_address(address)
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)
