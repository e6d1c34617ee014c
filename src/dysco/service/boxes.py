"""Middleboxes in Python as devices: what is written to one side comes out of the other.

Knows how a class is found and made, and how a packet gets to it and back to the data plane.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dysco.errors import ConfigError
from dysco.middlebox import Direction, Middlebox, Session, StreamMiddlebox
from dysco.service.logs import log
from dysco.wire.packet import ACK, SYN, Packet, locate
from dysco.wire.tuples import FiveTuple

Receive = Callable[[int, Packet], None]
Choose = Callable[[FiveTuple, list[str]], None]


def load(reference: str, where: str) -> Middlebox | StreamMiddlebox:
    """Make the object that `module:Class` or `file.py:Class` names. Raises ConfigError, which begins with `where`."""
    source, _, name = reference.rpartition(":")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            if spec is None or spec.loader is None:
                raise ImportError(f"{source} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        made = getattr(module, name)()
    except Exception as error:  # the file is the user's: whatever it raises is a fault of the configuration
        raise ConfigError(f"{where}: {reference} cannot be loaded: {error!r}") from error
    if not isinstance(made, (Middlebox, StreamMiddlebox)):
        raise ConfigError(f"{where}: {reference} is neither a dysco.Middlebox nor a dysco.StreamMiddlebox")
    return made


def device(
    name: str, box: Middlebox | StreamMiddlebox, left: int, receive: Receive, choose: Choose
) -> PacketDevice:
    """Put a box between the ports `left` and `left + 1`."""
    if isinstance(box, StreamMiddlebox):
        raise ConfigError(f'box {name}: stream boxes need kind = "stream"')
    return PacketDevice(name, box, left, receive, choose)


class PacketDevice:
    """A `Middlebox` between two ports. A box that raises loses the packet, not the agent."""

    def __init__(self, name: str, box: Middlebox, left: int, receive: Receive, choose: Choose) -> None:
        self.counters: Counter[str] = Counter()
        self.box = box
        self._name = name
        self._left = left
        self._receive = receive
        self._choose = choose
        self._sessions: dict[FiveTuple, Session] = {}

    def from_left(self, packet: Packet) -> None:
        """A packet on its way forward."""
        self._handle(packet, Direction.FORWARD, self._left + 1)

    def from_right(self, packet: Packet) -> None:
        """A packet on its way back."""
        self._handle(packet, Direction.BACKWARD, self._left)

    def forget(self, session: FiveTuple) -> None:
        """The session is gone."""
        known = self._sessions.pop(session, None)
        if known is not None:
            self._guard(lambda: self.box.closed(known))

    def _handle(self, packet: Packet, direction: Direction, out: int) -> None:
        at = locate(packet)
        if at is None:
            self._receive(out, packet)
            return
        forward = at.five_tuple if direction is Direction.FORWARD else at.five_tuple.reversed()
        session = self._sessions.get(forward)
        if session is None:
            session = Session(forward)
            if at.flags & (SYN | ACK) == SYN:
                self._sessions[forward] = session
                opened = session
                self._guard(lambda: self.box.opened(opened))
                self._guard(lambda: self._choosing(opened))
        result = self._guard(lambda: self.box.packet(session, direction, packet))
        if result is None:
            self.counters["dropped"] += 1
        elif isinstance(result, list):
            for one in result:
                self._receive(out, one)
        elif isinstance(result, Packet):
            self._receive(out, result)

    def _choosing(self, session: Session) -> None:
        hops = self.box.choose(session)
        if hops is not None:
            self._choose(session.tuple, hops)

    def _guard(self, work: Callable[[], object]) -> object:
        try:
            return work()
        except Exception:
            self.counters["errors"] += 1
            log("middlebox_failed", logging.ERROR, box=self._name)
            logging.getLogger("dysco").exception("middlebox_failed")
            return None
