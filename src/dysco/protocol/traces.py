"""Who is on a chain: a question that goes to its left end, collects to its right end, and comes back.

asks --leg 0--> left end --leg 1, collecting--> right end --leg 2--> who asked

The same answer goes round unasked, to the left end, a while after a chain has been opened or changed. So everybody
on it knows the others, and can go on without a host that is dead (see `bypass`). It gets no further than to one that
is dead: all before that learn what lies to the left as it comes, and the last one sends back, as leg 4, the same and
what lies to the right as it was told before. A host between others that comes back lets it go round, too: leg 3 is
the answer that the chain lives, and does not pass that host any more, which then leaves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import replace
from typing import Final

from dysco.protocol.chain import Chain, Facing
from dysco.protocol.events import Traced
from dysco.protocol.ground import LIVE, Ground, Side, name_of
from dysco.wire.messages import Place, Places, Trace

REPEAT_S: Final = 0.5
TRIES: Final = 6
SO_FAR: Final = 4  # the leg of an answer whose right end is what was told before
MOST_PLACES: Final = 24  # ours: what one datagram holds of names of ordinary length
_AT_ONCE: Final = 256  # ours: told in one go, after a restart all sessions may have to be
_PAUSE_S: Final = 0.01
SOON_S: Final = 0.02  # ours: what a change has brought may die, and must be known by then to be taken out
_FEW: Final = 32  # ours: chains that wait at a time and may be told soon; many are told one after the other


class Traces:
    """Asks and answers."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.passed_by: Callable[[Chain, float], None] = lambda chain, now: None
        self._asked: dict[int, Chain] = {}
        self._untold: dict[bytes, int] = {}
        self._queue: deque[tuple[float, bytes]] = deque()
        self._armed = False

    def ask(self, chain: Chain, number: int, now: float) -> None:
        """Ask; a Traced event with this number is the answer."""
        self._asked[number] = chain
        self._again(chain, number, 0, now)

    def _again(self, chain: Chain, number: int, tries: int, now: float) -> None:
        if self._asked.get(number) is not chain:
            return
        if tries >= TRIES:
            del self._asked[number]
            self._ground.output.event(Traced(number, chain.chain_id, ()))
            return
        self._leftward(chain, Trace(chain.chain_id, 0, number, 0, self._ground.settings.name))
        self._ground.alarm(now + REPEAT_S, lambda at: self._again(chain, number, tries + 1, at))

    def receive(self, peer: str, message: Trace, now: float) -> None:
        """Pass a question on, or take the answer."""
        side: Side = "left" if message.leg == 1 else "right"
        chain = self._ground.find(side, message.chain_id, message.hop)
        facing = None if chain is None else self._ground.facing(chain, side, message.hop)
        if message.leg == 3:
            self._not_here(peer, message, now)
        elif chain is None or facing is None or facing.peer != peer or message.leg > SO_FAR:
            self._ground.counters["message_implausible"] += 1
            if message.leg == 0 and not message.origin and self._lives_here(message.chain_id):
                self._ground.tell(peer, replace(message, leg=3))
        elif message.leg == 0:
            self._leftward(chain, message)
        elif message.leg == 1:
            self._collect(chain, message, facing)
        else:
            self._back(chain, message)

    def _lives_here(self, chain_id: bytes) -> bool:
        chains = self._ground.life.chains
        found = (chains.get(chain_id + bytes((index,))) for index in range(256))
        return any(one is not None and one.state in LIVE for one in found)

    def _not_here(self, peer: str, message: Trace, now: float) -> None:
        """The left neighbour has the chain, and not by way of this host."""
        chain = self._ground.find("left", message.chain_id, message.hop)
        if chain is not None and chain.left.peer == peer and chain.left.hop == message.hop:
            self._untold.pop(chain.key, None)
            self.passed_by(chain, now)

    def _leftward(self, chain: Chain, message: Trace) -> None:
        if not self._ground.send(chain.left, message):
            self._collect(chain, replace(message, leg=1), chain.left)

    def _collect(self, chain: Chain, message: Trace, left: Facing) -> None:
        """Add this agent. left: along which it came, for a right anchor may not be done with its old path."""
        right = chain.right
        if right is None or len(message.places) >= MOST_PLACES:
            return
        own = self._ground.neighbours.own(chain.session_in.src) or b""
        address = left.tuple.dst if left.peer is not None else own
        box = chain.box
        sums = self._ground.sums(chain)
        place = Place(
            self._ground.settings.name,
            "" if box is None else box.name,
            address,
            name_of(chain, left),
            name_of(chain, right),
            box is not None and box.mandatory,
            (box is None or box.steady) and left.seam is None and right.seam is None,
            *sums,
        )
        collected = replace(message, places=Places((*message.places, place)))
        if not self._ground.send(right, collected):
            self._back(chain, replace(collected, leg=2))
            return
        rest = _right_of(chain.places, place)
        if rest and len(collected.places) + len(rest) <= MOST_PLACES:
            known = replace(collected, leg=SO_FAR, places=Places((*collected.places, *rest)))
            if self._ground.is_up(right.peer):
                self._keep(chain, known.places)
            else:
                self._back(chain, known)

    def _back(self, chain: Chain, message: Trace) -> None:
        self._learn(chain, message)
        asked = self._asked.get(message.number) if message.leg != SO_FAR else None
        if asked is not None and message.origin == self._ground.settings.name:
            del self._asked[message.number]
            self._ground.output.event(Traced(message.number, chain.chain_id, tuple(message.places)))
        else:
            self._ground.send(chain.left, message)

    # What is told unasked.

    def tell_later(self, chain: Chain, now: float) -> None:
        """Let all on a chain know who is on it, once it has been as it is now for a while."""
        wait = self._ground.settings.timers.learn
        if wait == math.inf:
            return
        if chain.key not in self._untold:
            self._plan(chain.key, now + wait)
        self._untold[chain.key] = 0

    def tell_soon(self, chain: Chain, now: float) -> None:
        """As `tell_later`, and before that at once if not many chains have been changed."""
        self.tell_later(chain, now)
        if len(self._queue) <= _FEW:
            self._ground.alarm(now + SOON_S, lambda _: self._tell(chain.key))

    def _tell(self, key: bytes) -> None:
        chain = self._ground.life.chains.get(key) if key in self._untold else None
        if chain is not None and chain.state in LIVE and chain.right is not None:
            self._leftward(chain, Trace(chain.chain_id, 0, 0, 0, ""))

    def _plan(self, key: bytes, due: float) -> None:
        """One alarm serves the whole queue, for everybody waits equally long."""
        self._queue.append((due, key))
        if not self._armed:
            self._armed = True
            self._ground.alarm(due, self._due)

    def _due(self, now: float) -> None:
        wait = self._ground.settings.timers.learn
        for _ in range(_AT_ONCE):
            if not self._queue or self._queue[0][0] > now:
                break
            _, key = self._queue.popleft()
            chain = self._ground.life.chains.get(key)
            tries = self._untold.pop(key, TRIES)
            if chain is None or chain.state not in LIVE or chain.right is None or tries >= TRIES:
                continue
            self._untold[key] = tries + 1
            self._queue.append((now + wait, key))
            self._tell(key)
        self._armed = bool(self._queue)
        if self._queue:
            self._ground.alarm(max(self._queue[0][0], now + _PAUSE_S), self._due)

    def _learn(self, chain: Chain, message: Trace) -> None:
        if self._keep(chain, message.places) and message.leg != SO_FAR:
            self._untold.pop(chain.key, None)

    def _keep(self, chain: Chain, places: Places) -> bool:
        """Whether this agent stands there as it does now; if not, it was changed meanwhile, and another one follows."""
        here = self._ground.settings.name, name_of(chain, chain.left), name_of(chain, chain.right)
        if not any((one.agent, one.left, one.right) == here for one in places):
            return False
        if places != chain.places:
            self._ground.counters["places_learnt"] += 1
            chain.places = places
            self._ground.life.record(chain)
        return True

    def chains(self) -> Iterator[Chain]:
        """Of which chains somebody here waits to hear."""
        yield from self._asked.values()

    def leftovers(self) -> dict[str, Sized]:
        """What must be empty once all is at rest."""
        return {"traces": self._asked, "places to tell": self._queue}


def _right_of(places: Sequence[Place], here: Place) -> Sequence[Place]:
    """What was told of the right of a place; nothing, if its right subsession was another one then."""
    at = next((i for i, one in enumerate(places) if (one.agent, one.right) == (here.agent, here.right)), None)
    return () if at is None else places[at + 1 :]
