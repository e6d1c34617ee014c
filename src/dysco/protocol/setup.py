"""How a chain begins at one agent: policy, chain header, middlebox, next hop, and refusal (DESIGN section 4).

    SYN from the host   --policy-->  chain with hops           --> next hop
    SYN with a header   --HMAC, replay, permission-->  last hop: the host;  else the box, or straight on
    SYN out of the box  --tuple, tag, fingerprint, API-->      --> next hop

The next hop gets the SYN with a chain header before its payload. A SYN that is repeated repeats ports,
chain id and header; the header is signed anew only if the association's key has changed since. What cannot go
on is refused to the left, hop by hop, until the first agent does what the policy says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from dysco.errors import WireError
from dysco.protocol.admission import LONGEST_CHAIN, Admission, native_tuple, same_chain
from dysco.protocol.avoided import Avoided
from dysco.protocol.boxes import AtBox
from dysco.protocol.chain import (
    HALF,
    SEEN,
    Chain,
    Facing,
    Opening,
    announced,
    facing_agent,
    facing_host,
    first_label,
)
from dysco.protocol.events import SentNatively, SessionOpened, SetupRefused
from dysco.protocol.flow import HOST, UNDERLAY, Flow, FlowTable
from dysco.protocol.life import Life
from dysco.protocol.neighbours import SELF, Neighbours, reached
from dysco.protocol.output import Output
from dysco.protocol.settings import Decide, LocalBox, Settings
from dysco.protocol.states import DYING, Input
from dysco.wire import chain_header
from dysco.wire.chain_header import CHAIN_ID_LEN, ChainHeader, Egress, Hop
from dysco.wire.messages import SynRefused
from dysco.wire.numbers import distance
from dysco.wire.options import clamp_mss, find_tag, strip_tag, syn_options
from dysco.wire.packet import ACK, RST, Located, Packet, build_tcp, complete, locate, set_payload
from dysco.wire.rewrite import MASK32, apply, retarget
from dysco.wire.tuples import FiveTuple

HEADERS: Final = {4: 40, 6: 60}
"""IP and TCP header without options, which an MSS does not count (RFC 6691)."""
_NATIVE_TRIES: Final = 64
_REASON_LEN: Final = 200
_NO_HALF: Final = bytes(HALF.size)


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
        self._admission = Admission(neighbours)
        self.at_box = AtBox(table, rng)
        self._waiting: dict[str, dict[bytes, Chain]] = {}
        self._held: dict[tuple[int, FiveTuple], Chain] = {}
        self._avoided = Avoided(neighbours)
        self.rehearsed: Callable[[FiveTuple, Packet], None] = lambda subsession, packet: None
        life.opening_over = self._opening_over
        life.no_association = self._no_association

    def syn(self, port: int, packet: Packet, at: Located, flow: Flow | None, now: float) -> None:
        """Take a SYN without ACK from any port."""
        self._counters["syn"] += 1
        complete(packet, at)
        out_of_box = None if port == UNDERLAY else self.at_box.match(port, packet, at, now)
        if flow is not None and isinstance(flow.owner, Chain):
            chain = flow.owner
            if _is_stray(chain, flow, packet, at):
                self._counters["syn_stray"] += 1
                return
            if not self._is_replaced(chain, flow, packet, at, out_of_box, now):
                self._again(chain, flow, packet, at, now)
                return
            self._life.close(chain, "replaced", now)
        held = self._held.get((port, at.five_tuple))
        if held is not None:
            if held.left.peer is not None or held.left.forward.isn == at.seq:
                self._counters["syn_again"] += 1
                return
            self._life.close(held, "replaced", now)
        if port == UNDERLAY:
            self._from_underlay(packet, at, now)
        elif out_of_box is not None:
            self._out_of_box(out_of_box, packet, at, now)
        elif find_tag(packet) is not None:
            # It left a box too late: on its own it would go round the rest of its chain.
            self._counters["tag_unknown"] += 1
        elif port == HOST:
            self._from_host(packet, at, now)
        else:
            self._counters["unknown_session"] += 1

    def syn_ack(self, chain: Chain, flow: Flow, packet: Packet, at: Located, now: float) -> None:
        """Pass a SYN-ACK on to the left; the first one from the right establishes the session here."""
        complete(packet, at)
        right = chain.right
        from_right = right is not None and flow.match == right.tuple.reversed() and flow.port == right.read
        if from_right and self.no_agent(chain, at, now):
            return
        side = right if right is not None and from_right else chain.left
        if side.backward.isn == at.seq and side.backward.flags & SEEN and self._is_late(chain, flow, at):
            self._counters["syn_late"] += 1
            return
        clamp_mss(packet, self._mss_limit(chain, at.family, now), at)
        half = announced(packet, at)
        apply(packet, flow, at)
        flow.packets += 1
        flow.bytes += len(packet.data)
        self._output.packet(flow.out, packet)
        self.answered(chain, flow, half, now)

    def answered(self, chain: Chain, flow: Flow, half: bytes, now: float) -> None:
        """A SYN-ACK that announces `half` has been passed on."""
        left, right = chain.left, chain.right
        if right is not None and flow.match == right.tuple.reversed() and flow.port == right.read:
            if not right.translates:
                right.handshake = right.handshake[: HALF.size] + half
            if not left.backward.flags & SEEN:
                left.handshake = left.handshake[: HALF.size] + half
            if left.handshake == right.handshake:
                right.handshake = left.handshake
            self._life.advance(chain, Input.SYN_ACK, now)
        elif left.handshake[HALF.size :] != half and not chain.is_forward(flow) and not left.translates:
            left.handshake = left.handshake[: HALF.size] + half
            self._life.record(chain)

    def no_agent(self, chain: Chain, at: Located, now: float) -> bool:
        """Whether an answer to a SYN acknowledges the chain header: then no agent has taken it off."""
        opening, right = chain.opening, chain.right
        if opening is None or right is None or not right.peer or not opening.header:
            return False
        if at.ack - right.forward.isn - 1 & MASK32 != opening.sent:
            return False
        self._counters["no_agent"] += 1
        self._fail(chain, right.peer, "no agent answers there", now)
        return True

    def unreachable(self, chain: Chain, seq: int, now: float) -> bool:
        """An ICMP error says that the next hop cannot be reached; True if the SYN goes natively instead."""
        opening, right = chain.opening, chain.right
        if opening is None or right is None or not right.peer or right.forward.isn != seq:
            return False
        if chain.left.peer is not None or not opening.on_fail_open:
            return False
        self._fail(chain, right.peer, "the network cannot reach it", now)
        return True

    def associated(self, peer: str, now: float) -> None:
        """A peer can be reached, and knows where this host is: what waited for it goes on."""
        for chain in self._waiting.pop(peer, {}).values():
            opening = chain.opening
            assert opening is not None
            assert opening.syn is not None
            self._held.pop(chain.came_by, None)
            syn, opening.syn = opening.syn, None
            at = locate(syn)
            assert at is not None
            self._forward(chain, opening, syn, at, now)

    def refused_by(self, peer: str, message: SynRefused, now: float) -> None:
        """A next hop, or one behind it, refuses the chain."""
        for index in range(LONGEST_CHAIN + 1):
            chain = self._life.embryonic.get(message.chain_id + bytes((index,)))
            if chain is not None and chain.right is not None and chain.right.peer == peer:
                self._counters["refused_by_peer"] += 1
                self._fail(chain, peer, message.reason, now, far=True)

    def set_hops(self, session: FiveTuple, hops: tuple[Hop, ...]) -> bool:
        """Put other hops behind the box that holds this session's SYN."""
        chain = self.at_box.waiting_for(session)
        if chain is None or chain.opening is None:
            return False
        chain.opening.hops = (chain.opening.hops[0], *hops)
        if chain.box is not None and chain.box.right_read == HOST:
            self._table.capture(session)  # nor does the kernel go on by what the header said
        return True

    def expect(self, session_in: FiveTuple, session_out: FiveTuple) -> bool:
        """Know the SYN that leaves the box by what the box said."""
        chain = self.at_box.waiting_for(session_in)
        if chain is None or chain.box is None or "api" not in chain.box.match:
            return False
        self.at_box.expect(chain, session_out)
        return True

    def _is_replaced(
        self, chain: Chain, flow: Flow, packet: Packet, at: Located, out_of_box: Chain | None, now: float
    ) -> bool:
        """Whether a SYN on the tuple of a chain begins another one that takes its place."""
        if out_of_box is not None and out_of_box is not chain:
            return out_of_box.chain_id != chain.chain_id
        if flow.port == UNDERLAY:
            payload = bytes(packet.data[at.payload_offset : at.total_len])
            header = chain_header.peek(payload)
            if header is None or same_chain(header, chain.key):
                return False
            # The peer has forgotten this chain, or its ports would be taken.
            signer = self._admission.signer(header, at)
            return signer is not None and signer.window_of(payload, now) is not None
        side = _side(chain, flow)
        if side is None or side.forward.isn == at.seq:
            return False
        is_first = chain.left.peer is None and side is chain.left and chain.opening is not None
        return chain.state in DYING or is_first

    def _again(self, chain: Chain, flow: Flow, packet: Packet, at: Located, now: float) -> None:
        """A repeated SYN goes the way of the first; another SYN on a live tuple is the endpoint's affair."""
        forward = chain.is_forward(flow)
        side = _side(chain, flow) if forward else None
        if side is not None and side.forward.isn == at.seq and self._is_late(chain, flow, at):
            self._counters["syn_late"] += 1
            return
        self._counters["syn_again" if forward else "simultaneous_open"] += 1
        payload = packet.data[at.payload_offset : at.total_len]
        header = chain_header.peek(payload) if flow.port == UNDERLAY and payload else None
        if header is not None and same_chain(header, chain.key):
            set_payload(packet, bytes(payload[chain_header.length(payload) :]), at)
        at = _without_tag(packet, at)
        limit = self._mss_limit(chain, at.family, now)
        clamp_mss(packet, limit, at)
        apply(packet, flow, at)
        opening, right = chain.opening, chain.right
        if opening is not None and forward:
            if chain.box is not None and flow.out == chain.box.left_write and flow.match == chain.left.tuple:
                self.at_box.renew(chain, opening, packet, now, self.settings.timers.fingerprint)
            elif right is not None and opening.header and right.forward.isn == at.seq:
                self._sign_anew(chain, opening)
                self._with_header(packet, opening, limit + HEADERS[at.family], at)
        flow.packets += 1
        flow.bytes += len(packet.data)
        self._output.packet(flow.out, packet)

    def _is_late(self, chain: Chain, flow: Flow, at: Located) -> bool:
        """Whether who has sent this SYN or SYN-ACK had its answer since, as what has passed behind it shows.

        The kernel carries that while an agent may have a copy of the SYN in its hands. A middlebox that has seen a SYN
        again, and the SYN-ACK, thinks that the session begins anew, and takes all that follows for a stranger's. Data
        of the server alone say nothing: with Fast Open they may overtake its first SYN-ACK.
        """
        answers = flow if not at.flags & ACK else self._table.get(chain.left.read, chain.left.tuple)
        assert answers is not None
        self._table.refresh(answers)
        if answers.top_ack < 0 or not at.flags & ACK:
            return answers.top_ack >= 0
        self._table.refresh(flow)
        is_behind = distance(flow.top_seq, at.next_seq) > 0 or distance(flow.top_ack, at.ack) > 0
        return flow.top_ack >= 0 and is_behind

    def _sign_anew(self, chain: Chain, opening: Opening) -> None:
        """Sign the header again if the association's key is another one by now."""
        assert chain.right is not None
        neighbour = self._neighbours.by_name.get(chain.right.peer or SELF)
        header = chain_header.peek(opening.header)
        if neighbour is None or header is None or neighbour.send_key == opening.key:
            return
        opening.key = neighbour.send_key
        opening.header = chain_header.encode(header._replace(counter=neighbour.next_counter()), opening.key)

    def _from_host(self, packet: Packet, at: Located, now: float) -> None:
        """A session begins here, unless no policy wants it or TCP itself forbids to touch it."""
        options = syn_options(packet, at)
        if options.has_md5 or options.has_ao or options.has_mptcp:
            self._native(packet, "mptcp" if options.has_mptcp else "tcp_signed")
            return
        decision = self.decide(at.five_tuple, now)
        if decision is None or not (decision.hops or decision.failure):
            self._native(packet, "no_policy")
            return
        if decision.on_fail_open and self._avoided.has(decision.hops, now):
            self._output.event(SentNatively(at.five_tuple, decision.policy, "a hop failed a short while ago"))
            self._native(packet, "sent_natively")
            return
        opening = Opening(decision.hops, decision.egress, decision.on_fail_open)
        key = self._rng(CHAIN_ID_LEN) + b"\0"
        chain = Chain(key, facing_host(at.five_tuple), at.five_tuple, decision.policy, opening, now)
        if not self._begin(chain, packet, at, now):
            return
        if decision.failure:
            opening.syn = packet
            self._fail(chain, self.settings.name, decision.failure, now)
        else:
            self._forward(chain, opening, packet, at, now)

    def _from_underlay(self, packet: Packet, at: Located, now: float) -> None:
        """A SYN for a reserved port: a neighbour's chain, or ordinary TCP."""
        payload = bytes(packet.data[at.payload_offset : at.total_len])
        header = chain_header.peek(payload)
        if header is None:
            if not payload and self._is_rehearsal(at):
                self.rehearsed(at.five_tuple, packet)
            else:
                self._native(packet, "syn_without_header")
            return
        neighbour = self._admission.signer(header, at)
        window = None if neighbour is None else neighbour.window_of(payload, now)
        if neighbour is None or window is None:
            if neighbour is not None and not neighbour.up:
                # One of us has restarted. The repeated SYN will be signed with the key that comes.
                self._counters["header_without_association"] += 1
            else:
                self._native(packet, "header_not_authentic")
            return
        name = neighbour.peer.name
        key = header.chain_id + bytes((header.hop_index + 1 & 0xFF,))
        if name != SELF and not window.accept(header.counter):
            self._counters["header_replayed"] += 1
            refusal = self._admission.refused_before(key)
            if refusal is not None:
                self._output.message(name, SynRefused(header.chain_id, refusal))
            return
        set_payload(packet, payload[chain_header.length(payload) :], at)
        at = _without_tag(packet, at)
        # A repeated SYN may cross the refusal of the first one; it must not begin what nobody waits for.
        refusal = self._admission.refused_before(key)
        refusal = refusal or self._admission.refusal(header, at, neighbour, self.settings, now)
        box = self._admission.box_for(header, self.settings)
        if isinstance(box, str) or key in self._life.chains:
            refusal = refusal or (box if isinstance(box, str) else "the chain is here already")
        if refusal is None:
            opening = Opening(header.hops, header.egress, header.on_fail_open)
            left = facing_agent(at.five_tuple, name, first_label(header.hop_index), opened=False)
            chain = Chain(key, left, header.session, "", opening, now)
            if self._begin(chain, packet, at, now):
                assert not isinstance(box, str)
                self._arrived(chain, opening, packet, at, box, now)
                return
            refusal = "the session table is full"
        self._counters["refused"] += 1
        self._output.event(SetupRefused(header.chain_id, header.session, self.settings.name, refusal))
        self._admission.remember(key, refusal)
        if name != SELF:
            self._output.message(name, SynRefused(header.chain_id, refusal))
        else:
            self.refused_by(SELF, SynRefused(header.chain_id, refusal), now)

    def _is_rehearsal(self, at: Located) -> bool:
        """Whether a SYN looks like that of a path handshake: a peer's, with reserved ports at both ends."""
        neighbour = self._neighbours.at(at.five_tuple.src)
        if neighbour is None or neighbour.hello is None:
            return False
        low, high = neighbour.hello.port_range
        return low <= at.five_tuple.sport <= high

    def _arrived(
        self, chain: Chain, opening: Opening, packet: Packet, at: Located, box: LocalBox | None, now: float
    ) -> None:
        """A chain comes from the left: to the host, through the box, or straight on."""
        if len(opening.hops) == 1 and opening.egress is Egress.AGENT and box is None:
            chain.right = self._end(chain.session_in)
            self._open(chain, opening, packet, at, now)
            return
        if box is None:
            retarget(packet, chain.session_in, at)
            self._onward(chain, opening, packet, at, now)
            return
        chain.box = box
        if self._clashes(chain, (*((f.port, f.match) for f in chain.left_flows()),
                                 (box.right_read, chain.session_in)), now):  # fmt: skip
            return
        for flow in chain.left_flows():
            self._table.insert(flow)
        self._life.advance(chain, Input.DELIVERED, now)
        retarget(packet, chain.session_in, at)
        self.at_box.deliver(chain, opening, packet, now, self.settings.timers.fingerprint)
        self._output.packet(box.left_write, packet)

    def _out_of_box(self, chain: Chain, packet: Packet, at: Located, now: float) -> None:
        """A SYN has left the box: its session may have another tuple now."""
        opening = chain.opening
        assert opening is not None
        at = _without_tag(packet, at)
        if at.five_tuple != chain.session_in:
            chain.session_out = at.five_tuple
            final = opening.hops[-1]
            if opening.egress is Egress.AGENT and final.address == chain.session_in.dst:
                opening.hops = (*opening.hops[:-1], Hop(at.five_tuple.dst, final.box))
        self._onward(chain, opening, packet, at, now)

    def _onward(self, chain: Chain, opening: Opening, packet: Packet, at: Located, now: float) -> None:
        """Go to the hop behind this one, or out of the chain."""
        opening.hops = opening.hops[1:]
        if opening.hops:
            self._forward(chain, opening, packet, at, now)
            return
        session = chain.session_out
        if opening.egress is Egress.AGENT:
            chain.right = self._end(session)
        elif opening.egress is Egress.NAT:
            translated = self._native_port(session)
            if translated is None:
                self._fail(chain, self.settings.name, "no free port for NAT", now)
                return
            chain.right = Facing(UNDERLAY, HOST, translated, None)
        else:
            chain.right = Facing(UNDERLAY, HOST, session, None)
        self._open(chain, opening, packet, at, now)

    def _end(self, session: FiveTuple) -> Facing:
        """The right end of a chain: this host's own stack, or what lies behind it and answers through it."""
        if session.dst in self.settings.addresses:
            return facing_host(session)
        return Facing(UNDERLAY, HOST, session, None)

    def _forward(self, chain: Chain, opening: Opening, packet: Packet, at: Located, now: float) -> None:
        """Send the SYN to the next hop, or keep it until there is an association."""
        hop = opening.hops[0]
        neighbour = self._neighbours.at(hop.address)
        opening.syn = packet
        if neighbour is None:
            self._fail(chain, self.settings.name, f"{hop} is no peer of this host", now)
            return
        if not neighbour.may_begin:
            self._waiting.setdefault(neighbour.peer.name, {})[chain.key] = chain
            self._held[chain.came_by] = chain
            self._life.advance(chain, Input.HELD, now)
            if neighbour.up:  # the network may need seconds for the first packet from a new address
                self._life.arm(chain, now + self.settings.timers.embryonic)
            return
        own, remote = self._neighbours.own(hop.address), self._neighbours.reach(hop.address)
        pair = None if own is None else self._neighbours.pool(own, remote, neighbour).allocate(now)
        if own is None or pair is None:
            reason = "no free ports" if own else "no address of this family"
            self._fail(chain, self.settings.name, reason, now)
            return
        subsession = FiveTuple.of(own, pair[0], remote, pair[1])
        label = first_label(chain.hop_index)
        chain.right = facing_agent(subsession, neighbour.peer.name, label, opened=True)
        self._life.via[remote] += 1
        header = ChainHeader(
            chain.chain_id,
            chain.hop_index,
            chain.session_out,
            subsession,
            reached(opening.hops, subsession),
            neighbour.next_counter(),
            opening.egress,
            opening.on_fail_open,
        )
        opening.key = neighbour.send_key
        try:
            opening.header = chain_header.encode(header, opening.key)
        except WireError as error:
            self._fail(chain, self.settings.name, str(error), now)
            return
        self._open(chain, opening, packet, at, now)

    def _open(self, chain: Chain, opening: Opening, packet: Packet, at: Located, now: float) -> None:
        """Both sides are known: make the flows and let the SYN go. It has the tuple it came here with."""
        right = chain.right
        assert right is not None
        flows = tuple(chain.right_flows())
        if chain.box is not None:
            twin = self._table.get(chain.box.left_read, flows[1].rewrite)
            if twin is not None:
                flows[1].rewrite = twin.match  # one object for both: a session costs that much less
        opening.syn = packet.copy() if chain.left.peer is None and opening.on_fail_open else None
        if self._clashes(chain, ((flow.port, flow.match) for flow in flows), now):
            return
        self._life.advance(chain, Input.SENT, now)
        for flow in flows:
            self._table.insert(flow)
        limit = self._mss_limit(chain, at.family, now)
        clamp_mss(packet, limit, at)
        half = chain.left.handshake[: HALF.size] if chain.box is None else announced(packet, at)
        right.handshake = half + _NO_HALF
        retarget(packet, right.tuple, at)
        if opening.header:
            self._with_header(packet, opening, limit + HEADERS[at.family], at)
        self._output.packet(right.write, packet)

    def _with_header(self, packet: Packet, opening: Opening, mtu: int, at: Located) -> None:
        """Put the chain header before the payload; Fast Open data that no longer fit are left out (the SYN-ACK
        then acknowledges the SYN alone, and TCP sends them again: RFC 7413 section 4.1.2)."""
        data = bytes(packet.data[at.payload_offset : at.total_len])
        if data and at.total_len + len(opening.header) > mtu:
            self._counters["fast_open_dropped"] += 1
            data = b""
        opening.sent = len(opening.header) + len(data)
        set_payload(packet, opening.header + data, at)

    def _clashes(self, chain: Chain, keys: Iterable[tuple[int, FiveTuple]], now: float) -> bool:
        """Fail a chain that would take flows that another one has here: packets look the same.

        That is an earlier hop of the same chain; or a session that a proxy has left, whose kernel thinks that its port
        is free again. Any other one has been begun anew, perhaps by another way, and is over.
        """
        owners: dict[bytes, Chain] = {}
        for port, match in keys:
            flow = self._table.get(port, match)
            owner = None if flow is None else flow.owner
            if not isinstance(owner, Chain):
                continue
            owners[owner.key] = owner
            reason = ""
            if owner.chain_id == chain.chain_id:
                reason = "the chain passes the same devices of this host twice: give each middlebox its own"
            elif owner.left.seam is not None and owner.state not in DYING:
                reason = "its tuple is that of a session that a proxy has left and that still lives"
            if reason:
                self._fail(chain, self.settings.name, reason, now)
                return True
        for owner in owners.values():
            self._life.close(owner, "replaced", now)
        return False

    def _begin(self, chain: Chain, packet: Packet, at: Located, now: float) -> bool:
        if not self._life.add(chain, now):
            self._counters["table_full"] += 1
            return False
        chain.left.handshake = announced(packet, at) + _NO_HALF
        self._counters["opened"] += 1
        self._output.event(SessionOpened(chain.chain_id, chain.hop_index, chain.session_in, chain.policy))
        return True

    def _no_association(self, chain: Chain, now: float) -> None:
        self._counters["no_association"] += 1
        self._fail(chain, self.settings.name, "no association with the next hop", now)

    def _fail(self, chain: Chain, by: str, reason: str, now: float, *, far: bool = False) -> None:
        """The chain cannot be made: say so to the left, or do what the policy says.

        far: perhaps it was not the next hop that failed but one behind it.
        """
        opening = chain.opening
        assert opening is not None
        syn, hops = opening.syn, opening.hops
        reason = reason[:_REASON_LEN]
        self._output.event(SetupRefused(chain.chain_id, chain.session_in, by, reason))
        self._life.close(chain, "refused", now)
        peer = chain.left.peer
        if peer is not None:
            self._admission.remember(chain.key, reason)
            if peer != SELF:
                self._output.message(peer, SynRefused(chain.chain_id, reason))
            else:
                self.refused_by(SELF, SynRefused(chain.chain_id, reason), now)
        elif opening.on_fail_open:
            self._avoided.add(opening.route, hops, now + self.settings.timers.avoid, now, far=far)
            self._output.event(SentNatively(chain.session_in, chain.policy, reason))
            assert syn is not None
            self._native(syn, "sent_natively")
        else:
            isn = chain.left.forward.isn
            reset = build_tcp(chain.session_in.reversed(), 0, isn + 1 & MASK32, RST | ACK, 0)
            self._output.packet(HOST, reset)

    def _opening_over(self, chain: Chain, opening: Opening) -> None:
        """Forget all that was kept because the chain was being opened."""
        self.at_box.forget(chain, opening)
        key = chain.came_by
        if self._held.get(key) is chain:
            del self._held[key]
            for waiting in self._waiting.values():
                waiting.pop(chain.key, None)

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
            translated = native_tuple(session, own, port)
            if self._table.get(UNDERLAY, translated.reversed()) is None:
                return translated
        return None

    def _mss_limit(self, chain: Chain, family: int, now: float) -> int:
        """The largest segment that fits every path that this agent knows of the chain."""
        mtu = self.settings.mtu
        for facing in (chain.left, chain.right):
            if facing is not None and facing.peer:
                neighbour = self._neighbours.by_name.get(facing.peer)
                if neighbour is not None:
                    mtu = min(mtu, neighbour.mtu(now, mtu))
        return mtu - HEADERS[family]


def _side(chain: Chain, flow: Flow) -> Facing | None:
    """Where packets that the left end has sent are read as a flow matches; the right side may not be there yet."""
    return chain.left if flow.match == chain.left.tuple and flow.port == chain.left.read else chain.right


def _without_tag(packet: Packet, at: Located) -> Located:
    """Take a tag out, and say where the parts of the SYN are then."""
    if strip_tag(packet, at):
        at = locate(packet) or at
    return at


def _is_stray(chain: Chain, flow: Flow, packet: Packet, at: Located) -> bool:
    """Whether a neighbour's SYN comes for a session that is over, and begins none, for it has no chain header.

    So does a late copy out of a path handshake, where the agent has begun again since and does not know it any more.
    Passed on, it would look like a new session to a middlebox, which lets it out, and to a server.
    """
    if flow.port != UNDERLAY or chain.state not in DYING:
        return False
    return chain_header.peek(bytes(packet.data[at.payload_offset : at.total_len])) is None
