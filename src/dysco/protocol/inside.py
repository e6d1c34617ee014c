"""Hosts between the anchors on the old path: they keep its lock, and leave when both halves of it are empty.

A host that leaves closes what is left towards its middlebox with FINs of its own, so that a connection tracker sees
an ordinary end; nothing of that leaves the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dysco.protocol.chain import Chain
from dysco.protocol.changing import Inside
from dysco.protocol.ground import Ground, leftward, rightward
from dysco.protocol.joints import LINGER_S, Joint, Joints, inside, members
from dysco.protocol.locks import LEASE_S, Lock, LockAction, LockInput, LockState, step
from dysco.protocol.states import State
from dysco.protocol.switching import FROZEN_S, tell_cancelled
from dysco.protocol.transfers import FREEZE
from dysco.wire.messages import (
    AckCancel,
    AckLock,
    CancelLock,
    NackLock,
    OldDone,
    RenewLock,
    RequestLock,
)
from dysco.wire.numbers import MASK32
from dysco.wire.packet import ACK, FIN, Located, build_tcp

_LOOK_S: Final = 0.02  # ours: between looks at a middlebox that is not ready
READY_S: Final = 2.0  # DESIGN section 7: how long a box may delay a lock because its sums are not final
_WINDOW: Final = 0xFFFF

BoxSums = Callable[[Chain], tuple[int, int] | None]
"""What a stream box has added to each direction beyond its ISNs, final from now on; None: not ready."""


class Hosts:
    """Does what hosts of the old path do."""

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
        if not self._ground.may_change(chain, change):
            return "the session is not established"
        if chain.box is not None and chain.box.mandatory and len(change.hops) < 2:
            return f"{chain.box.name} is mandatory"
        anchor = None if chain.changing is None else chain.changing.right
        if anchor is not None and anchor.direct:
            return "busy"  # who asks stands where that change has found nobody alive, and has no lock of it
        if anchor is not None and anchor.two is not None and anchor.change.request != change.request:
            return "busy"  # this request has come by the new path, whose sums the left facing has not yet
        lock, running = right.lock, None if chain.changing is None else chain.changing.left
        moved = ground.left_behind(change, leftward(chain).tuple.dst, right.tuple.src)
        if moved is not None and (lock is None or lock.request != change.request):
            return moved
        if lock is None or (now >= lock.until and running is None):
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
        if what is LockInput.REQUEST:
            self._lease(chain, lock, now + LEASE_S)  # the request may be lost, and who has asked begin again
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
        ends = inside is not None and inside.request == message.request
        if inside is not None and ends and inside.new and not (inside.left_done or inside.right_done):
            assert right is not None
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
        assert chain.changing is not None
        inside = chain.changing.inside
        assert inside is not None
        before = inside.left_done and inside.right_done
        if message.rightward:
            inside.left_done = True
        else:
            inside.right_done = True
        self._record(chain)  # who has said it, and hears that it is known here, says it no more
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
        if chain.joint is not None:
            assert chain.joint.right.right is not None
            lock = chain.joint.right.right.lock = Lock(LockState.LOCKED, message.request, now + LEASE_S)
            self._lease(chain, lock, lock.until)
            self._record(chain)
            return

        def ended(at: float) -> None:
            roles = chain.changing
            if roles is not None and roles.inside is inside and not inside.committed:
                roles.inside = None
                ground.tidy(chain)

        ground.alarm(now + LEASE_S, ended)

    def _release(self, chain: Chain, request: int, what: LockInput) -> None:
        right = rightward(chain)
        lock = None if right is None else right.lock
        if lock is not None and lock.request == request and step(lock.state, what) is not None:
            self._free(chain)

    def _free(self, chain: Chain) -> None:
        right = rightward(chain)
        assert right is not None
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
        right = joint.right.right
        assert right is not None
        if right.lock is not None and right.lock.request == joint.request:
            right.lock = None  # another one is that of the right chain's own change
        joint.left.joint = joint.right.joint = None

    def _lease(self, chain: Chain, lock: Lock, until: float) -> None:
        lock.until = until
        before = self._traffic(chain)

        def ended(now: float) -> None:
            right = rightward(chain)
            if right is None or right.lock is not lock or lock.until != until:
                return
            found = None if chain.joint is None else inside(chain.joint)
            if found is not None and found.committed:
                return  # there is nothing to keep any more
            if chain.joint is None or found is None or not (found.left_done or found.right_done):
                self._free(chain)
            elif self.joints.is_empty(chain.joint) and self._traffic(chain) == before:
                # The left anchor renews no lock any more, so it is done, or the session is over; the proxy has nothing
                # to say any more, and nobody to whom its acknowledgements did not come asks for them.
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

    def over(self, chain: Chain, packets: int, now: float) -> None:
        """The session has ended by another path: leave as well, unless more than so many packets have passed."""
        is_over = chain.state is State.TIME_WAIT and chain.changing is None
        if is_over and self._ground.life.traffic(chain)[0] == packets:
            inside = self._ground.changing(chain).inside = Inside(0, 0, new=False)
            self.leave(chain, inside, now, "closed")

    def leave(self, chain: Chain, inside: Inside, now: float, reason: str = "moved") -> None:
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
        ground.alarm(now + LINGER_S, lambda at: ground.life.close(chain, reason, at))

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
        box, ground = chain.box, self._ground
        assert box is not None  # else there is no flow any more
        assert chain.changing is not None
        inside = chain.changing.inside
        assert inside is not None
        end = at.next_seq
        if at.five_tuple == chain.session_out and at.flags & FIN:
            back = build_tcp(chain.session_out.reversed(), at.ack, end, FIN | ACK, _WINDOW)
            ground.output.packet(box.right_write, back)
        elif at.five_tuple == chain.session_in.reversed() and at.flags & FIN:
            inside.fins = True
            ground.output.packet(box.left_write, build_tcp(chain.session_in, at.ack, end, ACK, _WINDOW))
        elif at.five_tuple == chain.session_out and inside.fins:
            inside.parted = True

    def resume(self, chain: Chain, inside: Inside, now: float) -> None:
        """Go on after a restart as the host of a proxy that is being taken out."""
        joined = inside.joined
        assert joined is not None
        joint = self.joints.resume(chain, inside, joined, now)
        if joint is None:
            self._ground.alarm(now + LEASE_S, lambda at: self._alone(chain, inside))
        elif not inside.committed:
            assert joint.right.right is not None
            state = LockState.LOCKED if joined.locked else LockState.PENDING
            lock = joint.right.right.lock = Lock(state, inside.request, now + LEASE_S)
            self._lease(joint.right, lock, lock.until)

    def _alone(self, chain: Chain, inside: Inside) -> None:
        """The other chain has not come back from the journal: this one goes on by itself."""
        if chain.changing is not None and chain.changing.inside is inside and chain.joint is None:
            chain.changing.inside = None
            self._ground.tidy(chain)
