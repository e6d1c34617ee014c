"""Hosts of a new path: each joins a session that lives, and is a hop of it from the moment of the switch on.

A host that joins makes its flows at once and passes the path handshake through its middlebox; it stays if `ack` passes,
or data do. The numbers on its path are the left anchor's, which the anchors' messages tell it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dysco.protocol.admission import find_box, is_target
from dysco.protocol.chain import Chain, facing_agent
from dysco.protocol.changing import Inside
from dysco.protocol.events import SessionEstablished, SessionOpened
from dysco.protocol.flow import UNDERLAY, Flow
from dysco.protocol.ground import REHEARSED_WINDOW, Ground
from dysco.protocol.locks import LEASE_S, Lock, LockState
from dysco.protocol.neighbours import SELF, reached
from dysco.protocol.settings import LocalBox
from dysco.protocol.states import State
from dysco.protocol.switching import BEGUN_AGAIN, NOT_FREE
from dysco.wire.messages import (
    Ack,
    AckAck,
    Hops,
    NackSyn,
    OldDone,
    Syn,
)
from dysco.wire.numbers import distance, later
from dysco.wire.options import clamp_mss
from dysco.wire.packet import ACK, Located, Packet, build_tcp
from dysco.wire.rewrite import apply

HEADERS: Final = {4: 40, 6: 60}  # IP and TCP header without options, which an MSS does not count (RFC 6691)
_FIRST_KEY: Final = 128


class Joining:
    """Does what hosts of a new path do."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def syn(self, peer: str, message: Syn, now: float) -> str | None:
        """Become a hop of a session that lives; why not, if so."""
        ground, settings = self._ground, self._ground.settings
        known = ground.find("left", message.chain_id, message.hop)
        if known is not None:
            self._pass_syn(known, message)
            return None
        neighbour = ground.neighbours.by_name.get(peer)
        if neighbour is None or message.hops[0].address not in settings.addresses:
            return "this host is not the hop that the change names"
        if not neighbour.peer.accept or not neighbour.peer.may_change(message.session):
            return f"{peer} may not send chains here"
        if not neighbour.admit(settings.limits.setups_per_second, now):
            return "too many sessions a second"
        following = message.hops[1].address
        next_one = ground.neighbours.at(following)
        if not is_target(following) or next_one is None:
            return "the next hop is no peer of this host"
        allowed = neighbour.peer.next_hops
        if allowed is not None and next_one.peer.name not in (SELF, *allowed):
            return f"{peer} may not go on to {next_one.peer.name}"
        if not ground.is_ours(message.subsession):
            return NOT_FREE
        box = self._box(message)
        if isinstance(box, str):
            return box
        for one in [one for one in map(ground.life.chains.get, _keys(message.chain_id)) if one is not None]:
            if _is_leaving(one):
                # What the middlebox still has of the end would be taken for the session's, and end it again.
                if not _has_parted(one):
                    return "busy: the session is about to leave this host"
                ground.life.close(one, "moved", now)  # and comes back
        key = self._free_key(message.chain_id)
        if key is None or len(ground.life.chains) >= settings.limits.sessions:
            return "the session table is full"
        found = ground.new_subsession(following, now)
        if isinstance(found, str):
            return found
        left = facing_agent(message.subsession, peer, message.hop, opened=False)
        left.handshake = bytes(message.handshake)
        chain = Chain(key, left, message.session, "", None, now)
        chain.box = box
        chain.right = right = facing_agent(found[0], found[1], ground.draw_label(), opened=True)
        right.handshake = left.handshake
        flows = [*chain.left_flows(), *chain.right_flows()]
        ground.life.via[found[0].dst] += 1
        owners = [
            there.owner for flow in flows if (there := ground.table.get(flow.port, flow.match)) is not None
        ]
        if owners:
            ground.life.leave(found[0], now)
            if any(isinstance(one, Chain) and _is_in(one, message.request) for one in owners):
                return BEGUN_AGAIN
            if any(isinstance(one, Chain) and _may_go(one) for one in owners):
                return "busy: the session is about to leave this host"
            return "the session passes the same devices of this host already: give each middlebox its own"
        right.lock = Lock(LockState.LOCKED, message.request, now + LEASE_S)
        chain.state = State.ESTABLISHED
        chain.changing = ground.changing(chain)
        chain.changing.inside = inside = Inside(message.request, message.last, new=True)
        ground.pass_on(message.request)
        ground.life.chains[key] = chain
        ground.life.arm(chain, now + settings.timers.embryonic)
        ground.label("left", chain, left)
        ground.label("right", chain, right)
        for flow in flows:
            ground.table.insert(flow)
        ground.counters["joined"] += 1
        ground.output.event(SessionOpened(chain.chain_id, chain.hop_index, chain.session_in, ""))
        ground.alarm(now + LEASE_S, lambda at: self._not_committed(chain, inside, at))
        ground.life.record(chain)
        self._pass_syn(chain, message)
        ground.catch_up(message.subsession)
        return None

    def rehearse(self, chain: Chain, flow: Flow, packet: Packet, at: Located, now: float) -> None:
        """Pass a SYN or SYN-ACK of the path handshake; its numbers are where the flows begin."""
        clamp_mss(packet, self._ground.settings.mtu - HEADERS[at.family], at)
        flow.count(at, len(packet.data))
        assert chain.changing is not None
        assert chain.changing.inside is not None
        chain.changing.inside.rehearsed[flow.port, flow.match] = at.next_seq
        if flow.port == UNDERLAY:
            self._ground.rehearse(at.five_tuple, at.seq, now)
            if chain.box is not None:
                # If the change is cancelled while the box has it, nobody would know it when it comes out.
                beyond = chain.session_out if chain.is_forward(flow) else chain.session_in.reversed()
                self._ground.rehearse(beyond, at.seq, now)
        apply(packet, flow, at)
        self._ground.output.packet(flow.out, packet)
        if flow.port == UNDERLAY and chain.box is not None and at.flags & ACK:
            # A kernel may have carried the right anchor's own before this one, and a tracker overlooks it there.
            window = build_tcp(flow.rewrite, at.next_seq, at.ack, ACK, REHEARSED_WINDOW)
            self._ground.output.packet(flow.out, window)

    def ack(self, chain: Chain, message: Ack) -> None:
        """The left anchor has switched: this host is a hop now."""
        inside = None if chain.changing is None else chain.changing.inside
        if inside is not None and inside.new:
            self._commit(chain, inside)
            inside.left_cutoff = message.cutoff
            self._raise(chain, forward=True, seq=message.cutoff, ack=message.acked)
        self._ground.send(chain.right, message)

    def ack_ack(self, chain: Chain, message: AckAck) -> None:
        """The right anchor has switched: other changes may touch this host again."""
        inside = None if chain.changing is None else chain.changing.inside
        if inside is not None and inside.new:
            self._commit(chain, inside)
            inside.right_cutoff = message.cutoff
            self._raise(chain, forward=False, seq=message.cutoff, ack=None)
            right = chain.right
            if right is not None and right.lock is not None and right.lock.request == inside.request:
                right.lock = None
        self._ground.send(chain.left, message)

    def nack_syn(self, chain: Chain, message: NackSyn, now: float) -> None:
        """Somebody further on refuses."""
        self._ground.send(chain.left, message)
        inside = None if chain.changing is None else chain.changing.inside
        if inside is not None and inside.new and not inside.committed:
            self._ground.life.close(chain, "refused", now)

    def _box(self, message: Syn) -> LocalBox | str | None:
        box = find_box(message.hops[0].box, self._ground.settings)
        if isinstance(box, str):
            return box
        if box is not None and box.changes_tuple:
            return f"{box.name} changes tuples and cannot join a live session"
        return box

    def _free_key(self, chain_id: bytes) -> bytes | None:
        drawn = (key for key in _keys(chain_id) if key[-1] >= _FIRST_KEY)
        return next((key for key in drawn if key not in self._ground.life.chains), None)

    def _pass_syn(self, chain: Chain, message: Syn) -> None:
        right = chain.right
        assert right is not None
        passed = Syn(
            message.chain_id,
            0,
            message.request,
            message.last,
            chain.session_out,
            right.tuple,
            Hops(reached(message.hops[1:], right.tuple)),
            message.handshake,
            message.anchor,
        )
        self._ground.send(right, passed)

    def _commit(self, chain: Chain, inside: Inside) -> None:
        if not inside.committed:
            inside.committed = True
            ground = self._ground
            ground.output.event(SessionEstablished(chain.chain_id, chain.hop_index, chain.session_in))
            ground.life.arm(chain, chain.created_at + ground.settings.timers.established)
            ground.life.record(chain)

    def resume(self, chain: Chain, inside: Inside, now: float) -> None:
        """Go on after a restart."""
        self._ground.pass_on(inside.request)
        if inside.committed:
            assert chain.changing is not None
            chain.changing.inside = None
            self._ground.tidy(chain)
        else:
            self._ground.alarm(now + LEASE_S, lambda at: self._not_committed(chain, inside, at))

    def _not_committed(self, chain: Chain, inside: Inside, now: float) -> None:
        """No `ack` has come. If more than a handshake has passed it was lost; else the left anchor is gone."""
        current = None if chain.changing is None else chain.changing.inside
        if current is not inside or inside.committed or chain.state is State.CLOSED:
            return
        if self._has_moved(inside):
            self._commit(chain, inside)
        else:
            self._ground.life.close(chain, "cancelled", now)

    def _has_moved(self, inside: Inside) -> bool:
        """Whether numbers of the new path are beyond those of its handshake."""
        for (port, match), rehearsed in inside.rehearsed.items():
            flow = self._ground.table.get(port, match)
            assert flow is not None
            self._ground.table.refresh(flow)
            if flow.top_seq >= 0 and distance(flow.top_seq, rehearsed) > 0:
                return True
        return False

    def learn(self, chain: Chain, message: OldDone) -> None:
        """An anchor is done: all that it received below the cutoffs it has acknowledged."""
        assert chain.changing is not None
        inside = chain.changing.inside
        assert inside is not None
        for forward, cutoff in ((True, inside.right_cutoff), (False, inside.left_cutoff)):
            if cutoff is not None:
                self._raise(chain, forward=forward, seq=None, ack=cutoff)
        inside.left_done = inside.left_done or message.rightward
        inside.right_done = inside.right_done or not message.rightward
        if inside.left_done and inside.right_done and inside.committed:
            chain.changing.inside = None
            self._ground.tidy(chain)

    def _raise(self, chain: Chain, *, forward: bool, seq: int | None, ack: int | None) -> None:
        """What an anchor says of its numbers holds here, for new paths carry the left anchor's."""
        key_of = self._ground.forward_key if forward else self._ground.backward_key
        for side in ("left", "right"):
            flow = self._ground.table.get(*key_of(chain, side))
            assert flow is not None
            if seq is not None:
                flow.top_seq = seq if flow.top_seq < 0 else later(flow.top_seq, seq)
            if ack is not None:
                _raise_ack(flow, ack)


def _raise_ack(flow: Flow, ack: int) -> None:
    """Acknowledgements never go back."""
    flow.top_ack = ack if flow.top_ack < 0 else later(flow.top_ack, ack)


def _keys(chain_id: bytes) -> Iterator[bytes]:
    """Every key that a chain may have here: by its hop index, or drawn when it joined a live session."""
    return (chain_id + bytes((index,)) for index in range(256))


def _is_in(chain: Chain, request: int) -> bool:
    """Whether a chain has joined for a change, by another subsession than it is asked to now."""
    inside = None if chain.changing is None else chain.changing.inside
    return inside is not None and inside.new and inside.request == request


def _may_go(chain: Chain) -> bool:
    """Whether a change is under way that may take the session from this host, or has brought it here in vain."""
    return chain.changing is not None and chain.changing.inside is not None


def _is_leaving(chain: Chain) -> bool:
    """Whether a host of an old path only lingers."""
    inside = None if chain.changing is None else chain.changing.inside
    return inside is not None and not inside.new and inside.left_done and inside.right_done


def _has_parted(chain: Chain) -> bool:
    """Whether the middlebox of a host that lingers has passed all that was told it of the end."""
    inside = None if chain.changing is None else chain.changing.inside
    return inside is None or inside.parted
