"""Changes that are asked for: here, and at the left anchor by somebody else; and how they go.

    who asks --rightRequest along the chain, repeated--> left anchor
             <--progress, phase by phase----------------

This room knows who wants to hear of which change; it takes no part in one but to begin it at the left anchor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sized
from dataclasses import replace
from typing import Final

from dysco.protocol.bypass import Bypass
from dysco.protocol.chain import Chain
from dysco.protocol.changing import Anchor, LeftAnchor, Phase
from dysco.protocol.events import ChangeMoved
from dysco.protocol.ground import Ground, along, means, name_of
from dysco.protocol.joints import Added, Joints
from dysco.protocol.left import Left
from dysco.protocol.switching import patience
from dysco.protocol.traces import Traces
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops, Progress, RightRequest

PATIENCE_S: Final = 60.0  # ours: how long who asks goes on asking without any answer
_MOST_OUTCOMES: Final = 16_384
NOT_FOUND: Final = "not found"


class Wish:
    """A change that was asked for here and whose left anchor may be elsewhere."""

    __slots__ = ("chain", "change", "heard_at", "phase", "rightward", "tries")

    def __init__(self, chain: Chain, change: Change, now: float, *, rightward: bool) -> None:
        self.chain = chain
        self.change = change
        self.rightward = rightward
        self.heard_at = now
        self.tries = 0
        self.phase = Phase.REQUESTED


class Wishes:
    """Who has asked for what."""

    def __init__(self, ground: Ground, left: Left, joints: Joints, traces: Traces, bypass: Bypass) -> None:
        self._ground = ground
        self._left = left
        self._joints = joints
        self._traces = traces
        self._bypass = bypass
        self._open: dict[int, Wish] = {}
        # To the right, to the left, or to an agent past dead hosts.
        self._askers: dict[int, bool | str] = {}
        self._outcomes: OrderedDict[int, Progress] = OrderedDict()
        ground.report = self._report

    def chains(self) -> Iterator[Chain]:
        """For which chains a change was asked here that has not ended."""
        return (wish.chain for wish in self._open.values())

    def ask(self, chain: Chain, change: Change, now: float, *, rightward: bool) -> None:
        """Ask for a change; ChangeMoved events tell how it goes. rightward: where its left anchor is from here."""
        wish = Wish(chain, change, now, rightward=rightward)
        self._open[change.request] = wish
        right = chain.right
        if right is not None and means(chain, right, change.first):
            refusal = self._left.start(chain, change, now)
            if refusal is not None:
                self.hear(
                    Progress(chain.chain_id, 0, change.request, Phase.REFUSED, False, *refusal), now, chain
                )
        else:
            self._ask(wish, now)

    def splice(self, left: Chain, right: Chain, request: int, added: Added, now: float) -> None:
        """Join two chains whose ends a proxy is on this host, and take it out; ChangeMoved events tell how it goes."""
        refusal = self._joints.make(left, right, request, added, now)
        if refusal is not None:
            me = self._ground.settings.name
            moved = ChangeMoved(
                left.chain_id, left.hop_index, left.session_in, request, Phase.REFUSED.words, me, refusal
            )
            self._ground.output.event(moved)
            return
        assert right.right is not None
        hops = Hops((Hop(right.right.tuple.dst),))
        first, last = name_of(left, left.left), name_of(right, right.right)
        self.ask(
            left, Change(request, first, last, hops, origin=self._ground.settings.name), now, rightward=False
        )

    def _ask(self, wish: Wish, now: float) -> None:
        chain, change = wish.chain, wish.change
        if change.request not in self._open:
            return
        if now - wish.heard_at > PATIENCE_S:
            me = self._ground.settings.name
            silent = Progress(chain.chain_id, 0, change.request, Phase.ABORTED, False, me, "no answer")
            self.hear(silent, now, chain)
            return
        message = RightRequest(chain.chain_id, 0, change, wish.rightward)
        facing = along(chain, to_right=wish.rightward)
        self._ground.send(facing, message)
        if change.force and (wish.tries or facing is None or not self._ground.is_up(facing.peer)):
            self._bypass.ask(chain, change)
        wait = patience(wish.tries)
        wish.tries += 1
        self._ground.alarm(now + wait, lambda at: self._ask(wish, at))

    def hear(self, message: Progress, now: float, chain: Chain) -> None:
        """Take a phase of a change; who has not asked for it does not listen."""
        wish = self._open.get(message.request)
        if wish is None or self._is_aside(wish, message):
            return
        wish.heard_at = now
        phase = Phase(message.phase)
        if (phase.is_final or phase > wish.phase) and not (
            chain.changing and _is_left(chain, message.request)
        ):
            moved = ChangeMoved(
                chain.chain_id, chain.hop_index, chain.session_in, message.request, phase.words, message.by,
                message.reason,
            )  # fmt: skip
            self._ground.output.event(moved)
        wish.phase = max(wish.phase, phase)
        if phase.is_final:
            del self._open[message.request]
            if phase is not Phase.DONE:
                self._joints.part(wish.chain, message.request)

    def _is_aside(self, wish: Wish, message: Progress) -> bool:
        """Whether an agent on the way has forgotten the chain, past which the left anchor is asked, too."""
        if message.reason != NOT_FOUND or not wish.change.force:
            return False
        return self._bypass.left_anchor(wish.chain, wish.change) not in ("", message.by)

    def _report(self, chain: Chain, anchor: Anchor, phase: Phase, by: str, reason: str, now: float) -> None:
        """A phase of a change at one of its anchors: the left one tells who asked for it."""
        request = anchor.change.request
        if not isinstance(anchor, LeftAnchor):
            return
        message = Progress(chain.chain_id, 0, request, phase, False, by, reason)
        if phase is Phase.DONE:
            self._traces.tell_soon(chain, now)
        if phase.is_final:
            self._remember(message)
        wish = self._open.get(request)
        if wish is not None:
            wish.heard_at = now
            wish.phase = max(wish.phase, phase)
            if phase.is_final:
                del self._open[request]
        self._tell(chain, message)

    def _tell(self, chain: Chain, message: Progress) -> None:
        asker = self._askers.get(message.request)
        if asker is None:
            return
        self._answer(chain, message, asker)
        if Phase(message.phase).is_final:
            del self._askers[message.request]

    def _answer(self, chain: Chain, message: Progress, asker: bool | str) -> None:
        if isinstance(asker, str):
            self._bypass.answer(chain, message, asker)
        else:
            self._ground.send(along(chain, to_right=asker), replace(message, rightward=asker))

    def request(self, chain: Chain, message: RightRequest, now: float, direct: str | None = None) -> None:
        """Somebody asks for a change; direct: past dead hosts, and who."""
        change, right = message.change, chain.right
        back: bool | str = not message.rightward if direct is None else direct
        done = self._ended(chain.chain_id, change.request)
        if done is not None:
            self._answer(chain, done, back)
            return
        running = None if chain.changing is None else chain.changing.left
        if running is not None and running.change.request == change.request:
            self._askers[change.request] = back
            self._tell(chain, Progress(chain.chain_id, 0, change.request, running.phase))
            return
        if right is not None and means(chain, right, change.first):
            self._askers[change.request] = back
            refusal = self._left.start(chain, change, now)
        else:
            if self._ground.send(along(chain, to_right=message.rightward), message):
                return
            self._askers[change.request] = back
            refusal = self._ground.settings.name, NOT_FOUND
        if refusal is not None:
            refused = Progress(chain.chain_id, 0, change.request, Phase.REFUSED, False, *refusal)
            self._remember(refused)
            self._tell(chain, refused)

    def _ended(self, chain_id: bytes, request: int) -> Progress | None:
        """How a change has ended, if this agent was an anchor of it."""
        done = self._outcomes.get(request)
        if done is None and request in self._ground.completed:
            # The right anchor, from whose right it comes: between it and the left one a host may be dead.
            done = Progress(chain_id, 0, request, Phase.DONE)
        return done

    def unknown(self, message: RightRequest) -> Progress:
        """The answer for a chain that is not here: its session has ended, or was begun anew as another chain."""
        request, me = message.change.request, self._ground.settings.name
        ended = self._ended(message.chain_id, request)
        if ended is None:
            ended = Progress(message.chain_id, 0, request, Phase.REFUSED, by=me, reason=NOT_FOUND)
        return replace(ended, chain_id=message.chain_id, hop=message.hop, rightward=not message.rightward)

    def _remember(self, message: Progress) -> None:
        """Know how a change has ended, for those who ask again; the oldest is forgotten."""
        self._outcomes[message.request] = message
        if len(self._outcomes) > _MOST_OUTCOMES:
            self._outcomes.popitem(last=False)

    def is_open(self, request: int) -> bool:
        """Whether a change was asked for here and goes on."""
        return request in self._open

    def past(self, peer: str, message: Progress, now: float) -> bool:
        """Take a phase that has come past dead hosts; False if it is not to be believed."""
        wish = self._open.get(message.request)
        if wish is None or not wish.change.force:
            return False
        if peer != self._bypass.left_anchor(wish.chain, wish.change):
            return False
        self.hear(message, now, wish.chain)
        return True

    def is_over(self, request: int) -> bool:
        """Whether this agent knows, as left anchor, how a change has ended."""
        return request in self._outcomes

    def closing(self, chain: Chain, now: float) -> None:
        """A session ends here: what was asked for it ends with it."""
        for wish in [one for one in self._open.values() if one.chain is chain]:
            me = self._ground.settings.name
            over = Progress(
                chain.chain_id, 0, wish.change.request, Phase.ABORTED, False, me, "the session has ended"
            )
            self.hear(over, now, chain)

    def leftovers(self) -> dict[str, Sized]:
        """What must be empty once all is at rest."""
        return {"wishes": self._open, "askers": self._askers}


def _is_left(chain: Chain, request: int) -> bool:
    roles = chain.changing
    return roles is not None and roles.left is not None and roles.left.change.request == request
