"""The state of a middlebox that is replaced goes to the one that takes its place (DESIGN section 9).

    left anchor --copyState--> old host        along the old path
    old host --putState--> left anchor --putState--> new host
    new host --stateTransferred--> left anchor, right anchor, old host

Parts are sent by a window and repeated until `stateTransferred` names them. What a state is only the host of the box
knows: this room moves bytes, checks length and hash, and asks its driver by events (`StateWanted`, `StateArrived`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from dataclasses import replace
from typing import Final

from dysco.protocol.chain import Chain
from dysco.protocol.changing import LeftAnchor
from dysco.protocol.events import StateArrived, StateWanted
from dysco.protocol.ground import Ground
from dysco.protocol.switching import FIRST_WAIT_S
from dysco.wire.messages import CopyState, Part, PutState, StateTransferred

PART_LEN: Final = 900  # bytes; ours: with its frame and a tunnel's headers below the 1200 of a datagram
MOST_BYTES: Final = 256 * 1024  # DESIGN section 9
_WINDOW: Final = 8
_TRIES: Final = 20
ARRIVED, INSTALLED, FAILED = 0, 1, 2
NONE, COPY, FREEZE = 0, 1, 2
"""How state is moved: not at all, before the switch, or after the old path is empty while new data are held."""


class _Sending:
    """A state on its way from here. first: the part that is not confirmed yet."""

    __slots__ = ("digest", "first", "parts", "tries")

    def __init__(self, data: bytes) -> None:
        self.parts = [Part(data[i : i + PART_LEN]) for i in range(0, len(data), PART_LEN)] or [Part(b"")]
        self.digest = hashlib.sha256(data).digest()[:8]
        self.first = 0
        self.tries = 0


class _Arriving:
    """A state on its way to here."""

    __slots__ = ("answer", "count", "digest", "parts")

    def __init__(self, count: int, digest: bytes) -> None:
        self.count = count
        self.digest = digest
        self.parts: list[Part] = []
        self.answer: StateTransferred | None = None


class Transfers:
    """The states that are under way at this agent, by chain key and request."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._sending: dict[tuple[bytes, int], _Sending | None] = {}
        self._arriving: dict[tuple[bytes, int], _Arriving] = {}

    # The left anchor.

    def begin(self, chain: Chain, anchor: LeftAnchor) -> None:
        """Ask the old host for the state; asked again until it is there."""
        change = anchor.change
        self._ground.send(anchor.old, CopyState(chain.chain_id, 0, change.request, change.last))

    # The old host.

    def wanted(self, chain: Chain, message: CopyState, now: float) -> None:
        """Somebody wants the state of this host's box; without a box here it is the next host's."""
        box, key = chain.box, (chain.key, message.request)
        if box is None:
            self._ground.send(chain.right, message)
        elif key not in self._sending:
            self._sending[key] = None
            wanted = StateWanted(chain.key, message.request, box.name, chain.session_in, chain.session_out)
            self._ground.output.event(wanted)

    def exported(self, chain: Chain, request: int, data: bytes | None, reason: str, now: float) -> None:
        """The driver has the state, or none and a reason."""
        key = (chain.key, request)
        size = 0 if data is None else len(data)
        if size > MOST_BYTES:
            data, reason = None, f"its state has {size} bytes, more than {MOST_BYTES}"
        if data is None:
            self._sending.pop(key, None)
            me = self._ground.settings.name
            failed = StateTransferred(chain.chain_id, 0, request, FAILED, 0, False, me, reason)
            self._ground.send(chain.left, failed)
            return
        self._sending[key] = _Sending(data)
        self._send(chain, key, now)

    def _send(self, chain: Chain, key: tuple[bytes, int], now: float) -> None:
        sending = self._sending[key]
        assert sending is not None
        if sending.tries > _TRIES:
            self._sending.pop(key, None)
            return
        count = len(sending.parts)
        for index in range(sending.first, min(sending.first + _WINDOW, count)):
            put = PutState(chain.chain_id, 0, key[1], index, count, sending.digest, sending.parts[index])
            self._ground.send(chain.left, put)
        first = sending.first
        sending.tries += 1

        def again(at: float) -> None:
            if self._sending.get(key) is sending and sending.first == first:
                self._send(chain, key, at)

        self._ground.alarm(now + FIRST_WAIT_S, again)

    def confirmed(self, chain: Chain, message: StateTransferred, now: float) -> None:
        """The new host has some of the parts, or all."""
        key = (chain.key, message.request)
        sending = self._sending.get(key)
        if message.status != ARRIVED:
            self._sending.pop(key, None)
        elif sending is not None and message.index > sending.first:
            sending.first, sending.tries = message.index, 0
            self._send(chain, key, now)

    # The new host.

    def put(self, chain: Chain, message: PutState, now: float) -> None:
        """A part has come to the host of the new box; without a box here it is the next host's."""
        box, key = chain.box, (chain.key, message.request)
        if box is None:
            self._ground.send(chain.right, message)
            return
        state = self._arriving.get(key)
        if state is None:
            if message.count * PART_LEN > MOST_BYTES + PART_LEN:
                return
            state = self._arriving[key] = _Arriving(message.count, message.digest)
            self._ground.alarm(now + 30.0, lambda at: self._forget(key))
        if state.answer is not None:
            self._answer(chain, state.answer)
            return
        if message.index == len(state.parts) and message.index < state.count:
            state.parts.append(message.part)
            if len(state.parts) == state.count:
                self._whole(chain, key, state, now)
        progress = StateTransferred(chain.chain_id, 0, message.request, ARRIVED, len(state.parts))
        self._ground.send(chain.left, progress)

    def _whole(self, chain: Chain, key: tuple[bytes, int], state: _Arriving, now: float) -> None:
        data = b"".join(state.parts)
        assert chain.box is not None
        if hashlib.sha256(data).digest()[:8] != state.digest:
            self.installed(chain, key[1], False, "its hash is wrong", now)
            return
        here, there = chain.session_in, chain.session_out
        self._ground.output.event(StateArrived(chain.key, key[1], chain.box.name, here, there, data))

    def installed(self, chain: Chain, request: int, done: bool, reason: str, now: float) -> None:
        """The driver has put the state into the box, or could not."""
        state = self._arriving.get((chain.key, request))
        if state is None:
            return
        me = self._ground.settings.name
        status = INSTALLED if done else FAILED
        state.answer = StateTransferred(chain.chain_id, 0, request, status, state.count, False, me, reason)
        self._answer(chain, state.answer)

    def _answer(self, chain: Chain, answer: StateTransferred) -> None:
        self._ground.send(chain.left, answer)
        self._ground.send(chain.right, replace(answer, rightward=True))

    def leftovers(self) -> dict[str, Sized]:
        """What must be empty once all is at rest."""
        return {"sending": self._sending, "arriving": self._arriving}

    def closed(self, chain: Chain) -> None:
        """The session is gone, and with it what was under way."""
        for states in (self._sending, self._arriving):
            for key in [key for key in states if key[0] == chain.key]:
                del states[key]

    def _forget(self, key: tuple[bytes, int]) -> None:
        self._arriving.pop(key, None)
