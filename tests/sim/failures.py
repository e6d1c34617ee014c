"""One change of a live session, and one thing that goes wrong at one of its steps: every pair of both is a cell.

d asks that e take the place of b, so a is the left anchor, c the right one, b the old box and e the new one:

    a (client) == b == c == d (server)    becomes    a == e == c == d

The event happens when the step's first message or packet sets out. Then both ends go on sending, and close.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from dysco.sim.endpoint import Endpoint, State
from dysco.sim.host import Host
from dysco.wire.messages import Message
from dysco.wire.packet import SYN, Packet, locate
from protocol.living import Living

FINAL: Final = frozenset(("done", "refused", "aborted"))
HEALED_S: Final = 8.0
SIZE: Final = 40_000

MESSAGES: Final = {
    "rightRequest": ("RightRequest", "b", "a"),
    "requestLock": ("RequestLock", "a", "b"),
    "requestLock at the right anchor": ("RequestLock", "b", "c"),
    "ackLock": ("AckLock", "c", "b"),
    "ackLock at the left anchor": ("AckLock", "b", "a"),
    "syn": ("Syn", "a", "e"),
    "syn at the right anchor": ("Syn", "e", "c"),
    "synAck": ("SynAck", "c", "e"),
    "synAck at the left anchor": ("SynAck", "e", "a"),
    "ack": ("Ack", "a", "e"),
    "ack at the right anchor": ("Ack", "e", "c"),
    "ackAck": ("AckAck", "c", "e"),
    "ackAck at the left anchor": ("AckAck", "e", "a"),
    "oldDone of the left anchor": ("OldDone", "a", "e"),
    "oldDone of the right anchor": ("OldDone", "c", "e"),
}
PACKETS: Final = {
    "path handshake, SYN": ("SYN", "a", "e"),
    "path handshake, SYN-ACK": ("SYN", "c", "e"),
    "first new data to the right": ("data", "a", "e"),
    "first new data to the left": ("data", "c", "e"),
}
STEPS: Final = (
    *list(MESSAGES)[:9],
    *list(PACKETS)[:2],
    *list(MESSAGES)[9:13],
    *list(PACKETS)[2:],
    *list(MESSAGES)[13:],
)
ITEM_EVENTS: Final = ("lost", "repeated", "late")
EVENTS: Final = (
    *ITEM_EVENTS,
    "restart of the left anchor",
    "restart of the right anchor",
    "restart of the old box",
    "restart of the new box",
    "death of the left anchor",
    "death of the right anchor",
    "death of the old box",
    "death of the new box",
    "partition one way",
    "partition both ways",
    "FIN from the client",
    "FIN from the server",
    "RST from the client",
    "RST from the server",
    "a second request",
)
ROLES: Final = {"left anchor": "a", "right anchor": "c", "old box": "b", "new box": "e"}


class Cell(Living):
    """A change during which `event` happens at `step`. `outcome_of()` says how change and session have ended."""

    def __init__(self, step: str, event: str) -> None:
        self.step, self.event = step, event
        self.happened = False
        self.armed = False
        super().__init__()
        network = self.network
        self._send, self._message = network.send, network.message
        network.send = self._packet_sent  # type: ignore[method-assign]
        network.message = self._message_sent  # type: ignore[method-assign]
        self.say(self.rng.randbytes(SIZE))
        self.armed = True
        self.request = self.change("d", "a", "c", "e")
        self.wait(0.05)
        self._say_more()
        self.wait(40.0)
        self._say_more()
        self.wait(20.0)
        for end, host in self._ends():
            if end.state is State.OPEN:
                end.close(self.clock.now)
                host.arm(end)
        self.wait(250.0)

    def outcome_of(self) -> str:
        """What became of the change, and of the session."""
        told = self.outcome("d", self.request)[0]
        change = told if told in FINAL else "untold"
        states = {end.state for end, _ in self._ends()}
        if not self.happened:
            return "cannot happen"
        if states == {State.DONE}:
            return change
        return f"{change}, ends" if State.FAILED in states else f"{change}, waits"

    def faults(self) -> list[str]:
        """What must never be: other bytes than were sent, numbers that a correct path cannot give."""
        found = []
        for (end, _), sender in zip(self._ends(), "da", strict=True):
            found += end.violations
            if bytes(end.received) != self.said[sender][: len(end.received)]:
                found.append("other bytes were received than were sent")
            if end.state is State.DONE and len(end.received) != len(self.said[sender]):
                found.append("bytes are lacking")
        return found

    def _ends(self) -> list[tuple[Endpoint, Host]]:
        assert self.server is not None
        return [(self.client, self.hosts["a"]), (self.server, self.hosts["d"])]

    def _say_more(self) -> None:
        data = self.rng.randbytes(SIZE)
        for (end, host), name in zip(self._ends(), "ad", strict=True):
            if end.state is State.OPEN and not end._closing:
                self.said[name] += data
                end.write(data, self.clock.now)
                host.arm(end)

    def _message_sent(self, source: Host, peer: str, message: Message) -> None:
        wanted = MESSAGES.get(self.step)
        if wanted is not None and self._is_due((type(message).__name__, source.name, peer), wanted):
            self._happen(source.name, peer, lambda: self._message(source, peer, message))
        else:
            self._message(source, peer, message)

    def _packet_sent(self, source: Host, packet: Packet) -> None:
        wanted = PACKETS.get(self.step)
        if wanted is not None and self.armed and not self.happened:
            at = locate(packet)
            assert at is not None
            target = next(name for name, host in self.hosts.items() if at.five_tuple.dst in host.addresses)
            kind = "SYN" if at.flags & SYN else "data" if at.payload_len else ""
            if self._is_due((kind, source.name, target), wanted):
                self._happen(source.name, target, lambda: self._send(source, packet))
                return
        self._send(source, packet)

    def _is_due(self, what: tuple[str, str, str], wanted: tuple[str, str, str]) -> bool:
        return self.armed and not self.happened and what == wanted

    def _happen(self, source: str, target: str, send: Callable[[], None]) -> None:
        self.happened = True
        event, now = self.event, self.clock.now
        if event == "late":
            self.clock.call_at(now + 0.3, send)
            return
        if event != "lost":
            send()
        if event == "repeated":
            send()
        elif event.startswith("partition"):
            self._cut(source, target, both=event.endswith("both ways"))
        elif event not in ITEM_EVENTS:
            # What sends is in the middle of it: the rest happens before anything else, yet after that.
            self.clock.call_at(now, self._strike)

    def _cut(self, source: str, target: str, *, both: bool) -> None:
        ways = ((source, target), (target, source)) if both else ((source, target),)
        for link in [self.network.link(kind, *way) for way in ways for kind in ("data", "control")]:
            link.up = False
            self.clock.call_at(self.clock.now + HEALED_S, partial(setattr, link, "up", True))

    def _strike(self) -> None:
        what, _, who = self.event.partition(" of the ")
        if what == "restart":
            self.hosts[ROLES[who]].restart()
        elif what == "death":
            self.kill(ROLES[who])
        elif self.event == "a second request":
            self.change("c", "b", "d", "f") if "b" in self.chain("c") else self.change("c", "c", "d", "f")
        else:
            end, host = self._ends()[self.event.endswith("server")]
            if self.event.startswith("FIN"):
                end.close(self.clock.now)
                host.arm(end)
            else:
                end.abort(self.clock.now)


TABLES: Final = (EVENTS[:3] + EVENTS[11:13], EVENTS[3:7], EVENTS[7:11], EVENTS[13:])


def tables() -> str:
    """The tables of docs/failures.md, from running every cell."""
    lines = []
    for events in TABLES:
        lines += ["", f"| step | {' | '.join(events)} |", "| --- |" + " --- |" * len(events)]
        for step in STEPS:
            cells = [Cell(step, event).outcome_of() for event in events]
            lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(tables() + "\n")
