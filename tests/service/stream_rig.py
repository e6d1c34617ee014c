"""Two modelled TCP endpoints, a stream box between them, and links that lose, repeat and reorder.

        left endpoint  <-- links -->  StreamSession  <-- links -->  right endpoint

A monitor watches what the box sends: checksums, no packet larger than the receiver's MSS, nothing beyond the
receiver's window.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from dysco.middlebox import Direction
from dysco.service.half import unwrap
from dysco.service.stream import Out, StreamSession
from dysco.sim.clock import Clock
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.link import Fault, Link
from dysco.wire.options import syn_options
from dysco.wire.packet import ACK, SYN, Packet, complete, locate, verify
from dysco.wire.tuples import FiveTuple

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
READ_S = 0.05  # between two reads of a slow application
V4 = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
V6 = FiveTuple.parse("[fd00::1]:1234 > [fd00::9]:80")


class Change(Protocol):
    """A box for one direction, and what it makes of a whole stream."""

    def data(self, chunk: bytes) -> bytes: ...

    def end(self) -> bytes: ...

    def whole(self, stream: bytes) -> bytes: ...


class Same:
    """Changes nothing."""

    def data(self, chunk: bytes) -> bytes:
        return chunk

    def end(self) -> bytes:
        return b""

    def whole(self, stream: bytes) -> bytes:
        return stream


@dataclass
class Each:
    """Puts something in place of every byte: nothing, or several."""

    table: dict[int, bytes]

    def data(self, chunk: bytes) -> bytes:
        return b"".join(self.table.get(byte, bytes((byte,))) for byte in chunk)

    def end(self) -> bytes:
        return b""

    def whole(self, stream: bytes) -> bytes:
        return self.data(stream)


@dataclass
class Blocks:
    """Holds bytes back until a block is full, and puts a header before each; the end adds a trailer."""

    size: int
    header: bytes
    trailer: bytes
    held: bytes = b""

    def data(self, chunk: bytes) -> bytes:
        self.held += chunk
        out = b""
        while len(self.held) >= self.size:
            out += self.header + self.held[: self.size]
            self.held = self.held[self.size :]
        return out

    def end(self) -> bytes:
        return self.held + self.trailer

    def whole(self, stream: bytes) -> bytes:
        full = len(stream) // self.size * self.size
        out = b"".join(self.header + stream[i : i + self.size] for i in range(0, full, self.size))
        return out + stream[full:] + self.trailer


class SlowReader(Endpoint):
    """An endpoint whose application reads `rate` bytes a second (0: at once); its window closes and opens.

    It answers a packet below its window, as RFC 9293 section 3.10.7.4 wants; probes of windows live by that.
    """

    rate = 0.0
    read = 0

    def receive(self, packet: Packet, now: float) -> None:
        self.shrink()
        super().receive(packet, now)
        at = locate(packet)
        assert at is not None
        below = (at.seq - self._peer_isn - self._rcv_next) & 0x80000000
        if self.state in (State.OPEN, State.DONE) and not at.payload_len and not at.flags & 7 and below:
            self._emit(ACK, self._next, b"", now)

    def shrink(self) -> None:
        """Offer what is free."""
        if self.rate:
            free = max(0, self.full - (len(self.received) - self.read))
            self.profile = replace(self.profile, buffer=free)

    def consume(self, now: float, seconds: float) -> None:
        """Read, and say that the window has opened."""
        if not self.rate or self.state is not State.OPEN:
            return
        self.read = min(len(self.received), self.read + int(self.rate * seconds))
        before = self.profile.buffer
        self.shrink()
        if self.profile.buffer != before:
            self._emit(ACK, self._next, b"", now)

    @property
    def full(self) -> int:
        return self._full

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self._full = self.profile.buffer


@dataclass
class Rig:
    """One session. `run` drives it to its rest; `problems` lists what the monitor or an endpoint complains of."""

    seed: int
    changes: dict[Direction, Change]
    session: FiveTuple = V4
    profiles: tuple[Profile, Profile] = (Profile(), Profile())
    faults: tuple[Fault, Fault] = (Fault(), Fault())
    isns: tuple[int, int] = (0xFFFFF000, 0xFFFFFFF0)
    rates: tuple[float, float] = (0.0, 0.0)
    problems: list[str] = field(default_factory=list)
    dialogue: list[str] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = Clock()
        self.box = StreamSession(
            lambda way, chunk: self.changes[way].data(chunk), lambda way: self.changes[way].end()
        )
        left, right = self.faults
        self.links = {
            name: Link(self.clock, self.rng, fault)
            for name, fault in (("la", left), ("lb", left), ("ra", right), ("rb", right))
        }
        self.left = self._end(self.session, 0, self.links["la"], FORWARD)
        self.right = self._end(self.session.reversed(), 1, self.links["rb"], BACKWARD)
        self._edge: dict[Direction, int] = {}
        self._shift = dict.fromkeys(Direction, 0)
        self._mss: dict[Direction, int] = {}

    def _end(self, tuple_: FiveTuple, index: int, link: Link, way: Direction) -> SlowReader:
        def send(packet: Packet) -> None:
            link.send(packet, lambda item: self._at_box(way, item.copy()))

        end = SlowReader(tuple_, self.isns[index], self.profiles[index], send, self.rng)
        end.rate = self.rates[index]
        return end

    def _at_box(self, way: Direction, packet: Packet) -> None:
        at = locate(packet)
        assert at is not None
        self._note("in ", way, packet)
        if at.flags & SYN:
            options = syn_options(packet)
            self._mss[way] = options.mss or 536
            self._shift[way] = options.wscale or 0
            if at.flags & ACK:
                self._edge[FORWARD] = at.ack + at.window
        elif at.flags & ACK:
            # Data of the other direction may be sent up to here.
            other = BACKWARD if way is FORWARD else FORWARD
            scales = all(profile.wscale is not None for profile in self.profiles)
            edge = at.ack + (at.window << (self._shift[way] if scales else 0))
            known = self._edge.get(other)
            self._edge[other] = edge if known is None else max(known, unwrap(edge, known))
        self._deliver(self.box.receive(way, packet, at))

    def _deliver(self, out: Out) -> None:
        for way, packet in out:
            self._watch(way, packet)
            end, link = (self.right, self.links["ra"]) if way is FORWARD else (self.left, self.links["lb"])
            link.send(packet, self._receiver(end))

    def _receiver(self, end: Endpoint) -> Callable[[Packet], None]:
        return lambda item: end.receive(item.copy(), self.clock.now)

    def _watch(self, way: Direction, packet: Packet) -> None:
        self._note("out", way, packet)
        whole = packet.copy()
        complete(whole)
        at = locate(packet)
        if at is None or not verify(packet) or not verify(whole):
            self.problems.append("the box sent a wrong packet")
            return
        if at.flags & SYN:
            return
        other = BACKWARD if way is FORWARD else FORWARD
        size = packet.gso_size or at.payload_len
        if size > self._mss[other]:
            self.problems.append(f"{size} bytes in one packet")
        if packet.gso_size and not self.profiles[0 if way is FORWARD else 1].burst > 1:
            self.problems.append("an offload packet of a host that sends none")
        edge = self._edge.get(way)
        if at.payload_len and edge is not None and unwrap(at.seq + at.payload_len, edge) > edge:
            self.problems.append("bytes beyond the receiver's window")

    def _note(self, what: str, way: Direction, packet: Packet) -> None:
        at = locate(packet)
        if at is not None:
            self.dialogue.append(
                f"{self.clock.now:10.4f} {what} {way.value:8} flags={at.flags:#04x} seq={at.seq} "
                f"len={at.payload_len} ack={at.ack} window={at.window}"
            )

    def run(self, forward: bytes, backward: bytes, limit_s: float = 2000.0) -> None:
        """Send both streams and close; return when both ends are done, or the time is over."""
        self.left.open(self.clock.now)
        self.left.write(forward, self.clock.now)
        self.right.write(backward, self.clock.now)
        self.left.close(self.clock.now)
        self.right.close(self.clock.now)
        self.continue_(limit_s)

    def continue_(self, limit_s: float = 2000.0) -> None:
        """Let time pass until both ends are done."""
        ends = (self.left, self.right)
        end_at = self.clock.now + limit_s
        read_at = self.clock.now
        while self.clock.now < end_at:
            deadlines = [end.deadline for end in ends if end.deadline is not None]
            if any(self.rates):
                deadlines.append(read_at + READ_S)
            wait_until = min(deadlines, default=end_at)
            timer = self.clock.call_at(wait_until, lambda: None)
            self.clock.step()
            timer.cancel()
            for end in ends:
                end.handle_deadline(self.clock.now)
                if self.clock.now >= read_at + READ_S:
                    end.consume(self.clock.now, READ_S)
            if self.clock.now >= read_at + READ_S:
                read_at = self.clock.now
            if all(end.state in (State.DONE, State.FAILED) for end in ends):
                break

    def check(self, forward: bytes, backward: bytes) -> None:
        """Assert that both ends got the streams as the box makes them, and nobody complains."""
        assert self.problems == []
        assert self.left.violations == []
        assert self.right.violations == []
        assert bytes(self.right.received) == self.changes[FORWARD].whole(forward)
        assert bytes(self.left.received) == self.changes[BACKWARD].whole(backward)
        assert self.left.state is State.DONE, self.left.why_failed
        assert self.right.state is State.DONE, self.right.why_failed
