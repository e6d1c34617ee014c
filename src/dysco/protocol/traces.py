"""Who is on a chain: a question that goes to its left end, collects to its right end, and comes back.

asks --leg 0--> left end --leg 1, collecting--> right end --leg 2--> who asked
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dysco.protocol.chain import Chain
from dysco.protocol.events import Traced
from dysco.protocol.ground import Ground, Side
from dysco.wire.messages import Place, Places, Trace

REPEAT_S: Final = 0.5
TRIES: Final = 6
MOST_PLACES: Final = 24  # ours: what one datagram holds of names of ordinary length


class Traces:
    """Asks and answers."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._asked: dict[int, Chain] = {}

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
        if chain is None or facing is None or facing.peer != peer or message.leg > 2:
            self._ground.counters["message_implausible"] += 1
        elif message.leg == 0:
            self._leftward(chain, message)
        elif message.leg == 1:
            self._collect(chain, message)
        else:
            self._back(chain, message)

    def _leftward(self, chain: Chain, message: Trace) -> None:
        if not self._ground.send(chain.left, message):
            self._collect(chain, replace(message, leg=1))

    def _collect(self, chain: Chain, message: Trace) -> None:
        right, left = chain.right, chain.left
        if right is None or len(message.places) >= MOST_PLACES:
            return
        own = self._ground.neighbours.own(chain.session_in.src) or b""
        address = left.tuple.dst if left.peer is not None else own
        box = chain.box
        place = Place(
            self._ground.settings.name,
            "" if box is None else box.name,
            address,
            left.hop,
            right.hop,
            box is not None and box.mandatory,
        )
        collected = replace(message, places=Places((*message.places, place)))
        if not self._ground.send(right, collected):
            self._back(chain, replace(collected, leg=2))

    def _back(self, chain: Chain, message: Trace) -> None:
        asked = self._asked.get(message.number)
        if asked is not None and message.origin == self._ground.settings.name:
            del self._asked[message.number]
            self._ground.output.event(Traced(message.number, chain.chain_id, tuple(message.places)))
        else:
            self._ground.send(chain.left, message)
