"""What the core wants done, in order: packets, messages, events."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from dysco.protocol.events import Event
from dysco.wire.messages import Message
from dysco.wire.packet import Packet


class PacketOut(NamedTuple):
    """Write this packet to this port."""

    port: int
    packet: Packet


class MessageOut(NamedTuple):
    """Send this message to this peer; it may be lost."""

    peer: str
    message: Message


class Output:
    """Collects until the driver takes."""

    __slots__ = ("_events", "_out")

    def __init__(self) -> None:
        self._out: list[PacketOut | MessageOut] = []
        self._events: deque[Event] = deque()

    def packet(self, port: int, packet: Packet) -> None:
        self._out.append(PacketOut(port, packet))

    def message(self, peer: str, message: Message) -> None:
        self._out.append(MessageOut(peer, message))

    def event(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[PacketOut | MessageOut]:
        out, self._out = self._out, []
        return out

    def take_events(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None
