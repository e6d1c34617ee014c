"""A small TCP endpoint that watches what it is given.

It does what a chain can notice of a TCP stack: handshake with options, a window, cumulative acknowledgement,
retransmission with back-off, probes of a closed window, fast retransmission, half-close, FIN, RST, offload
packets. It has no congestion control. Beside that it is a judge: `violations` lists every number that a correct
path can never deliver (an acknowledgement of what was not sent, a wrong checksum, an echo of a timestamp that
was never used).

Numbers inside are relative: 0 is the SYN, 1 the first byte of data, and they do not wrap; on the wire they
are 32 bits from the initial sequence number (RFC 9293 section 3.4).

    CLOSED --open--> SYN_SENT --SYN-ACK--> OPEN        fin_sent, fin_acked, fin_received say how far the
    CLOSED ---SYN--> SYN_RECEIVED ---ACK--> OPEN       close of each direction has come
    OPEN --all closed--> DONE                          any --RST, give up--> FAILED
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from dysco.wire.options import SynOptions, syn_options
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, Packet, build_tcp, locate, verify
from dysco.wire.tuples import FiveTuple

RTO_MIN_S = 0.25
RTO_MAX_S = 2.0
ATTEMPTS = 100
HALF = 1 << 31
FAR = 1 << 20
# As Linux (tcp_invalid_ratelimit): else two ends that get each other's packets late answer each other for ever.
OLD_PAUSE_S = 0.5
MASK = (1 << 32) - 1


class State(Enum):
    CLOSED = "closed"
    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Profile:
    """What one stack offers. mss in bytes, wscale 0 to 14 or None, buffer in bytes, burst in segments a packet.

    paws: whether it drops what has an older timestamp than it has seen (RFC 7323 section 5). greedy: whether its
    application reads at once; else what was not read (`read_to`) takes room in the buffer.
    """

    mss: int = 1460
    wscale: int | None = 7
    timestamps: bool = True
    sack: bool = True
    buffer: int = 65535
    burst: int = 1
    paws: bool = False
    greedy: bool = True


class Endpoint:
    """One end of one TCP session; `send` puts its packets on the way."""

    def __init__(
        self,
        tuple_: FiveTuple,
        isn: int,
        profile: Profile,
        send: Callable[[Packet], None],
        rng: random.Random,
    ) -> None:
        self.tuple = tuple_
        self.isn = isn
        self.profile = profile
        self.state = State.CLOSED
        self.why_failed = ""
        self.violations: list[str] = []
        self.received = bytearray()
        self.fin_received = False
        self.fin_acked = False
        self.deadline: float | None = None
        self.armed_at: float | None = None
        self._send = send
        self._rng = rng
        self._out = bytearray()
        self._closing = False
        self._is_orphan = False
        self._una = 0
        self._next = 0
        self._top = 0
        self._peer_isn = 0
        self._rcv_next = 0
        self._early: dict[int, bytes] = {}
        self._early_fin: int | None = None
        self._window = 0
        self._peer: SynOptions | None = None
        self._rto = RTO_MIN_S * 2
        self._tries = 0
        self._repeated_acks = 0
        self._ts_base = rng.randrange(1 << 32)
        self._ts_recent = 0
        self._ts_highest: int | None = None
        self.old_stamps = 0
        self._said_old_at = -math.inf
        self.overrun = 0
        self._read = 0
        self._shown = 0

    @property
    def closing(self) -> bool:
        """Whether nothing more will be written."""
        return self._closing

    @property
    def fin_sent(self) -> bool:
        return self._closing and self._next > self._end

    @property
    def _end(self) -> int:
        """The number of the FIN, one behind the last byte."""
        return 1 + len(self._out)

    def open(self, now: float) -> None:
        """Send the first SYN."""
        self.state = State.SYN_SENT
        self._transmit_syn(now)

    def write(self, data: bytes, now: float) -> None:
        """Give bytes to be sent; never after `close`."""
        self._out += data
        self._push(now)

    @property
    def backlog(self) -> int:
        """Bytes that were written and are not acknowledged."""
        return max(0, self._end - max(self._una, 1))

    def read_to(self, position: int, now: float) -> None:
        """The application has read so many bytes in all; a window that opens again is told (RFC 9293, 3.8.6.2.2)."""
        self._read = max(self._read, min(position, len(self.received)))
        least = min(self.profile.buffer // 2, self.profile.mss)
        if self.state is State.OPEN and self._shown < least <= self._free:
            self._emit(ACK, self._next, b"", now)

    def close(self, now: float) -> None:
        """Send FIN after what was written."""
        self._closing = True
        self._push(now)

    def abort(self, now: float) -> None:
        """Send RST and forget everything."""
        if self.state in (State.OPEN, State.SYN_RECEIVED):
            self._emit(RST | ACK, self._next, b"", now)
        self._fail("aborted here")

    def orphan(self, now: float) -> None:
        """Lose the process that held it, as on Linux: RST if it has not read all, else FIN behind what it has written.

        Data that come later are answered with RST.
        """
        if len(self.received) > self._read:
            self.abort(now)
        else:
            self._is_orphan = True
            self.close(now)

    def vanish(self) -> None:
        """Be gone without a word, as with a host that has lost its power."""
        self._fail("vanished")

    def handle_deadline(self, now: float) -> None:
        """Send again what is not acknowledged, or probe a window that is closed, if the time has come."""
        if self.deadline is None or now < self.deadline:
            return
        self.deadline = self.armed_at = None
        if self.state in (State.DONE, State.FAILED, State.CLOSED):
            return
        self._tries += 1
        if self._tries > ATTEMPTS:
            self._fail("no answer")
            return
        self._rto = min(self._rto * 2, RTO_MAX_S)
        if self.state in (State.SYN_SENT, State.SYN_RECEIVED):
            self._transmit_syn(now)
            return
        self._next = self._una
        if not self._push(now, probe=True):
            self._arm(now)

    def receive(self, packet: Packet, now: float) -> None:
        """Take one packet of this session."""
        at = locate(packet)
        if at is None:
            self.violations.append("malformed packet")
            return
        if not packet.partial and not verify(packet, at):
            self.violations.append("wrong checksum")
            return
        payload = bytes(packet.data[at.payload_offset : at.total_len])
        options = syn_options(packet, at)
        if at.flags & RST:
            self._receive_rst(at.flags, at.seq, at.ack)
            return
        if at.flags & SYN:
            self._receive_syn(at.flags, at.seq, at.ack, at.window, options, payload, now)
            return
        if self.state in (State.CLOSED, State.SYN_SENT, State.FAILED):
            return
        seq = self._rcv_next + _signed(at.seq - self._peer_isn - self._rcv_next)
        ack = self._una + _signed(at.ack - self.isn - self._una)
        if options.tsval is not None and self._uses_timestamps:
            self._watch_echo(options.tsecr or 0, now)
            if self.profile.paws and _signed(options.tsval - self._ts_recent) < 0:
                self.old_stamps += 1
                if payload or at.flags & FIN or now >= self._said_old_at + OLD_PAUSE_S:
                    self._said_old_at = now
                    self._emit(ACK, self._next, b"", now)
                return
            if seq <= self._rcv_next:
                self._ts_recent = options.tsval
        asked = abs(seq - self._rcv_next) > FAR or not (at.seq or at.ack or at.window)
        if asked and not payload and not at.flags & FIN:
            # An agent asks where this end stands: far out of the window, or zeros (RFC 9293 section 3.10.7.4).
            self._emit(ACK, self._next, b"", now)
            return
        shift = (self._peer.wscale or 0) if self._peer and self._scales else 0
        self._receive_ack(ack, at.window << shift, bool(payload or at.flags & FIN), now)
        if payload or at.flags & FIN:
            self._receive_data(seq, payload, bool(at.flags & FIN), now)
        if self._all_done and self.state is State.OPEN:
            self.state = State.DONE
            self.deadline = None

    @property
    def _free(self) -> int:
        """Room for more bytes."""
        unread = 0 if self.profile.greedy else len(self.received) - self._read
        return max(0, self.profile.buffer - unread)

    @property
    def _all_done(self) -> bool:
        return self.fin_acked and self.fin_received

    @property
    def _scales(self) -> bool:
        return self.profile.wscale is not None and self._peer is not None and self._peer.wscale is not None

    @property
    def _uses_timestamps(self) -> bool:
        return self.profile.timestamps and self._peer is not None and self._peer.tsval is not None

    def _receive_syn(
        self, flags: int, seq: int, ack: int, window: int, options: SynOptions, payload: bytes, now: float
    ) -> None:
        if self.state is State.SYN_SENT and flags & ACK:
            if (ack - self.isn) & MASK != 1:
                self.violations.append("SYN-ACK for another SYN")
                return
            self._start(seq, options, window)
            self.state = State.OPEN
            self._una = self._next = self._top = 1
            self._reset_timer()
            self._emit(ACK, 1, b"", now)
            self._push(now)
        elif self.state is State.CLOSED and not flags & ACK:
            if payload:
                self.violations.append("SYN with payload reached an application")
            self._start(seq, options, window)
            self.state = State.SYN_RECEIVED
            self._transmit_syn(now)
        elif self.state in (State.SYN_RECEIVED,) and not flags & ACK:
            self._transmit_syn(now)
        elif self.state in (State.OPEN, State.DONE):
            self._emit(ACK, self._next, b"", now)

    def _start(self, seq: int, options: SynOptions, window: int) -> None:
        self._peer_isn = seq
        self._rcv_next = 1
        self._peer = options
        self._window = window
        self._ts_recent = options.tsval or 0

    def _receive_rst(self, flags: int, seq: int, ack: int) -> None:
        if self.state is State.SYN_SENT:
            if flags & ACK and (ack - self.isn) & MASK == 1:
                self._fail("refused")
        elif self.state not in (State.CLOSED, State.DONE):
            offset = _signed(seq - self._peer_isn - self._rcv_next)
            if 0 <= offset <= max(self.profile.buffer, 1):
                self._fail("reset by the other side")

    def _receive_ack(self, ack: int, window: int, has_data: bool, now: float) -> None:
        if ack > self._top:
            self.violations.append(f"ack {ack} of what was not sent ({self._top})")
            return
        if self.state is State.SYN_RECEIVED and ack >= 1:
            self.state = State.OPEN
            self._una = self._next = max(self._next, 1)
            self._top = max(self._top, 1)
            self._reset_timer()
        self._window = window
        if ack == self._una and window == 0:
            self._tries = 0  # probes that are answered may go on for ever
        if ack > self._una:
            self._una = ack
            self._next = max(self._next, ack)
            self._repeated_acks = 0
            self._reset_timer()
            if self._closing and ack > self._end:
                self.fin_acked = True
            if self._una < self._top:
                self._arm(now)
        elif ack == self._una and not has_data and self._una < self._top:
            self._repeated_acks += 1
            if self._repeated_acks == 3:
                self._next, kept = self._una, self._next
                self._push(now, limit=1)
                self._next = max(self._next, kept)
        self._push(now)

    def _receive_data(self, seq: int, payload: bytes, fin: bool, now: float) -> None:
        if self._is_orphan and seq + len(payload) > self._rcv_next:
            self.abort(now)
            return
        edge = self._rcv_next + self._free
        if seq + len(payload) > edge:
            # Out of the window: what lies behind its edge is not kept (RFC 9293 section 3.10.7.4).
            self.overrun += seq + len(payload) - max(edge, seq)
            payload, fin = payload[: max(0, edge - seq)], False
        if fin:
            self._early_fin = seq + len(payload)
        if payload and seq + len(payload) > self._rcv_next:
            known = self._early.get(seq, b"")
            if len(payload) > len(known):
                self._early[seq] = payload
        for start in sorted(self._early):
            if start > self._rcv_next:
                break
            fresh = self._early.pop(start)[self._rcv_next - start :]
            self.received += fresh
            self._rcv_next += len(fresh)
        if self._early_fin == self._rcv_next and not self.fin_received:
            self.fin_received = True
            self._rcv_next += 1
        self._emit(ACK, self._next, b"", now)

    def _push(self, now: float, limit: int = 1 << 30, probe: bool = False) -> bool:
        """Send what the window allows, at most `limit` packets; True if something went out."""
        if self.state is not State.OPEN:
            return False
        sent = 0
        mss = self._segment_size()
        while sent < limit:
            room = self._una + max(self._window, 1 if probe else 0) - self._next
            size = min(self._end - self._next, room, mss * self.profile.burst)
            if size > 0:
                fin = self._closing and self._next + size == self._end and self._rng.random() < 0.5
                self._emit(
                    ACK | PSH | (FIN if fin else 0),
                    self._next,
                    bytes(self._out[self._next - 1 : self._next - 1 + size]),
                    now,
                )
                self._next += size + fin
            elif self._closing and self._next == self._end:
                self._emit(ACK | FIN, self._next, b"", now)
                self._next += 1
            else:
                break
            sent += 1
            self._top = max(self._top, self._next)
        waits = self._una == self._next < self._end and self.deadline is None
        if sent or waits:
            # Also with nothing in flight: the update of a closed window may be lost (RFC 9293 section 3.8.6.1).
            self._arm(now)
        return bool(sent)

    def _segment_size(self) -> int:
        peer_mss = self._peer.mss if self._peer and self._peer.mss else 536
        return min(self.profile.mss, peer_mss) - (12 if self._uses_timestamps else 0)

    def _transmit_syn(self, now: float) -> None:
        answers = self.state is State.SYN_RECEIVED
        peer = self._peer
        options = bytearray(struct.pack("!BBH", 2, 4, self.profile.mss))
        if self.profile.sack and (peer is None or peer.sack):
            options += b"\x01\x01\x04\x02"
        if self.profile.timestamps and (peer is None or peer.tsval is not None):
            options += b"\x01\x01" + self._timestamp(now)
        if self.profile.wscale is not None and (peer is None or peer.wscale is not None):
            options += struct.pack("!BBBB", 1, 3, 3, self.profile.wscale)
        ack = (self._peer_isn + self._rcv_next) & MASK if answers else 0
        window = min(self.profile.buffer, 65535)
        self._send(
            build_tcp(
                self.tuple, self.isn, ack, SYN | ACK if answers else SYN, window, bytes(options), b"", 64
            )
        )
        self._top = max(self._top, 1)
        self._next = max(self._next, 1)
        self._arm(now)

    def _emit(self, flags: int, seq: int, payload: bytes, now: float) -> None:
        options = b"\x01\x01" + self._timestamp(now) if self._uses_timestamps else b""
        shift = self.profile.wscale or 0 if self._scales else 0
        free = min(self._free >> shift, 65535)
        self._shown = free << shift
        packet = build_tcp(
            self.tuple,
            (self.isn + seq) & MASK,
            (self._peer_isn + self._rcv_next) & MASK,
            flags,
            free,
            options,
            payload,
            64,
        )
        if len(payload) > self._segment_size():
            packet.gso_size = self._segment_size()
        self._send(packet)

    def _timestamp(self, now: float) -> bytes:
        value = (self._ts_base + int(now * 1000)) & MASK
        self._ts_highest = value
        return struct.pack("!BBII", 8, 10, value, self._ts_recent)

    def _watch_echo(self, echo: int, now: float) -> None:
        if self._ts_highest is not None and _signed(self._ts_highest - echo) < 0:
            self.violations.append("echo of a timestamp that was never sent")

    def _arm(self, now: float) -> None:
        self.deadline = now + self._rto

    def _reset_timer(self) -> None:
        self._tries = 0
        self._rto = RTO_MIN_S
        self.deadline = None

    def _fail(self, why: str) -> None:
        self.state = State.FAILED
        self.why_failed = why
        self.deadline = None


def _signed(number: int) -> int:
    """The difference of two sequence numbers as a signed value (RFC 1982)."""
    number &= MASK
    return number - (1 << 32) if number >= HALF else number
