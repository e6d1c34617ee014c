"""A proxy dies while it is being taken out: the session is saved if nothing is lost, and reset at both ends if it is.

A proxy acknowledges what it has not passed on yet; if it dies with that, nobody else has it. So each anchor tells the
other, along the new path, what its end was given as acknowledged and what it has acknowledged itself. Where all that
was acknowledged has come, both ends still hold the rest: the anchors go on without the old path, and TCP repeats it.
An anchor that finds this says that it agrees, and goes on when the other one does: that one may not hear a word of it,
and give the session up.
Else both reset their end, and the event says how much has not come. What still comes over the old path counts no more,
or the two would decide by different numbers.

A proxy is taken for dead when it has reset the session before all had passed, or has sent a FIN before that and
nothing before the FIN is under way; when the next host on the old path knows nothing of it any more; or when the old
path is not empty after a minute and there is no association with that host. An anchor that has begun again since the
switch does not know what was acknowledged meanwhile, and gives the session up. So does a right anchor that has passed
a reset on before it heard of the switch: its end does not have the session any more.
"""

from __future__ import annotations

from typing import Final

from dysco.protocol.chain import Chain
from dysco.protocol.changing import Anchor, Dead, LeftAnchor, Phase, RightAnchor
from dysco.protocol.ground import Ground
from dysco.protocol.left import Left
from dysco.protocol.right import Right
from dysco.protocol.states import BROKEN
from dysco.protocol.switching import ALARM_S, patience, tell_done
from dysco.wire.messages import OldDead
from dysco.wire.numbers import MASK32, distance

OPEN, SAVED, OVER, AGREED = range(4)
GRACE_S: Final = 2.0  # ours: what an end was given before is acknowledged by then
SILENT_S: Final = 10.0  # ours: an anchor that has not answered by then does not have the session any more


class Rescue:
    """Does what both anchors do when a proxy is dead."""

    def __init__(self, ground: Ground, left: Left, right: Right) -> None:
        self._ground = ground
        self._left = left
        self._right = right
        left.given_up = right.given_up = self.begin
        right.too_late = self.too_late

    def begin(self, chain: Chain, anchor: Anchor, now: float) -> None:
        """Take the proxy for dead, unless the other anchor knows better."""
        if anchor.dead is not None or anchor.two is None or not anchor.joined:
            return
        anchor.dead = dead = Dead(anchor.two.acked, now)
        self._ground.counters["proxy_dead"] += 1

        def again(at: float, tries: int = 0) -> None:
            if anchor.dead is not dead or not _is_there(chain, anchor):
                return
            self._say(chain, anchor, dead)
            self._ground.alarm(at + patience(tries), lambda late: again(late, tries + 1))
            if tries:
                self._decide(chain, anchor, dead, at)

        again(now)

    def hear(self, chain: Chain, anchor: Anchor, message: OldDead, now: float) -> None:
        """The other anchor takes it for dead, too."""
        if anchor.two is None:
            return  # it hears of the switch first, and this again
        self.begin(chain, anchor, now)
        dead = anchor.dead
        if dead is None:
            return
        if message.verdict in (AGREED, SAVED):
            self._complete(chain, anchor, now)
        elif message.verdict == OVER:
            self._give_up(chain, anchor, "the other side cannot go on without it", now)
        else:
            forward, backward = anchor.sums if isinstance(anchor, RightAnchor) else (0, 0)
            dead.peer = (message.acked + forward) & MASK32, (message.answered - backward) & MASK32
            dead.heard = now
            self._decide(chain, anchor, dead, now)

    def too_late(self, chain: Chain, anchor: RightAnchor, now: float) -> None:
        """The left anchor has switched, and the end here was reset before: nobody follows it."""
        self._ground.counters["proxy_dead"] += 1
        over = OldDead(chain.chain_id, 0, anchor.change.request, False, 0, 0, OVER)
        self._ground.send(anchor.new, over)
        self._end(chain, anchor, "it had reset the session before this agent heard of the switch", now)

    def _say(self, chain: Chain, anchor: Anchor, dead: Dead, *, over: bool = False) -> None:
        assert anchor.two is not None
        forward, backward = anchor.sums if isinstance(anchor, RightAnchor) else (0, 0)
        message = OldDead(
            chain.chain_id,
            0,
            anchor.change.request,
            isinstance(anchor, LeftAnchor),
            (dead.acked + backward) & MASK32,
            (anchor.two.answered - forward) & MASK32,
            OVER if over or anchor.unsure or chain.state in BROKEN else AGREED if dead.agreed else OPEN,
        )
        self._ground.send(anchor.new, message)

    def _decide(self, chain: Chain, anchor: Anchor, dead: Dead, now: float) -> None:
        """Go on without the old path, end the session, or wait: what an end has got may not be acknowledged yet."""
        two, waited = anchor.two, now - dead.since
        assert two is not None
        if anchor.unsure:
            self._give_up(chain, anchor, "this agent has begun again, and does not know what it held", now)
        elif dead.peer is None:
            # Whose half is empty may have gone on already, which nobody can take back; asked again, it says so.
            if waited > (ALARM_S if anchor.peer_done else SILENT_S):
                self._give_up(chain, anchor, "the other side does not tell what has come", now)
        else:
            acked, answered = dead.peer
            missing, there = distance(acked, two.answered), distance(dead.acked, answered)
            if dead.agreed:
                if waited > ALARM_S:
                    self._give_up(chain, anchor, "the other side does not go on", now)
            elif missing <= 0 and there <= 0:
                dead.agreed = True
                self._say(chain, anchor, dead)
            elif (waited > GRACE_S and dead.heard - dead.since > GRACE_S) or waited > SILENT_S:
                lost, side = (missing, "this") if missing > 0 else (there, "the other")
                what = f"{lost} bytes that it was to pass on have not come to {side} side"
                self._give_up(chain, anchor, what, now)

    def _complete(self, chain: Chain, anchor: Anchor, now: float) -> None:
        self._ground.counters["proxy_survived"] += 1
        if anchor.phase < Phase.DRAINED:
            # The proxy's agent may live, and has to leave, too.
            tell_done(self._ground, chain, anchor, now, rightward=isinstance(anchor, LeftAnchor))
        if isinstance(anchor, LeftAnchor):
            self._left.finish(chain, anchor, now)
        else:
            assert isinstance(anchor, RightAnchor)
            self._right.finish(chain, anchor, now)

    def _give_up(self, chain: Chain, anchor: Anchor, why: str, now: float) -> None:
        assert anchor.dead is not None
        self._say(chain, anchor, anchor.dead, over=True)  # or the other one would wait for what comes no more
        self._end(chain, anchor, why, now)

    def _end(self, chain: Chain, anchor: Anchor, why: str, now: float) -> None:
        anchor.doom = f"the proxy is dead; {why}"
        if isinstance(anchor, LeftAnchor):
            self._left.gone(chain, anchor, now)
        else:
            assert isinstance(anchor, RightAnchor)
            self._right.gone(chain, anchor, now)
        self._ground.life.reset(chain, "bypassed", now)


def _is_there(chain: Chain, anchor: Anchor) -> bool:
    roles = chain.changing
    return roles is not None and anchor in (roles.left, roles.right)
