"""The right anchor of a change: it grants the lock, agrees to the new path, follows the left one (DESIGN section 8).

It alone translates: its own numbers are those inside of its left facing, the new path carries the left anchor's.
Once it has agreed it gives up only if it is told to, and takes the first data on the new path for an `ack`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from dysco.protocol.anchors import RightAction, RightInput, RightState, right
from dysco.protocol.chain import (
    HALF,
    SAME_TERMS,
    SEEN,
    WITH_SACK,
    Chain,
    Facing,
    Half,
    Seam,
    Terms,
    agreed,
    facing_agent,
    scales,
)
from dysco.protocol.changing import Anchor, Phase, RightAnchor
from dysco.protocol.ground import REHEARSED_WINDOW, Ground, id_of, located, shifted
from dysco.protocol.locks import LEASE_S, RENEW_S
from dysco.protocol.states import BROKEN
from dysco.protocol.switching import (
    BEGUN_AGAIN,
    FIRST_WAIT_S,
    FROZEN_S,
    HURRY_S,
    NOT_FREE,
    at_cutoff,
    begin_two,
    give_back,
    is_at_cutoff,
    patience,
    raise_alarm,
    rehearsed_isn,
    rehearsed_options,
    say_done,
    tell_done,
    where,
)
from dysco.protocol.transfers import FREEZE
from dysco.protocol.windows import windows
from dysco.wire.messages import Ack, AckAck, AckLock, LockQuery, NackSyn, RequestLock, Syn, SynAck
from dysco.wire.numbers import MASK32, earlier, later
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, Packet, build_tcp

QUERY_S: Final = 10.0  # DESIGN section 7: a right anchor that waits asks what has become of the change


class Right:
    """Does what the table of right anchors says."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.given_up: Callable[[Chain, Anchor, float], None] = lambda chain, anchor, now: None
        self.too_late: Callable[[Chain, RightAnchor, float], None] = lambda chain, anchor, now: None

    def request(self, chain: Chain, message: RequestLock, now: float, direct: str = "") -> str | None:
        """A requestLock has come to its end; why it is refused, if it is. direct: who has sent it past dead hosts."""
        ground = self._ground
        anchor = None if chain.changing is None else chain.changing.right
        if anchor is None:
            change = message.change
            if not ground.may_change(chain, change):
                return "the session is not established"
            if ground.numbers(chain, "left", forced=change.force) is None:
                if change.force:
                    ground.ask_inside(chain, "left", forced=True)
                return "not ready: no packets have passed since the agent began"
            moved = ground.left_behind(change, chain.left.tuple.dst)
            if moved is not None:
                return moved
            earlier = chain.left.sums or (0, 0)
            sums = (
                (message.forward_sum + earlier[0]) & MASK32,
                (message.backward_sum + earlier[1]) & MASK32,
            )
            anchor = RightAnchor(message.change, chain.left, message.anchor, sums, now)
            ground.changing(chain).right = anchor
            if message.joined:
                anchor.join(windows(chain, inner_left=False))
                ground.requested[message.change.request] = chain
                ground.install(chain)
                if not anchor.knows_stamps:
                    ground.ask_inside(chain, "left")
        elif anchor.change.request != message.change.request:
            return "busy"
        anchor.direct = anchor.direct or direct
        self._input(chain, anchor, RightInput.REQUEST_LOCK, now)
        changing = ground.changing(chain)
        early, changing.early = changing.early, None
        if early is not None and early[1].request == message.change.request:
            self.syn(chain, *early, now)
        return None

    def syn(self, chain: Chain, peer: str, message: Syn, now: float) -> None:
        """The new path has come here."""
        anchor = None if chain.changing is None else chain.changing.right
        if anchor is None:
            self._ground.changing(chain).early = (peer, message)
            self._ground.alarm(now + LEASE_S, lambda at: self._forget_early(chain, message))
            return
        if anchor.change.request != message.request:
            me = self._ground.settings.name
            busy = NackSyn(message.chain_id, message.hop, message.request, me, "busy")
            self._ground.tell(peer, busy)
            return
        new = anchor.new
        if new is not None and new.tuple != message.subsession and anchor.state is not RightState.TWO_PATHS:
            me = self._ground.settings.name
            self._ground.tell(peer, NackSyn(message.chain_id, message.hop, message.request, me, BEGUN_AGAIN))
            return
        if not anchor.knows_stamps:
            self._ground.ask_inside(chain, "left")  # the syn comes again
            return
        if anchor.new is None:
            if not self._ground.is_free(message.subsession):
                me = self._ground.settings.name
                taken = NackSyn(message.chain_id, message.hop, message.request, me, NOT_FREE)
                self._ground.tell(peer, taken)
                return
            new = facing_agent(message.subsession, peer, message.hop, opened=False)
            new.sums = anchor.sums
            inside, old = anchor.old.sums or (0, 0), anchor.old
            new.handshake = shifted(old.forward, inside[0] - anchor.sums[0]) + shifted(
                old.backward, anchor.sums[1] - inside[1]
            )
            if anchor.joined:
                join(chain, new, old, message)
            anchor.new = new
            self._ground.label("left", chain, new)
            self._ground.install(chain)
        self._input(chain, anchor, RightInput.SYN, now)
        self._ground.catch_up(message.subsession)

    def ack(self, chain: Chain, anchor: RightAnchor, message: Ack, now: float, *, whole: bool = True) -> None:
        """The left anchor has switched. whole: not only its cutoff is known."""
        if anchor.stamps is not None and anchor.stamps.peer is None and message.stamp:
            anchor.stamps.peer = message.stamp
        if anchor.windows is not None and message.edge:
            anchor.windows.learn((message.edge - anchor.sums[1]) & MASK32)
        cutoff = (message.cutoff + anchor.sums[0]) & MASK32
        answered = (message.acked - anchor.sums[1]) & MASK32
        if anchor.joined and whole and anchor.state is RightState.WAITING:
            anchor.informed |= self._ground.presume(chain, "left", cutoff, answered)
        self._input(chain, anchor, RightInput.ACK, now)
        two = anchor.two
        if two is not None and (anchor.informed or anchor.unsure) and whole:
            two.acked = later(two.acked, answered)
        if two is not None and two.peer_cutoff is None:
            two.peer_cutoff = cutoff
            # If it has acknowledged all that was ever sent to it on the old path, its half is empty by now.
            if whole:
                two.has_come(answered)
            if two.shown != two.cutoff:
                self._measure(anchor)
            anchor.peer_done = anchor.peer_done or (message.done and answered == two.cutoff)
            self._ground.life.record(chain)
            self.look(chain, anchor, now)

    def cancel(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """The left anchor has given up."""
        self._input(chain, anchor, RightInput.CANCEL_LOCK, now)

    def take_back(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """The left anchor hears nothing on the new path: forget the change for good, unless this one has switched."""
        if anchor.two is None:
            self._ground.cancel(anchor.change.request, anchor.change.last)
            self._input(chain, anchor, RightInput.CANCEL_LOCK, now)
            self._ground.life.record(chain)

    def peer_done(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """The left half of the old path is empty."""
        if anchor.two is not None:
            anchor.peer_done = True
            self.look(chain, anchor, now)

    def look(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """See whether the old path is empty by now."""
        two = anchor.two
        if two is None or not two.is_done:
            return
        if anchor.phase < Phase.DRAINED:
            two.empty = True
            self._ground.life.record(chain)
            self._ground.move(chain, anchor, Phase.DRAINED, now)
            tell_done(self._ground, chain, anchor, now, rightward=False)
        if anchor.may_complete and anchor.holding is None:
            self._input(chain, anchor, RightInput.DONE, now)

    def handshake(self, chain: Chain, anchor: RightAnchor, at: Located, now: float) -> bool:
        """Take what comes on the new path; True if it is part of the path handshake and goes no further."""
        new = anchor.new
        assert new is not None
        back = new.tuple.reversed()
        if at.flags & SYN:
            if not at.flags & ACK:
                self._ground.rehearse(at.five_tuple, at.seq, now)
                anchor.peer_next = (at.seq + 1) & MASK32
                if not anchor.isn:
                    numbers = self._ground.numbers(chain, "left", forced=anchor.change.force)
                    if numbers is None:
                        return (
                            True  # after a restart: hosts of the new path would believe a number made up here
                        )
                    own = rehearsed_isn(numbers, forced=anchor.change.force)
                    anchor.isn = (own + anchor.sums[1]) & MASK32
                options = rehearsed_options(new, forward=False)
                answer = build_tcp(back, anchor.isn, anchor.peer_next, SYN | ACK, REHEARSED_WINDOW, options)
                self._ground.output.packet(new.write, answer)
                self._update(anchor, new)
            return True
        is_bare = not at.payload_len and not at.flags & FIN
        last = is_at_cutoff(at)
        anchor.shown = anchor.shown or last or not is_bare
        if last:
            self.look(chain, anchor, now)
            return True
        if anchor.state is RightState.WAITING:
            if not is_bare and at.flags & ACK:
                self._input(chain, anchor, RightInput.NEW_DATA, now)
                return anchor.two is None
            if is_bare and not at.flags & RST and anchor.isn:
                self._update(anchor, new)
            return True
        rehearsed = at.ack == (anchor.isn + 1) & MASK32 and at.window == REHEARSED_WINDOW
        return is_bare and rehearsed and not at.flags & RST

    def _update(self, anchor: RightAnchor, new: Facing) -> None:
        """Tell the window as it is scaled, which a SYN-ACK cannot: trackers let pass no more than that."""
        assert anchor.peer_next is not None
        seq = (anchor.isn + 1) & MASK32
        update = build_tcp(new.tuple.reversed(), seq, anchor.peer_next, ACK, REHEARSED_WINDOW)
        self._ground.output.packet(new.write, update)

    def finish(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """Go on without the old path, which is dead."""
        self._input(chain, anchor, RightInput.DONE, now)

    def gone(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """The session ends."""
        anchor.stamps, anchor.joined = None, False
        self.drop(chain, anchor, now, anchor.epitaph)

    def _input(self, chain: Chain, anchor: RightAnchor, what: RightInput, now: float) -> None:
        found = right(anchor.state, what)
        if found is None:
            return
        ground = self._ground
        forced = anchor.change.force
        if found[0] is RightAction.COMMIT and anchor.joined and chain.state in BROKEN:
            # Behind the switch a reset of the proxy ends nothing; this one came before, and has gone on to the end.
            self.too_late(chain, anchor, now)
            return
        if found[0] is RightAction.COMMIT and ground.numbers(chain, "left", forced=forced) is None:
            # After a restart packets of the old path must show where it stands; `ack` is repeated. An end that waits
            # for the other one would say nothing.
            ground.ask_inside(chain, "left", forced=forced)
            return
        if found[0] is RightAction.COMMIT and not anchor.knows_stamps:
            ground.ask_inside(chain, "left")
            return
        if found[0] is RightAction.COMMIT and what is RightInput.ACK and not anchor.knows_peers:
            return  # a left anchor that has begun again asks its end for it; data of the new path show it themselves
        action, anchor.state = found
        match action:
            case RightAction.GRANT | RightAction.REPEAT if what is RightInput.REQUEST_LOCK:
                if action is RightAction.GRANT:
                    ground.move(chain, anchor, Phase.LOCKED, now)
                    self._wait(chain, anchor, now + LEASE_S)
                granted = AckLock(chain.chain_id, 0, anchor.change.request, anchor.joined)
                ground.send(anchor.old, granted)
                if anchor.direct:
                    past = replace(granted, chain_id=id_of(chain, anchor.old), hop=anchor.change.first)
                    ground.tell(anchor.direct, past)
            case RightAction.AGREE | RightAction.REPEAT if what is RightInput.SYN:
                if action is RightAction.AGREE:
                    self._wait(chain, anchor, now + QUERY_S)
                    ground.life.record(chain)
                own = 0 if anchor.stamps is None else anchor.stamps.own or 0
                ground.send(anchor.new, SynAck(chain.chain_id, 0, anchor.change.request, own))
            case RightAction.COMMIT:
                self._commit(chain, anchor, now)
            case RightAction.REPEAT:
                self._ack_ack(chain, anchor)
            case RightAction.DROP:
                self.drop(chain, anchor, now, "cancelled by the left anchor")
            case _:
                self._complete(chain, anchor, now)

    def _wait(self, chain: Chain, anchor: RightAnchor, due: float) -> None:
        anchor.deadline = due
        self._ground.alarm(due, lambda at: self._due(chain, anchor, due, at))

    def _due(self, chain: Chain, anchor: RightAnchor, due: float, now: float) -> None:
        if anchor.deadline != due or chain.changing is None or chain.changing.right is not anchor:
            return
        if anchor.state is RightState.REQUESTED:
            self._input(chain, anchor, RightInput.LEASE, now)
        elif anchor.state is RightState.WAITING:
            query = LockQuery(chain.chain_id, 0, anchor.change.request)
            self._ground.send(anchor.old, query)
            self._ground.send(anchor.new, query)
            self._wait(chain, anchor, now + QUERY_S)
        else:
            self._still_two(chain, anchor, now)

    def _still_two(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """Repeat what the other anchor, the old path and trackers on the new one may have missed."""
        two = anchor.two
        assert two is not None
        if two.is_done:
            say_done(self._ground, chain, anchor, rightward=False)
        elif two.peer_cutoff is None:
            self._ack_ack(chain, anchor)
        if Phase.STUCK not in anchor.since:
            two.hurried = now - anchor.since.get(Phase.TWO_PATHS, now) > HURRY_S
            self._measure(anchor)
            # When both halves are empty the other anchor may be done, and know nothing of the old path any more.
            waits = not (two.is_done and anchor.peer_done)
            if waits and (reminder := two.remind()) is not None:
                if anchor.stamps is not None:
                    anchor.stamps.to_old(reminder, located(reminder))
                self.to_path(anchor, reminder, old=True)
        raise_alarm(self._ground, chain, anchor, now)
        if Phase.STUCK in anchor.since and not self._ground.is_up(anchor.old.peer):
            self.given_up(chain, anchor, now)
        anchor.tries += 1
        stuck = Phase.STUCK in anchor.since
        self._wait(chain, anchor, now + (RENEW_S if stuck else patience(anchor.tries)))
        self.look(chain, anchor, now)

    def let_go(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """Send what was held for the new path: the state is where it shall be, or the time is over."""
        held, anchor.holding = anchor.holding, None
        if anchor.state is not RightState.TWO_PATHS:
            return  # the session has ended meanwhile, or nothing was held
        for packet in held or ():
            self.to_path(anchor, packet, old=False)
        anchor.held_bytes = 0
        self.look(chain, anchor, now)

    def to_path(self, anchor: RightAnchor, packet: Packet, *, old: bool) -> None:
        """Write a packet in this anchor's numbers to one of its paths."""
        facing = anchor.old if old else anchor.new
        assert facing is not None
        self._ground.to_left(facing, packet)

    def _ack_ack(self, chain: Chain, anchor: RightAnchor) -> None:
        two = anchor.two
        assert two is not None
        cutoff = (two.cutoff + anchor.sums[1]) & MASK32
        answered = (two.answered - anchor.sums[0]) & MASK32
        own = None if anchor.windows is None else anchor.windows.own
        edge = 0 if own is None else (own - anchor.sums[0]) & MASK32
        self._ground.send(
            anchor.new, AckAck(chain.chain_id, 0, anchor.change.request, cutoff, answered, edge)
        )

    def _commit(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        numbers = self._ground.stop(chain, "left", forced=anchor.change.force)
        assert numbers is not None
        anchor.two = begin_two(numbers, forced=anchor.change.force)
        if anchor.stamps is not None and anchor.new is not None:
            anchor.stamps.settle(anchor.new)
        if anchor.change.state == FREEZE:
            anchor.holding = []
            self._ground.alarm(now + FROZEN_S, lambda at: self.let_go(chain, anchor, at))
        self._ground.install(chain)
        self._measure(anchor)
        self._ground.life.record(chain)
        self._ack_ack(chain, anchor)
        self._ground.move(chain, anchor, Phase.TWO_PATHS, now)
        anchor.tries = 0
        self._wait(chain, anchor, now + FIRST_WAIT_S)

    def _measure(self, anchor: RightAnchor) -> None:
        """Show trackers on the new path where data begin: an ACK at the cutoff, which the left anchor keeps."""
        two, new = anchor.two, anchor.new
        assert two is not None
        assert new is not None
        if anchor.peer_next is not None:
            seq = (two.shown + anchor.sums[1]) & MASK32
            # Never more than is true, whoever believes it.
            ack = earlier(anchor.peer_next, (two.answered - anchor.sums[0]) & MASK32)
            self._ground.output.packet(new.write, at_cutoff(new.tuple.reversed(), seq, ack))

    def resume(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """Go on after a restart, in the middle of two paths or before."""
        anchor.unsure = anchor.two is not None
        if anchor.two is not None:
            if anchor.joined:
                self._ground.ask_inside(chain, "left", where(anchor.two))
            self._ack_ack(chain, anchor)
        self._wait(chain, anchor, now + FIRST_WAIT_S)

    def _complete(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        ground, two, new, old = self._ground, anchor.two, anchor.new, anchor.old
        assert two is not None
        assert new is not None
        assert chain.changing is not None
        ground.table.delete(old.read, old.tuple)
        ground.unlabel("left", chain, old)
        give_back(ground, old, now)
        if anchor.stamps is not None:
            anchor.stamps.finish(new)
        chain.left = new
        chain.changing.right = None
        ground.set_tops(chain, "left", where(two))
        ground.install(chain)
        ground.tidy(chain)
        ground.complete(chain, anchor.change.request, (two.cutoff + anchor.sums[1]) & MASK32)
        ground.requested.pop(anchor.change.request, None)
        ground.life.record(chain)
        ground.move(chain, anchor, Phase.DONE, now)

    def drop(self, chain: Chain, anchor: RightAnchor, now: float, reason: str) -> None:
        """Forget the new path; the session stays as it is."""
        ground, new = self._ground, anchor.new
        if new is not None:
            ground.table.delete(new.read, new.tuple)
            ground.unlabel("left", chain, new)
        assert chain.changing is not None
        chain.changing.right = None
        ground.requested.pop(anchor.change.request, None)
        if anchor.joined:
            ground.install(chain)  # its packets need not be seen any more
        anchor.state = RightState.ONE_PATH
        ground.move(chain, anchor, Phase.ABORTED, now, "", reason)  # who has refused, the left anchor tells
        ground.tidy(chain)

    def _forget_early(self, chain: Chain, message: Syn) -> None:
        changing = chain.changing
        if changing is not None and changing.early is not None and changing.early[1] is message:
            changing.early = None
            self._ground.tidy(chain)


def join(chain: Chain, new: Facing, old: Facing, message: Syn) -> None:
    """Let a facing be the end of another chain's subsession; messages that pass here change their id."""
    seam = old.seam or Seam()
    new.seam = Seam(message.chain_id, seam.stamp, _terms(message, old, seam.terms))
    # On the new path stand the left anchor's numbers, and what its side has agreed on.
    outer = [Half(*HALF.unpack_from(message.handshake, at)) for at in (0, HALF.size)]
    own = (new.forward, new.backward)
    new.handshake = b"".join(
        HALF.pack(mine.isn, *its[1:]) if its.flags & SEEN else HALF.pack(*mine)
        for mine, its in zip(own, outer, strict=True)
    )
    right = chain.right
    if right is not None and right.peer is not None:
        if right.seam is None:
            right.seam = Seam()
        right.seam.chain_id = right.seam.chain_id or chain.chain_id


def _terms(message: Syn, old: Facing, before: Terms) -> Terms:
    """How the left anchor's handshake differs from that of the inner side, which the old facing has translated."""
    outer = (
        Half(*HALF.unpack_from(message.handshake)),
        Half(*HALF.unpack_from(message.handshake, HALF.size)),
    )
    if not all(half.flags & SEEN for half in outer):
        return SAME_TERMS
    scale, inner = scales(outer), scales((old.forward, old.backward))
    inner = inner[0] - before.scale_in, inner[1] + before.scale_out
    has_sack = before.strip_out or (agreed((old.forward, old.backward), WITH_SACK) and not before.strip_in)
    sack = agreed(outer, WITH_SACK)
    return Terms(scale[0] - inner[0], inner[1] - scale[1], sack and not has_sack, has_sack and not sack)
