"""The left anchor of a change: it asks for the lock, opens the new path, decides, and switches (DESIGN section 8).

requestLock -->  old path  --> right anchor        SYN, SYN-ACK, ACK on the wire of the new path, so that
syn         -->  new path  --> right anchor        boxes on it see a beginning
ack         -->  new path  (point of no return: own cutoff)
oldDone     <-->  both paths, when all below both cutoffs is acknowledged
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dysco.protocol.anchors import LeftAction, LeftInput, LeftState, left
from dysco.protocol.chain import Chain, Facing, Seam, facing_agent
from dysco.protocol.changing import Anchor, LeftAnchor, Phase
from dysco.protocol.ground import REHEARSED_WINDOW, Ground, id_of, leftward, located
from dysco.protocol.locks import COMMIT_S, LEASE_S, RENEW_S, Lock, LockAction, LockInput, LockState
from dysco.protocol.locks import step as lock_step
from dysco.protocol.neighbours import reached
from dysco.protocol.states import BROKEN
from dysco.protocol.switching import (
    FROZEN_S,
    HURRY_S,
    at_cutoff,
    begin_two,
    give_back,
    is_at_cutoff,
    patience,
    raise_alarm,
    rehearsed_isn,
    rehearsed_options,
    say_done,
    tell_cancelled,
    tell_done,
    where,
)
from dysco.protocol.transfers import COPY, FAILED, FREEZE, Transfers
from dysco.protocol.windows import windows
from dysco.wire.messages import (
    Ack,
    AckAck,
    AckLock,
    CancelLock,
    Change,
    Handshake,
    Hops,
    LockStatus,
    NackLock,
    NackSyn,
    RenewLock,
    RequestLock,
    StateTransferred,
    Syn,
    SynAck,
)
from dysco.wire.numbers import MASK32, earlier, later
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, build_tcp

SYN_TRIES: Final = 3  # DESIGN section 8
SILENT_S: Final = (
    5.0  # ours: how long after the switch the new path may say nothing before it is worth telling
)
SILENT: Final = "the new path is silent since the switch: a host on it is dead or cut off"
TAKEN_BACK: Final = 4  # in LockStatus
LOCK_PATIENCE_S: Final = 5.0  # ours: longer than a held request or a box that is not ready may take


class Left:
    """Does what the table of left anchors says."""

    def __init__(self, ground: Ground, transfers: Transfers) -> None:
        self._ground = ground
        self.transfers = transfers
        self.past: Callable[[Chain, LeftAnchor], None] = lambda chain, anchor: None
        self.given_up: Callable[[Chain, Anchor, float], None] = lambda chain, anchor, now: None

    def start(self, chain: Chain, change: Change, now: float) -> tuple[str, str] | None:
        """Begin a change; if it cannot begin, by whom and why it is refused."""
        ground, me = self._ground, self._ground.settings.name
        right = chain.right
        assert right is not None  # whose label the change names
        if not ground.may_change(chain, change):
            return me, "the session is not established"
        if not change.hops:
            return me, "the change does not name its right anchor"
        if not ground.allowed(chain, change.origin):
            return me, f"{change.origin} may not change this session"
        lock = right.lock
        running = None if chain.changing is None else chain.changing.left
        if running is not None or (lock is not None and now < lock.until):
            return me, "busy"
        if ground.numbers(chain, "right", forced=change.force) is None:
            if change.force:
                ground.ask_inside(chain, "right", forced=True)
            return me, "not ready: no packets have passed since the agent began"
        if not ground.is_opened(chain):
            ground.ask_inside(chain, "right")
            return me, "not ready: the SYN-ACK has not been acknowledged yet"
        moved = ground.left_behind(change, right.tuple.src)
        if moved is not None:
            return me, moved
        found = ground.new_subsession(change.hops[0].address, now)
        if isinstance(found, str):
            return me, found
        anchor = LeftAnchor(change, right, now)
        anchor.new = facing_agent(found[0], found[1], ground.draw_label(), opened=True)
        anchor.new.handshake = right.handshake
        if right.seam is not None:
            anchor.new.seam = Seam(right.seam.chain_id, right.seam.stamp, right.seam.terms)
        ground.life.via[found[0].dst] += 1
        right.lock = Lock(LockState.OWN, change.request, now + LEASE_S)
        ground.changing(chain).left = anchor
        ground.label("right", chain, anchor.new)
        ground.install(chain)
        self._input(chain, anchor, LeftInput.START, now)
        return None

    def ack_lock(self, chain: Chain, anchor: LeftAnchor, message: AckLock, now: float) -> None:
        """The right anchor has granted the lock."""
        lock = anchor.old.lock
        if anchor.state is LeftState.REQUESTING and lock is not None:
            self._lock(chain, anchor, LockInput.ACK_LOCK)
            lock.until = now + LEASE_S
            self._input(chain, anchor, LeftInput.ACK_LOCK, now)
            self._ground.move(chain, anchor, Phase.LOCKED, now)
            if message.joined:
                # Only now does the right anchor know by which id the new path comes.
                anchor.join(windows(chain, inner_left=True))
                anchor.agreed = (
                    anchor.agreed and anchor.stamps is None
                )  # else it is said again, with a timestamp
                self._ground.install(chain)
                self._syn(chain, anchor)
                self._rehearse(chain, anchor)
                self._repeat(chain, anchor, now)
                self._ask_inside(chain, anchor)
            self._ready(chain, anchor, now)

    def _ask_inside(self, chain: Chain, anchor: LeftAnchor) -> None:
        if not anchor.knows_stamps:
            self._ground.ask_inside(chain, "right")

    def nack_lock(self, chain: Chain, anchor: LeftAnchor, message: NackLock, now: float) -> None:
        """Somebody refuses the lock."""
        anchor.reason = (message.by, message.reason)
        self._input(chain, anchor, LeftInput.NACK_LOCK, now)

    def syn_ack(self, chain: Chain, anchor: LeftAnchor, message: SynAck, now: float) -> None:
        """All new hops have agreed."""
        if not anchor.agreed:
            anchor.agreed = True
            if anchor.stamps is not None:
                anchor.stamps.peer = message.stamp
            if not anchor.shaken:
                self._rehearse(chain, anchor)
            self._ready(chain, anchor, now)

    def nack_syn(self, chain: Chain, anchor: LeftAnchor, message: NackSyn, now: float) -> None:
        """Somebody on the new path refuses."""
        anchor.reason = (message.by, message.reason)
        self._input(chain, anchor, LeftInput.FAIL, now)

    def ack_ack(self, chain: Chain, anchor: LeftAnchor, message: AckAck, now: float) -> None:
        """The right anchor has switched, too."""
        if anchor.windows is not None and message.edge:
            anchor.windows.learn(message.edge)
        if anchor.two is not None and anchor.unsure:
            anchor.two.acked = later(anchor.two.acked, message.acked)
        if anchor.two is not None and anchor.two.peer_cutoff is None:
            anchor.two.peer_cutoff = message.cutoff
            anchor.two.has_come(message.acked)
            if anchor.two.shown != anchor.two.cutoff:
                self._measure(anchor)
            anchor.two.ack_limit = None
            self._ground.life.record(chain)
            self.look(chain, anchor, now)

    def ack_cancel(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """The old path is free again; or the right anchor has not switched, and will not any more."""
        if anchor.state is LeftState.TWO_PATHS and anchor.is_taken_back:
            self._go_back(chain, anchor)
        self._input(chain, anchor, LeftInput.ACK_CANCEL, now)

    def peer_done(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """The right half of the old path is empty."""
        if anchor.two is not None:
            anchor.peer_done = True
            self.look(chain, anchor, now)

    def look(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """See whether the old path is empty by now."""
        two = anchor.two
        if two is None or not two.is_done:
            return
        if anchor.phase < Phase.DRAINED:
            two.empty = True
            self._ground.life.record(chain)
            self._ground.move(chain, anchor, Phase.DRAINED, now)
            tell_done(self._ground, chain, anchor, now, rightward=True)
        if anchor.peer_done and anchor.holding is not None and not anchor.moved:
            self.transfers.begin(chain, anchor)
        elif anchor.may_complete:
            self._input(chain, anchor, LeftInput.DONE, now)

    def seen_inside(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """The inner side has shown its timestamps."""
        self._ready(chain, anchor, now)

    def state_moved(self, chain: Chain, anchor: LeftAnchor, message: StateTransferred, now: float) -> None:
        """The state has come to its new place, or cannot: before the switch that ends the change."""
        if message.status == FAILED and anchor.two is None:
            anchor.reason = (message.by, message.reason)
            self._input(chain, anchor, LeftInput.FAIL, now)
            return
        anchor.moved = True
        self._ready(chain, anchor, now)
        self.let_go(chain, anchor, now)

    def let_go(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """Send what was held for the new path."""
        held, anchor.holding = anchor.holding, None
        if anchor.state is not LeftState.TWO_PATHS:
            return  # the session has ended meanwhile, or nothing was held
        new = anchor.new
        assert new is not None
        for packet in held or ():
            self._ground.to_right(new, packet)
        anchor.held_bytes = 0
        self.look(chain, anchor, now)

    def handshake(self, chain: Chain, anchor: LeftAnchor, at: Located, now: float) -> bool:
        """Take what comes on the new path; True if it is part of the path handshake and goes no further."""
        new = anchor.new
        assert new is not None
        if at.flags & SYN:
            if at.flags & ACK and at.ack == (anchor.isn + 1) & MASK32:
                self._ground.rehearse(at.five_tuple, at.seq, now)
                if anchor.state is LeftState.TWO_PATHS:
                    return (
                        True  # behind the ACK at the cutoff the right anchor keeps nothing of this any more
                    )
                next_one = anchor.peer_next = (at.seq + 1) & MASK32
                # The second one is a window update: trackers take it as the measure of what may follow.
                for _ in range(2):
                    shake = build_tcp(new.tuple, at.ack, next_one, ACK, REHEARSED_WINDOW)
                    self._ground.output.packet(new.write, shake)
                if not anchor.shaken:
                    anchor.shaken = True
                    self._ready(chain, anchor, now)
            return True
        if anchor.state is LeftState.TWO_PATHS:
            last = is_at_cutoff(at)
            anchor.shown = anchor.shown or last or at.payload_len > 0 or bool(at.flags & FIN)
            if last:
                self.look(chain, anchor, now)
                return True
            rehearsed = at.ack == (anchor.isn + 1) & MASK32 and at.window == REHEARSED_WINDOW
            return rehearsed and not at.payload_len and not at.flags & (FIN | RST)
        if (
            at.flags & RST and anchor.agreed
        ):  # before, a host may have answered that does not know of the change yet
            anchor.reason = (self._ground.settings.name, "the new path was reset")
            self._input(chain, anchor, LeftInput.FAIL, now)
        return True

    def finish(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """Go on without the old path, which is dead."""
        self._input(chain, anchor, LeftInput.DONE, now)

    def fail(self, chain: Chain, anchor: LeftAnchor, reason: str, now: float) -> None:
        """Give up as long as that is possible."""
        anchor.reason = (self._ground.settings.name, reason)
        self._input(chain, anchor, LeftInput.FAIL, now)

    def gone(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """The session ends: give back what the change has taken."""
        if anchor.state is not LeftState.TWO_PATHS:
            self._cancel(chain, anchor, now, anchor.old, anchor.new)
        anchor.reason = (self._ground.settings.name, anchor.epitaph)
        anchor.stamps, anchor.joined = None, False
        self._drop(chain, anchor, now)

    def _input(self, chain: Chain, anchor: LeftAnchor, what: LeftInput, now: float) -> None:
        found = left(anchor.state, what)
        if found is None:
            return
        action, anchor.state = found
        anchor.tries = 0
        match action:
            case LeftAction.REQUEST:
                self._ground.move(chain, anchor, Phase.REQUESTED, now)
                self._request(chain, anchor)
                self._syn(chain, anchor)
                self._rehearse(chain, anchor)
                self._repeat(chain, anchor, now)
            case LeftAction.WAIT:
                pass
            case LeftAction.COMMIT:
                self._commit(chain, anchor, now)
            case LeftAction.CANCEL:
                self._lock(chain, anchor, LockInput.CANCEL_LOCK)
                self._cancel(chain, anchor, now, anchor.old, anchor.new)
                self._repeat(chain, anchor, now)
            case LeftAction.DROP:
                if what is LeftInput.NACK_LOCK:
                    self._lock(chain, anchor, LockInput.NACK_LOCK)
                    self._cancel(chain, anchor, now, anchor.new)
                self._drop(chain, anchor, now)
            case _:
                self._complete(chain, anchor, now)

    def _ready(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        if not (anchor.agreed and anchor.shaken and anchor.knows_stamps):
            return
        if anchor.state is LeftState.SETTING_UP:
            if anchor.joined and chain.state in BROKEN:
                # Behind the switch a reset of the proxy ends nothing; this one came before, and has gone on to the end.
                self.fail(chain, anchor, "the session was reset", now)
                return
            if now - anchor.begun_at > COMMIT_S:
                self.fail(chain, anchor, "the lock would not last", now)
                return
            if anchor.phase < Phase.NEW_PATH_UP:
                self._ground.move(chain, anchor, Phase.NEW_PATH_UP, now)
            if anchor.change.state == COPY and not anchor.moved:
                self.transfers.begin(chain, anchor)
                return
            self._input(chain, anchor, LeftInput.READY, now)

    # What is sent.

    def _request(self, chain: Chain, anchor: LeftAnchor) -> None:
        me = self._ground.settings.name
        self._ground.send(anchor.old, RequestLock(chain.chain_id, 0, anchor.change, me))
        if anchor.change.force and (anchor.tries or not self._ground.is_up(anchor.old.peer)):
            self.past(chain, anchor)

    def _syn(self, chain: Chain, anchor: LeftAnchor) -> None:
        new, change = anchor.new, anchor.change
        assert new is not None
        message = Syn(
            chain.chain_id,
            0,
            change.request,
            change.last,
            chain.session_out,
            new.tuple,
            Hops(reached(change.hops, new.tuple)),
            Handshake(new.handshake),
            self._ground.settings.name,
        )
        self._ground.send(new, message)

    def _rehearse(self, chain: Chain, anchor: LeftAnchor) -> None:
        """Send the SYN of the path handshake; the number before the next one, the same at every repetition."""
        new = anchor.new
        assert new is not None
        if not anchor.isn:
            forced = anchor.change.force
            numbers = self._ground.numbers(chain, "right", forced=forced)
            assert numbers is not None  # the change has not begun without
            anchor.isn = rehearsed_isn(numbers, forced=forced)
        options = rehearsed_options(new, forward=True)
        self._ground.output.packet(
            new.write, build_tcp(new.tuple, anchor.isn, 0, SYN, REHEARSED_WINDOW, options)
        )

    def _cancel(self, chain: Chain, anchor: LeftAnchor, now: float, *facings: Facing | None) -> None:
        change = anchor.change
        for facing in facings:
            assert facing is not None
            tell_cancelled(self._ground, chain, facing, change.request, change.last, now)
        if anchor.direct:
            direct = CancelLock(id_of(chain, anchor.old), change.last, change.request, change.last)
            self._ground.tell(anchor.direct, direct)

    def _repeat(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """Plan to send again what is not answered."""
        wait = RENEW_S if Phase.STUCK in anchor.since else patience(anchor.tries)
        anchor.deadline = due = now + wait
        self._ground.alarm(due, lambda at: self._due(chain, anchor, due, at))

    def _due(self, chain: Chain, anchor: LeftAnchor, due: float, now: float) -> None:
        if anchor.deadline != due or chain.changing is None or chain.changing.left is not anchor:
            return
        anchor.tries += 1
        match anchor.state:
            case LeftState.REQUESTING | LeftState.SETTING_UP:
                locked = anchor.state is LeftState.SETTING_UP
                if not locked and now - anchor.begun_at > LOCK_PATIENCE_S:
                    self.fail(chain, anchor, "the lock was not answered", now)
                    return
                if locked and now - anchor.begun_at > COMMIT_S:
                    self.fail(chain, anchor, "the lock would not last", now)
                    return
                # Until the lock is there the right anchor keeps the syn, so its silence says nothing of the path.
                if locked and anchor.tries > SYN_TRIES and not (anchor.agreed and anchor.shaken):
                    what = "does not carry packets" if anchor.agreed else "was not answered"
                    self.fail(chain, anchor, f"the new path {what}", now)
                    return
                if locked and anchor.tries > SYN_TRIES and not anchor.knows_stamps:
                    self.fail(chain, anchor, "not ready: the end of the session shows no timestamps", now)
                    return
                self._ask_inside(chain, anchor)
                if not locked:
                    self._request(chain, anchor)
                if not anchor.agreed:
                    self._syn(chain, anchor)
                if not anchor.shaken:
                    self._rehearse(chain, anchor)
                if anchor.phase is Phase.NEW_PATH_UP:
                    self.transfers.begin(chain, anchor)
            case LeftState.CANCELLING:
                if anchor.tries > SYN_TRIES:
                    self._input(chain, anchor, LeftInput.TIMER, now)
                    return
                self._cancel(chain, anchor, now)
            case _:
                self._still_two(chain, anchor, now)
        self._repeat(chain, anchor, now)

    def _still_two(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """Repeat what the other anchor, the old path and trackers on the new one may have missed."""
        two, change = anchor.two, anchor.change
        assert two is not None
        if two.peer_cutoff is None or not anchor.peer_done:
            self._ack(chain, anchor)
        if two.peer_cutoff is None and now - anchor.since.get(Phase.TWO_PATHS, now) > SILENT_S:
            self._warn(chain, anchor, SILENT, now)
            anchor.is_taken_back = not anchor.joined and not change.force
            if anchor.is_taken_back:
                taken_back = LockStatus(
                    chain.chain_id, 0, change.request, TAKEN_BACK, change.last, two.cutoff
                )
                self._ground.send(anchor.old, taken_back)
        elif anchor.new is not None and not self._ground.is_up(anchor.new.peer):
            self._warn(chain, anchor, f"{anchor.new.peer} on the new path cannot be reached", now)
        if two.is_done:
            say_done(self._ground, chain, anchor, rightward=True)
        if Phase.STUCK not in anchor.since:
            two.hurried = now - anchor.since.get(Phase.TWO_PATHS, now) > HURRY_S
            self._measure(anchor)
            # When both halves are empty the other anchor may be done, and know nothing of the old path any more.
            waits = not (two.is_done and anchor.peer_done)
            if waits and (reminder := two.remind()) is not None:
                if anchor.stamps is not None:
                    anchor.stamps.to_old(reminder, located(reminder))
                self._ground.to_right(anchor.old, reminder)
        if now >= anchor.renew_at:
            anchor.renew_at = now + RENEW_S
            assert anchor.old.lock is not None  # nobody takes it as long as the change goes on
            anchor.old.lock.until = now + LEASE_S
            renewal = RenewLock(chain.chain_id, 0, change.request, change.last)
            self._ground.send(anchor.old, renewal)
        raise_alarm(self._ground, chain, anchor, now)
        if Phase.STUCK in anchor.since and not self._ground.is_up(anchor.old.peer):
            self.given_up(chain, anchor, now)
        self.look(chain, anchor, now)

    def _warn(self, chain: Chain, anchor: LeftAnchor, why: str, now: float) -> None:
        """Tell once why a change that cannot be given up any more does not go on."""
        if not anchor.warned:
            anchor.warned = True
            why += ", and data wait for it"
            self._ground.say(chain, anchor, Phase.STUCK, now, self._ground.settings.name, why)

    def _ack(self, chain: Chain, anchor: LeftAnchor) -> None:
        two = anchor.two
        assert two is not None
        drained = two.forced or two.acked == two.cutoff
        own = 0 if anchor.stamps is None else anchor.stamps.own or 0
        answered = two.answered if two.forced else two.told_old
        edge = 0 if anchor.windows is None else anchor.windows.own or 0
        request = anchor.change.request
        message = Ack(chain.chain_id, 0, request, two.cutoff, answered, drained, own, edge & MASK32)
        self._ground.send(anchor.new, message)

    # Switching.

    def _commit(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        numbers = self._ground.stop(chain, "right", forced=anchor.change.force)
        assert numbers is not None
        anchor.two = begin_two(numbers, forced=anchor.change.force)
        anchor.two.ack_limit = anchor.peer_next
        if anchor.stamps is not None and anchor.new is not None:
            anchor.stamps.settle(anchor.new)
        if anchor.change.state == FREEZE:
            anchor.holding = []
            self._ground.alarm(now + FROZEN_S, lambda at: self.let_go(chain, anchor, at))
        anchor.renew_at = now + RENEW_S
        self._ground.install(chain)
        self._measure(anchor)
        self._ground.life.record(chain)
        self._ack(chain, anchor)
        self._ground.move(chain, anchor, Phase.TWO_PATHS, now)
        self._repeat(chain, anchor, now)

    def _measure(self, anchor: LeftAnchor) -> None:
        """Show trackers on the new path where data begin: an ACK at the cutoff, which the right anchor keeps."""
        two, new = anchor.two, anchor.new
        assert two is not None
        assert new is not None
        assert anchor.peer_next is not None  # the path handshake comes before the switch
        ack = earlier(anchor.peer_next, two.answered)  # never more than is true, whoever believes it
        self._ground.output.packet(new.write, at_cutoff(new.tuple, two.shown, ack))

    def _go_back(self, chain: Chain, anchor: LeftAnchor) -> None:
        """Have one path again, the old one. What was for the new path is not taken; TCP repeats it."""
        ground, two = self._ground, anchor.two
        assert two is not None
        anchor.two = anchor.holding = anchor.stamps = None
        anchor.reason = (ground.settings.name, SILENT)
        ground.set_tops(chain, "right", where(two))
        ground.install(chain)
        ground.life.record(chain)

    def resume(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """Go on after a restart, in the middle of two paths."""
        anchor.unsure = True
        anchor.since.setdefault(Phase.TWO_PATHS, now)
        if anchor.two is not None and anchor.joined:
            self._ground.ask_inside(chain, "right", where(anchor.two))
        self._ack(chain, anchor)
        self._repeat(chain, anchor, now)

    def _complete(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        ground, two, new, old = self._ground, anchor.two, anchor.new, anchor.old
        assert two is not None
        assert new is not None
        assert chain.changing is not None
        ground.table.delete(old.read, old.tuple.reversed())
        ground.unlabel("right", chain, old)
        give_back(ground, old, now)
        if anchor.stamps is not None:
            anchor.stamps.finish(new)
        chain.right = new
        chain.changing.left = None
        ground.set_tops(chain, "right", where(two))
        ground.install(chain)
        ground.tidy(chain)
        ground.complete(chain, anchor.change.request)
        ground.life.record(chain)
        ground.move(chain, anchor, Phase.DONE, now)

    def _drop(self, chain: Chain, anchor: LeftAnchor, now: float) -> None:
        """Forget the new path; the session stays as it is."""
        ground, new = self._ground, anchor.new
        assert new is not None
        assert chain.changing is not None
        ground.table.delete(new.read, new.tuple.reversed())
        ground.unlabel("right", chain, new)
        give_back(ground, new, now)
        chain.changing.left = None
        if anchor.joined:
            ground.install(chain)  # its packets need not be seen any more
        anchor.state = LeftState.ONE_PATH
        lock = anchor.old.lock
        if lock is not None and lock.request == anchor.change.request:
            anchor.old.lock = None  # else another change has taken it while this one was being cancelled
        refused = anchor.phase is Phase.REQUESTED
        ground.move(chain, anchor, Phase.REFUSED if refused else Phase.ABORTED, now, *anchor.reason)
        ground.tidy(chain)
        if lock is not None and lock.held is not None:
            ground.again.append((chain, lock.held))

    def _lock(self, chain: Chain, anchor: LeftAnchor, what: LockInput) -> None:
        lock = anchor.old.lock
        assert lock is not None  # nobody takes it as long as the change goes on
        found = lock_step(lock.state, what)
        assert found is not None
        action, lock.state = found
        if action is LockAction.NACK_HELD and lock.held is not None:
            held, lock.held = lock.held, None
            nack = NackLock(chain.chain_id, 0, held.change.request, self._ground.settings.name, "busy")
            self._ground.send(leftward(chain), nack)
