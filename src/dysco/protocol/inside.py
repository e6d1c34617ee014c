"""Hosts between the anchors: those of the old path keep its lock and leave it, those of the new path join it.

A host that leaves closes what is left towards its middlebox with FINs of its own, so that a connection tracker sees
an ordinary end; nothing of that leaves the host. A host that joins makes its flows at once and passes the path
handshake through its middlebox; it stays if `ack` passes, or data do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from dysco.protocol.admission import find_box, is_target
from dysco.protocol.chain import Chain, facing_agent
from dysco.protocol.changing import Inside
from dysco.protocol.events import SessionEstablished, SessionOpened
from dysco.protocol.flow import UNDERLAY, Flow
from dysco.protocol.ground import LIVE, Ground, leftward, rightward
from dysco.protocol.joints import LINGER_S, Joint, Joints, inside, members
from dysco.protocol.locks import LEASE_S, Lock, LockAction, LockInput, LockState, step
from dysco.protocol.neighbours import SELF
from dysco.protocol.settings import LocalBox
from dysco.protocol.states import State
from dysco.protocol.switching import FROZEN_S, tell_cancelled
from dysco.protocol.transfers import FREEZE
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckCancel,
    AckLock,
    CancelLock,
    NackLock,
    NackSyn,
    OldDone,
    RenewLock,
    RequestLock,
    Syn,
)
from dysco.wire.numbers import MASK32, distance, later
from dysco.wire.options import clamp_mss
from dysco.wire.packet import ACK, FIN, Located, Packet, build_tcp
from dysco.wire.rewrite import apply

_LOOK_S: Final = 0.02  # ours: between looks at a middlebox that is not ready
READY_S: Final = 2.0  # DESIGN section 7: how long a box may delay a lock because its sums are not final
HEADERS: Final = {4: 40, 6: 60}  # IP and TCP header without options, which an MSS does not count (RFC 6691)
_FIRST_KEY: Final = 128
_WINDOW: Final = 0xFFFF

BoxSums = Callable[[Chain], tuple[int, int] | None]
"""What a stream box has added to each direction beyond its ISNs, final from now on; None: not ready."""


class Hosts:
    """Does what hosts inside a segment do."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.joints = Joints(ground)
        self.settle: BoxSums = lambda chain: (0, 0)
        self.unsettle: Callable[[Chain], None] = lambda chain: None
        self._not_ready: dict[tuple[bytes, int], float] = {}

    # The old path.

    def request(self, chain: Chain, message: RequestLock, now: float) -> str | None:
        """A requestLock passes; why it is refused, if it is."""
        ground, change, joint = self._ground, message.change, chain.joint
        looked = self._not_ready.pop((chain.key, change.request), None)
        asked = chain
        right = rightward(chain)
        if right is None or right.peer is None or (joint is not None and joint.request != change.request):
            return "not found"
        if joint is not None:
            chain = joint.right  # which has the lock
            refusal = self.joints.refusal(joint)
            if refusal is not None:
                return refusal
            if len(change.hops) > 1:
                return "nothing can take the place of a proxy"
        if chain.opening is not None or chain.state not in LIVE:
            return "the session is not established"
        if chain.box is not None and chain.box.mandatory and len(change.hops) < 2:
            return f"{chain.box.name} is mandatory"
        anchor = None if chain.changing is None else chain.changing.right
        if anchor is not None and anchor.direct:
            return "busy"  # who asks stands where that change has found nobody alive, and has no lock of it
        anchor = None if chain.changing is None else chain.changing.right
        if anchor is not None and anchor.two is not None and anchor.change.request != change.request:
            return "busy"  # this request has come by the new path, whose sums the left facing has not yet
        lock = right.lock
        if lock is None or now >= lock.until:
            lock = right.lock = Lock(LockState.FREE, change.request, now + LEASE_S)
        what = LockInput.OTHER_REQUEST
        if lock.state is LockState.FREE:
            what = LockInput.REQUEST
        elif lock.request == change.request:
            what = LockInput.SAME_REQUEST
        found = step(lock.state, what)
        action = LockAction.NACK_BUSY if found is None else found[0]
        if action is LockAction.HOLD:
            if lock.held is not None and lock.held.change.request != change.request:
                return "busy"
            lock.held = message
            return None
        if action is LockAction.NACK_BUSY or found is None:
            return "busy"
        extra = self.settle(chain)
        if extra is None:
            self._free(chain)
            if looked is not None and now - looked >= READY_S:
                return "not ready: its middlebox is in the middle of something"
            self._not_ready[asked.key, change.request] = now if looked is None else looked
            if looked is None:
                self._look_again(asked, message, now)
            return None
        lock.state, lock.request = found[1], change.request
        known = ground.changing(chain).inside
        if known is None or (known.new and known.committed):
            inside = Inside(change.request, change.last, new=False, state=change.state)
            for one in members(chain):
                ground.changing(one).inside = inside
            self._record(chain)
        own = ground.sums(chain) if joint is None else self.joints.sums(joint)
        seams = any(one is not None and one.seam is not None for one in (chain.left, chain.right))
        passed = RequestLock(
            chain.chain_id,
            0,
            change,
            message.anchor,
            (message.forward_sum + own[0] + extra[0]) & MASK32,
            (message.backward_sum + own[1] + extra[1]) & MASK32,
            message.joined or seams,
        )
        ground.send(right, passed)
        return None

    def _look_again(self, chain: Chain, message: RequestLock, now: float) -> None:
        """Ask a middlebox that is not ready until it is; the left anchor repeats itself less and less often."""
        key = (chain.key, message.change.request)

        def again(at: float) -> None:
            if key not in self._not_ready:
                return
            if chain.state is State.CLOSED or message.change.request in self._ground.cancelled:
                del self._not_ready[key]
                return
            self._ground.again.append((chain, message))
            self._look_again(chain, message, at)

        self._ground.alarm(now + _LOOK_S, again)

    def ack_lock(self, chain: Chain, message: AckLock, now: float) -> None:
        """The lock is granted: pass it on to the left, and keep it for the length of a lease."""
        right = chain.right
        lock = None if right is None else right.lock
        found = None if lock is None else step(lock.state, LockInput.ACK_LOCK)
        if lock is None or found is None or lock.request != message.request:
            return
        is_first = lock.state is not LockState.LOCKED
        if is_first and chain.joint is not None and self._is_wrong(chain, chain.joint):
            return
        lock.state = found[1]
        if is_first:
            self._record(chain)
        self._lease(chain, lock, now + LEASE_S)
        self._ground.send(leftward(chain), message)

    def _is_wrong(self, chain: Chain, joint: Joint) -> bool:
        """Look once more at what the proxy does to numbers; if that was wrong, the lock is given up to both sides."""
        refusal = self.joints.refusal(joint)
        changing = chain.changing
        if refusal is None or changing is None or changing.inside is None:
            return False
        request, last = changing.inside.request, changing.inside.last
        right, left = rightward(chain), leftward(chain)
        self._free(chain)
        self._ground.send(right, CancelLock(chain.chain_id, 0, request, last))
        self._ground.send(left, NackLock(chain.chain_id, 0, request, self._ground.settings.name, refusal))
        return True

    def nack_lock(self, chain: Chain, message: NackLock, now: float) -> None:
        """The lock is refused further on; once an anchor is done that can only be a late repetition."""
        inside = None if chain.changing is None else chain.changing.inside
        if (
            inside is not None
            and inside.request == message.request
            and (inside.left_done or inside.right_done)
        ):
            return
        self._release(chain, message.request, LockInput.NACK_LOCK)
        self._ground.send(leftward(chain), message)

    def cancel(self, chain: Chain, message: CancelLock, now: float) -> None:
        """The left anchor gives up: free the lock, or leave the new path."""
        inside = None if chain.changing is None else chain.changing.inside
        right = rightward(chain)
        lock = None if right is None else right.lock
        if lock is not None and lock.held is not None and lock.held.change.request == message.request:
            lock.held = None
        if inside is not None and inside.request == message.request and inside.new and not inside.committed:
            # Nobody else can tell those further on, for no message passes here any more.
            tell_cancelled(self._ground, chain, right, message.request, message.last, now)
            self._ground.send(chain.left, AckCancel(chain.chain_id, 0, message.request))
            self._ground.life.close(chain, "cancelled", now)
            return
        self._ground.send(right, message)
        if inside is not None and inside.request == message.request and not inside.new:
            self._release(chain, message.request, LockInput.CANCEL_LOCK)

    def renew(self, chain: Chain, message: RenewLock, now: float) -> None:
        """The change goes on: so does the lock."""
        right = rightward(chain)
        if right is not None and right.lock is not None and right.lock.request == message.request:
            self._lease(chain, right.lock, now + LEASE_S)
        self._ground.send(right, message)

    def old_done(self, chain: Chain, message: OldDone, now: float) -> None:
        """An anchor's half of the old path is empty; when both are, this host leaves."""
        inside = None if chain.changing is None else chain.changing.inside
        if inside is None or inside.request != message.request:
            return
        if inside.new:
            self._learn(chain, message)
            return
        before = inside.left_done and inside.right_done
        if message.rightward:
            inside.left_done = True
        else:
            inside.right_done = True
        if inside.left_done and inside.right_done and not before:
            if inside.state == FREEZE:
                # Its state is still to be fetched, which a FIN would change.
                self._ground.alarm(now + FROZEN_S, lambda at: self.leave(chain, inside, at))
            else:
                self.leave(chain, inside, now)

    def remember(self, chain: Chain, message: OldDone, now: float) -> None:
        """Be inside of a segment whose lock this agent has forgotten, for the length of a lease."""
        ground = self._ground
        inside = Inside(message.request, message.last, new=False)
        for one in members(chain):
            ground.changing(one).inside = inside
        if chain.joint is not None and chain.joint.right.right is not None:
            lock = chain.joint.right.right.lock = Lock(LockState.LOCKED, message.request, now + LEASE_S)
            self._lease(chain, lock, lock.until)
            self._record(chain)
            return

        def ended(at: float) -> None:
            if chain.changing is not None and chain.changing.inside is inside:
                chain.changing.inside = None
                ground.tidy(chain)

        ground.alarm(now + LEASE_S, ended)

    def _release(self, chain: Chain, request: int, what: LockInput) -> None:
        right = rightward(chain)
        lock = None if right is None else right.lock
        if lock is not None and lock.request == request and step(lock.state, what) is not None:
            self._free(chain)

    def _free(self, chain: Chain) -> None:
        right = rightward(chain)
        if right is not None:
            right.lock = None
        for one in members(chain):
            if one.changing is not None:
                one.changing.inside = None
                self._ground.tidy(one)
        self._record(chain)
        self.unsettle(chain)

    def _record(self, chain: Chain) -> None:
        """What the journal has of a joint has changed."""
        if chain.joint is not None:
            for one in members(chain):
                self._ground.life.record(one)

    def end_joint(self, chain: Chain) -> None:
        """A chain ends: what was joined to it goes on alone."""
        joint = chain.joint
        if joint is None:
            return
        for one in members(chain):
            inside = None if one.changing is None else one.changing.inside
            if one is not chain and one.changing is not None and inside is not None and not inside.committed:
                one.changing.inside = None
                self._ground.tidy(one)
                self._ground.life.record(one)
        if joint.right.right is not None:
            joint.right.right.lock = None
        joint.left.joint = joint.right.joint = None

    def _lease(self, chain: Chain, lock: Lock, until: float) -> None:
        lock.until = until
        before = self._traffic(chain)

        def ended(now: float) -> None:
            right = rightward(chain)
            if right is None or right.lock is not lock or lock.until != until:
                return
            found = None if chain.joint is None else inside(chain.joint)
            if chain.joint is None or found is None or not (found.left_done or found.right_done):
                self._free(chain)
            elif self.joints.is_empty(chain.joint) or self._traffic(chain) == before:
                # The left anchor renews no lock any more, so it is done, or the session is over; and the proxy has
                # nothing to say any more.
                found.left_done = found.right_done = True
                self.leave(chain, found, now)
            else:
                # It may be done, and what it said of that be lost: asked on behalf of the other one, it says it again.
                asked = rightward(chain) if found.left_done else leftward(chain)
                question = OldDone(
                    chain.chain_id, 0, found.request, found.left_done, found.last, waiting=True
                )
                self._ground.send(asked, question)
                self._lease(chain, lock, now + LEASE_S)

        self._ground.alarm(until, ended)

    def _traffic(self, chain: Chain) -> tuple[tuple[int, int], ...]:
        return tuple(self._ground.life.traffic(one) for one in members(chain) if one.joint is not None)

    def leave(self, chain: Chain, inside: Inside, now: float) -> None:
        """Close what is left towards the middlebox, and go a little later."""
        if chain.changing is None or chain.changing.inside is not inside or inside.committed:
            return
        inside.committed = True
        if chain.joint is not None:
            self.joints.leave(chain.joint, now)
            return
        ground, box, right = self._ground, chain.box, chain.right
        assert right is not None
        numbers = None if box is None else ground.numbers(chain, "left")
        if box is None or numbers is None:
            inside.parted = True
        else:
            fin = build_tcp(chain.session_in, numbers.received, numbers.sent, FIN | ACK, _WINDOW)
            ground.output.packet(box.left_write, fin)
        for flow in (*chain.left_flows(), *chain.right_flows()):
            if (
                box is not None
                and flow.out in (chain.left.write, right.write)
                and flow.port in (box.left_read, box.right_read)
                and flow.match in (chain.session_in.reversed(), chain.session_out)
            ):
                flow.slow = True
                ground.table.insert(flow)
            else:
                ground.table.delete(flow.port, flow.match)
        ground.alarm(now + LINGER_S, lambda at: ground.life.close(chain, "moved", at))

    def passed_by(self, chain: Chain, now: float) -> None:
        """The chain goes around this host, which was taken for dead: leave, unless it has a part in another change."""
        roles = chain.changing
        if roles is not None and (roles.left is not None or roles.right is not None):
            return
        if chain.right is None or chain.right.peer is None or chain.left.peer is None:
            return
        roles = self._ground.changing(chain)
        if roles.inside is None:
            roles.inside = Inside(0, 0, new=False)
        if roles.inside.new and not roles.inside.committed:
            self._ground.life.close(chain, "cancelled", now)
        elif roles.inside.new:
            self._ground.life.close(chain, "moved", now)
        else:
            self.leave(chain, roles.inside, now)

    def closing(self, chain: Chain, at: Located, now: float) -> None:
        """Answer the FIN that has come out of the middlebox with one of our own, and the last one with an ACK."""
        if chain.joint is not None:
            self.joints.closing(chain, chain.joint, at, now)
            return
        box, ground, inside = (
            chain.box,
            self._ground,
            None if chain.changing is None else chain.changing.inside,
        )
        if box is None or inside is None:
            return
        end = at.next_seq
        if at.five_tuple == chain.session_out and at.flags & FIN:
            back = build_tcp(chain.session_out.reversed(), at.ack, end, FIN | ACK, _WINDOW)
            ground.output.packet(box.right_write, back)
        elif at.five_tuple == chain.session_in.reversed() and at.flags & FIN:
            inside.fins = True
            ground.output.packet(box.left_write, build_tcp(chain.session_in, at.ack, end, ACK, _WINDOW))
        elif at.five_tuple == chain.session_out and inside.fins:
            inside.parted = True

    # The new path.

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
        inside = None if chain.changing is None else chain.changing.inside
        if inside is not None:
            inside.rehearsed[flow.port, flow.match] = at.next_seq
        if flow.port == UNDERLAY:
            self._ground.rehearse(at.five_tuple, at.seq, now)
            if chain.box is not None:
                # If the change is cancelled while the box has it, nobody would know it when it comes out.
                beyond = chain.session_out if chain.is_forward(flow) else chain.session_in.reversed()
                self._ground.rehearse(beyond, at.seq, now)
        apply(packet, flow, at)
        self._ground.output.packet(flow.out, packet)

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
            type(message.hops)(message.hops[1:]),
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
        """Go on after a restart as a host of a new path."""
        if not inside.new:
            self._resume_joint(chain, inside, now)
            return
        self._ground.pass_on(inside.request)
        if inside.committed:
            assert chain.changing is not None
            chain.changing.inside = None
            self._ground.tidy(chain)
        else:
            self._ground.alarm(now + LEASE_S, lambda at: self._not_committed(chain, inside, at))

    def _resume_joint(self, chain: Chain, inside: Inside, now: float) -> None:
        """Go on after a restart as the host of a proxy that is being taken out."""
        joined = inside.joined
        if joined is None:
            return
        joint = self.joints.resume(chain, inside, joined, now)
        if joint is None:
            self._ground.alarm(now + LEASE_S, lambda at: self._alone(chain, inside))
        elif not inside.committed and joint.right.right is not None:
            state = LockState.LOCKED if joined.locked else LockState.PENDING
            lock = joint.right.right.lock = Lock(state, inside.request, now + LEASE_S)
            self._lease(joint.right, lock, lock.until)

    def _alone(self, chain: Chain, inside: Inside) -> None:
        """The other chain has not come back from the journal: this one goes on by itself."""
        if chain.changing is not None and chain.changing.inside is inside and chain.joint is None:
            chain.changing.inside = None
            self._ground.tidy(chain)

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
            if flow is not None:
                self._ground.table.refresh(flow)
                if flow.top_seq >= 0 and distance(flow.top_seq, rehearsed) > 0:
                    return True
        return False

    def _learn(self, chain: Chain, message: OldDone) -> None:
        """An anchor is done: all that it received below the cutoffs it has acknowledged."""
        inside = None if chain.changing is None else chain.changing.inside
        if inside is None:
            return
        for forward, cutoff in ((True, inside.right_cutoff), (False, inside.left_cutoff)):
            if cutoff is not None:
                self._raise(chain, forward=forward, seq=None, ack=cutoff)
        inside.left_done = inside.left_done or message.rightward
        inside.right_done = inside.right_done or not message.rightward
        if inside.left_done and inside.right_done and inside.committed:
            assert chain.changing is not None
            chain.changing.inside = None
            self._ground.tidy(chain)

    def _raise(self, chain: Chain, *, forward: bool, seq: int | None, ack: int | None) -> None:
        """What an anchor says of its numbers holds here, for new paths carry the left anchor's."""
        key_of = self._ground.forward_key if forward else self._ground.backward_key
        for side in ("left", "right"):
            flow = self._ground.table.get(*key_of(chain, side))
            if flow is not None:
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
