"""Middleboxes in Python as devices: what is written to one side comes out of the other.

Knows how a class is found and made, and how a packet gets to it and back to the data plane.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from dysco.config.loading import instance
from dysco.errors import ConfigError, LocalError
from dysco.middlebox import Direction, Middlebox, Session, StreamMiddlebox
from dysco.protocol.chain import Chain
from dysco.service.logs import log
from dysco.service.stream import StreamSession, reset_answers
from dysco.wire.icmp import parse_error, translate_error
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, Packet, build_tcp, locate
from dysco.wire.tuples import FiveTuple

T = TypeVar("T")
Receive = Callable[[int, Packet], None]
Choose = Callable[[FiveTuple, list[str]], None]
Leave = Callable[[str, FiveTuple, str], Awaitable[None]]


def load(reference: str, where: str, kind: str = "") -> Middlebox | StreamMiddlebox:
    """Make the object that `module:Class` or `file.py:Class` names, of the kind that the configuration says.

    Raises ConfigError, which begins with `where`.
    """
    made = instance(reference, where)
    if not isinstance(made, (Middlebox, StreamMiddlebox)):
        raise ConfigError(f"{where}: {reference} is neither a dysco.Middlebox nor a dysco.StreamMiddlebox")
    found = "stream" if isinstance(made, StreamMiddlebox) else "packet"
    if kind and kind != found:
        raise ConfigError(f'{where}: kind = "{kind}", but {reference} is a box of kind "{found}"')
    return made


def device(
    name: str, box: Middlebox | StreamMiddlebox, left: int, receive: Receive, choose: Choose
) -> Device:
    """Put a box between the ports `left` and `left + 1`."""
    if isinstance(box, StreamMiddlebox):
        return StreamDevice(name, box, left, receive, choose)
    return PacketDevice(name, box, left, receive, choose)


class Devices:
    """The boxes in Python of an agent, by name. leave: has a box leave a session that it names."""

    def __init__(self, receive: Receive, choose: Choose, leave: Leave) -> None:
        self.by_name: dict[str, Device] = {}
        self._receive = receive
        self._choose = choose
        self._leave = leave

    def add(
        self, name: str, box: Middlebox | StreamMiddlebox, left: int
    ) -> dict[int, Callable[[Packet], None]]:
        """Put a box between the ports `left` and `left + 1`; gives what takes the packets that are written there."""
        made = self.by_name[name] = device(name, box, left, self._receive, self._choose)
        box.leave_with = partial(self._leave, name)
        return {left: made.from_left, left + 1: made.from_right}

    def settle(self, chain: Chain) -> tuple[int, int] | None:
        """See `Device.settle`; what is no box in Python changes nothing here."""
        found = self._of(chain)
        return (0, 0) if found is None else found.settle(chain.session_in)

    def unsettle(self, chain: Chain) -> None:
        """The session of a chain stays."""
        found = self._of(chain)
        if found is not None:
            found.unsettle(chain.session_in)

    def forget(self, box: str, session: FiveTuple) -> None:
        """A session of a box is gone."""
        if box in self.by_name:
            self.by_name[box].forget(session)

    def _of(self, chain: Chain) -> Device | None:
        return None if chain.box is None else self.by_name.get(chain.box.name)


class Device(ABC):
    """What stands between two ports and knows sessions by the tuple that their SYN had. The box is the user's."""

    def __init__(
        self, name: str, box: Middlebox | StreamMiddlebox, left: int, receive: Receive, choose: Choose
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self._user = box
        self._left = left
        self._receive = receive
        self._choose = choose
        self._sessions: dict[FiveTuple, Session] = {}
        self._replaced: Counter[FiveTuple] = Counter()

    def from_left(self, packet: Packet) -> None:
        """A packet on its way forward."""
        self._handle(packet, Direction.FORWARD)

    def from_right(self, packet: Packet) -> None:
        """A packet on its way back."""
        self._handle(packet, Direction.BACKWARD)

    def forget(self, session: FiveTuple) -> None:
        """The session is gone."""
        if self._replaced[session] > 1:
            self._replaced[session] -= 1
            return
        self._replaced.pop(session, None)
        known = self._sessions.pop(session, None)
        if known is not None:
            self._drop(session)
            self._guard(lambda: self._user.closed(known))

    def __len__(self) -> int:
        """How many sessions are known here."""
        return len(self._sessions)

    def settle(self, session: FiveTuple) -> tuple[int, int] | None:
        """Let a session be ready to leave: bytes by which the box has made each direction longer, final from now on.

        None: not now. A box of packets changes no numbers.
        """
        return 0, 0

    def unsettle(self, session: FiveTuple) -> None:
        """The session stays."""
        return

    def export_state(self, session: FiveTuple) -> bytes | None:
        """Give what the box knows of a session; None: not now.

        Raises LocalError for a session that is not here, or a box that raises or gives something else.
        """
        known = self._here(session)
        state = self._state("export_state", lambda: self._user.export_state(known))
        if state is not None and not isinstance(state, bytes):
            raise LocalError(f"box {self.name}: export_state returned {type(state).__name__}, not bytes")
        return state

    def import_state(self, session: FiveTuple, state: bytes) -> None:
        """Let the box take the state of a session that is open here; errors as for `export_state`."""
        known = self._here(session)
        self._state("import_state", lambda: self._user.import_state(known, state))

    def _here(self, session: FiveTuple) -> Session:
        known = self._sessions.get(session)
        if known is None:
            raise LocalError(f"box {self.name}: {session} is not here")
        return known

    def _state(self, what: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:  # the class is the user's: whatever it raises refuses the move, no more
            self.counters["errors"] += 1
            raise LocalError(f"box {self.name}: {what}: {error!r}") from error

    @abstractmethod
    def _handle(self, packet: Packet, direction: Direction) -> None: ...

    @abstractmethod
    def _drop(self, session: FiveTuple) -> None:
        """Forget what is kept for a session besides its name."""

    def _put(self, direction: Direction, packet: Packet) -> None:
        """Let a packet come out of the side that it goes to."""
        self._receive(self._left + (direction is Direction.FORWARD), packet)

    def _open(self, forward: FiveTuple, *, chooses: bool = True) -> Session:
        """A session begins; an older one of the same tuple is over, and will be said to be gone later."""
        old = self._sessions.get(forward)
        if old is not None:
            self._drop(forward)
            self._guard(lambda: self._user.closed(old))
        session = Session(forward)
        self._sessions[forward] = session
        self._replaced[forward] += 1
        self._guard(lambda: self._user.opened(session))
        if chooses:
            self._guard(lambda: self._choosing(session))
        return session

    def _choosing(self, session: Session) -> None:
        hops = self._user.choose(session)
        if hops is not None:
            self._choose(session.tuple, hops)

    def _guard(self, work: Callable[[], T], otherwise: T | None = None) -> T | None:
        try:
            return work()
        except Exception:
            self.counters["errors"] += 1
            log("middlebox_failed", logging.ERROR, box=self.name)
            logging.getLogger("dysco").exception("middlebox_failed")
            return otherwise


class PacketDevice(Device):
    """A `Middlebox` between two ports. A box that raises loses the packet, not the agent."""

    def __init__(self, name: str, box: Middlebox, left: int, receive: Receive, choose: Choose) -> None:
        super().__init__(name, box, left, receive, choose)
        self.box = box
        self._lives: dict[FiveTuple, _Life] = {}

    def _handle(self, packet: Packet, direction: Direction) -> None:
        at = locate(packet)
        if at is None:
            self._put(direction, packet)
            return
        forward = at.five_tuple if direction is Direction.FORWARD else at.five_tuple.reversed()
        if at.flags & (SYN | FIN | RST):
            self._watch(forward, direction, at)
        known = self._sessions.get(forward)
        if known is None:
            # It began before this agent did. What the core sends here is of a session whose end it will tell.
            known = self._open(forward, chooses=False)
        result = self._guard(lambda: _packets(self.box.packet(known, direction, packet)))
        if not result:
            self.counters["dropped"] += 1
            return
        for one in result:
            self._put(direction, one)

    def _watch(self, forward: FiveTuple, direction: Direction, at: Located) -> None:
        life = self._lives.get(forward)
        if direction is Direction.FORWARD and at.flags & (SYN | ACK) == SYN:
            if life is None or (life.is_over and life.isn != at.seq):
                self._open(forward)
                self._lives[forward] = _Life(at.seq)
        elif life is not None:
            life.was_reset = life.was_reset or bool(at.flags & RST)
            if at.flags & FIN:
                life.fins.add(direction)

    def _drop(self, session: FiveTuple) -> None:
        self._lives.pop(session, None)


def _packets(result: object) -> list[Packet]:
    """What a box returned, as a list. Raises TypeError: its class is the user's and may not be type-checked."""
    if result is None:
        return []
    packets: list[Packet] = []
    for one in result if isinstance(result, list) else [result]:
        if not isinstance(one, Packet):
            raise TypeError(f"a packet box returned {one!r}, which is no packet")
        packets.append(one)
    return packets


@dataclass(slots=True)
class _Life:
    """How far a session is from its end, to tell a new one of the same tuple from a repeated SYN."""

    isn: int
    was_reset: bool = False
    fins: set[Direction] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        return self.was_reset or len(self.fins) == 2


class StreamDevice(Device):
    """A `StreamMiddlebox` between two ports.

    Packets of a session that is not known here (it began before this agent did, or its box has raised) are answered
    by resets on both sides: nobody knows any more which bytes its ends have seen, and guessing would corrupt them.
    """

    def __init__(self, name: str, box: StreamMiddlebox, left: int, receive: Receive, choose: Choose) -> None:
        super().__init__(name, box, left, receive, choose)
        self.box = box
        self._streams: dict[FiveTuple, StreamSession] = {}

    def _handle(self, packet: Packet, direction: Direction) -> None:
        at = locate(packet)
        if at is None:
            self._error(packet, direction)
            return
        forward = at.five_tuple if direction is Direction.FORWARD else at.five_tuple.reversed()
        stream = self._streams.get(forward)
        begins = direction is Direction.FORWARD and at.flags & (SYN | ACK) == SYN
        if begins and (stream is None or stream.is_new(at)):
            embryonic = stream is not None and stream.half(Direction.BACKWARD) is None
            session = self._sessions[forward] if embryonic else self._open(forward)
            stream = self._streams[forward] = StreamSession(
                lambda way, chunk: self.box.data(session, way, chunk), lambda way: self.box.end(session, way)
            )
        out = None if stream is None else self._guard(lambda: stream.receive(direction, packet, at))
        if out is None:
            self._streams.pop(forward, None)
            self._reset(direction, at)
            return
        for way, one in out:
            self._put(way, one)

    def _drop(self, session: FiveTuple) -> None:
        stream = self._streams.pop(session, None)
        if stream is not None:
            self.counters.update(stream.counters)

    def settle(self, session: FiveTuple) -> tuple[int, int] | None:
        stream, known = self._streams.get(session), self._sessions.get(session)
        if stream is None or known is None or not self._guard(lambda: self.box.may_leave(known), False):
            return None
        return stream.settle()

    def unsettle(self, session: FiveTuple) -> None:
        stream = self._streams.get(session)
        if stream is not None:
            stream.unsettle()

    def _reset(self, direction: Direction, at: Located) -> None:
        self.counters["unknown_session"] += 1
        for way, seq, ack, flags in reset_answers(direction, at):
            tuple_ = at.five_tuple if way is direction else at.five_tuple.reversed()
            self._put(way, build_tcp(tuple_, seq, ack, flags, 0))

    def _error(self, packet: Packet, direction: Direction) -> None:
        """An ICMP error about a packet that went the other way: put the sender's numbers into it."""
        error = parse_error(packet)
        if error is not None:
            about = Direction.BACKWARD if direction is Direction.FORWARD else Direction.FORWARD
            quoted = error.five_tuple
            stream = self._streams.get(quoted if about is Direction.FORWARD else quoted.reversed())
            seq = None if stream is None else stream.translate_quoted(about, error.seq)
            if stream is None or seq is None:
                self.counters["icmp_unknown"] += 1
                return
            if error.mtu:
                stream.learn_mtu(about, error.mtu)
            translate_error(packet, error, quoted, src=error.src, dst=error.dst, seq_delta=seq - error.seq)
        self._put(direction, packet)
