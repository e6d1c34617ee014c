"""Rewriting the bytes of a TCP session between its two ends, without ending TCP.

Knows packets of one session and a function that changes bytes; knows no socket, clock or loop.

Bytes go to the box in order, once; what it returns is kept until the receiver has acknowledged it. Sequence numbers,
acknowledgements, SACK blocks and windows are translated through the map of each direction (`boundary.py`). Nothing is
ever sent because of time: the sender's retransmission, and its probe of a closed window, lead to the same bytes again,
for while something is missing at the receiver something is unacknowledged at the sender.

    packet of the sender   new bytes            -> rewritten, cut to the receiver's MSS and window, sent on
                           ahead of a hole      -> kept; acknowledged again, with SACK, once all before is acknowledged
                           a repetition         -> the same rewritten bytes again
                           swallowed by the box -> acknowledged from here, as soon as what came before is
    packet of the receiver its acknowledgement  -> translated; what waited for its window is sent

SYN payload (Fast Open) is left out: the SYN-ACK acknowledges the SYN alone and TCP sends the data again (RFC 7413
section 4.1.2).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Final

from dysco.middlebox import Direction
from dysco.service.half import DEFAULT_MSS, Half, unwrap
from dysco.wire import checksum
from dysco.wire.options import NOP, SACK, TIMESTAMP, SynOptions, syn_options, walk
from dysco.wire.packet import (
    ACK,
    CWR,
    ECE,
    FIN,
    IPV6_HEADER_LEN,
    PSH,
    RST,
    SYN,
    TCP_HEADER_LEN,
    URG,
    Located,
    Packet,
    set_payload,
)

Out = list[tuple[Direction, Packet]]
Data = Callable[[Direction, bytes], bytes]
End = Callable[[Direction], bytes]

FORWARD: Final = Direction.FORWARD
BACKWARD: Final = Direction.BACKWARD
_OTHER: Final = {FORWARD: BACKWARD, BACKWARD: FORWARD}
_MASK: Final = 0xFFFFFFFF
_LARGEST: Final = 65535  # bytes of an IP packet, offload or not
_MOST_BLOCKS: Final = 3  # SACK blocks that fit beside a timestamp (RFC 2018 section 3)
_MOST_REPEATED: Final = 3  # repeated acknowledgements that start a fast retransmission (RFC 5681 section 3.2)
_FAR_BELOW: Final = 1 << 30  # more than any window or delta, less than half of the numbers
_TCP: Final = struct.Struct("!4sIIBBHHH")
_BLOCK: Final = struct.Struct("!II")
_TIMESTAMPS: Final = struct.Struct("!BBBBII")
_U16: Final = struct.Struct("!H")


class Template:
    """The headers to use for a packet of one direction: of a packet that came, or of the last one that did."""

    __slots__ = ("flags", "gso", "ip", "options", "ports", "urgent")

    def __init__(self, ip: bytes, ports: bytes, options: bytes, flags: int, gso: bool) -> None:
        self.ip = ip
        self.ports = ports
        self.options = options
        self.flags = flags
        self.gso = gso
        self.urgent: int | None = None


class _Host:
    """What is remembered of one end for packets that are made here in its name."""

    __slots__ = ("gso", "ip", "ports", "tsval")

    def __init__(self) -> None:
        self.ip = b""
        self.ports = b""
        self.tsval: int | None = None
        self.gso = False


class StreamSession:
    """One session through a stream box. `receive` never raises but for what `data` and `end` raise."""

    def __init__(self, data: Data, end: End) -> None:
        self.counters: Counter[str] = Counter()
        self._data = data
        self._end = end
        self._hosts = {FORWARD: _Host(), BACKWARD: _Host()}
        self._halves: dict[Direction, Half] = {}
        self._syn_of: dict[Direction, SynOptions] = {}
        self._isn: int | None = None
        self._was_reset = False
        self._is_passing = False

    def half(self, direction: Direction) -> Half | None:
        """One direction; None before its SYN has passed."""
        return self._halves.get(direction)

    def delta(self, direction: Direction) -> int:
        """How many bytes longer (negative: shorter) the box has made a direction so far."""
        half = self._halves.get(direction)
        return 0 if half is None else half.map.delta

    @property
    def is_settled(self) -> bool:
        """Whether the receivers have acknowledged all that was made, and no hole waits to be filled."""
        return all(half.una == half.map.out_end and not half.has_hole for half in self._halves.values())

    def settle(self) -> tuple[int, int] | None:
        """Pass bytes as they are from now on; give what each direction has grown by, which is final then.

        None before the handshake is over. Repetitions of what the box has changed still get the same bytes.
        """
        if BACKWARD not in self._halves:
            return None
        self._is_passing = True
        return self.delta(FORWARD), self.delta(BACKWARD)

    def unsettle(self) -> None:
        """Give bytes to the box again."""
        self._is_passing = False

    def is_new(self, at: Located) -> bool:
        """Whether a SYN begins another session than this one, which is over or was never established."""
        if self._isn is None or at.seq == self._isn:
            return False
        was_open = BACKWARD in self._halves and not self._was_reset
        return not was_open or all(half.is_over for half in self._halves.values())

    def receive(self, direction: Direction, packet: Packet, at: Located) -> Out:
        """Take a packet that goes in `direction`; return packets, each with the direction in which it goes on."""
        out: Out = []
        if at.flags & SYN:
            self._handshake(direction, packet, at)
            return [(direction, packet)]
        here, back = self._halves.get(direction), self._halves.get(_OTHER[direction])
        if at.flags & RST:
            self._reset(packet, at, here, back)
            return [(direction, packet)]
        if here is None or back is None or not at.flags & ACK:
            self.counters["before_handshake"] += 1
            return out
        ack = unwrap(at.ack, back.una)
        if ack > back.sent:
            self.counters["ack_of_unsent"] += 1
            return out
        template = self._see(direction, packet, at, back)
        moved, fresh = ack > back.una, ack >= back.una
        before = back.told, back.told_window
        if moved:
            back.acked(ack)
        if fresh:
            edge = ack + (at.window << back.shift)
            moved = moved or edge != back.edge
            back.edge = edge
            self._retell(back, moved)
        changed = before != (back.told, back.told_window)
        if at.payload_len or at.flags & FIN:
            self._receive_data(direction, packet, at, template, changed, out)
        elif changed or (fresh and not moved):
            # An acknowledgement that says nothing new to the sender must not look to it like a repeated one.
            position = unwrap(at.seq, here.map.in_end)
            self._emit(direction, template, here.out_of(position), b"", False, out)
        self._flush(_OTHER[direction], out)
        self._answer_holes(_OTHER[direction], out)
        return out

    def learn_mtu(self, direction: Direction, mtu: int) -> None:
        """Packets of a direction must not be larger than `mtu` bytes any more."""
        half = self._halves.get(direction)
        ip = len(self._hosts[direction].ip)
        if half is not None and ip:
            half.limit = min(half.limit, max(mtu - ip - TCP_HEADER_LEN, DEFAULT_MSS))

    def translate_quoted(self, direction: Direction, seq: int) -> int | None:
        """The sender's number for a sequence number that an ICMP error quotes; None if it was not under way."""
        half = self._halves.get(direction)
        if half is None:
            return None
        position = unwrap(seq, half.una)
        return half.map.in_acked(position) & _MASK if half.una <= position < half.sent else None

    def _handshake(self, direction: Direction, packet: Packet, at: Located) -> None:
        """Learn from SYN and SYN-ACK. A SYN that fits neither passes as it is: the end answers it (RFC 5961)."""
        if at.flags & ACK and direction is BACKWARD:
            forward = self._halves.get(FORWARD)
            if forward is None or self._isn is None or at.ack != (self._isn + 1) & _MASK:
                return
        elif at.flags & ACK or direction is BACKWARD or (self._isn is not None and at.seq != self._isn):
            return
        if at.payload_len:
            self.counters["syn_payload_left_out"] += 1
            set_payload(packet, b"")
        if direction in self._halves:
            return
        self._halves[direction] = Half(
            at.seq + 1,
            lambda chunk: chunk if self._is_passing else self._data(direction, chunk),
            lambda: b"" if self._is_passing else self._end(direction),
        )
        options = self._syn_of[direction] = syn_options(packet)
        host = self._hosts[direction]
        host.ip, host.ports = bytes(packet.data[: at.tcp_offset]), at.five_tuple[-4:]
        host.tsval = options.tsval
        if direction is FORWARD:
            self._isn = at.seq
        else:
            self._established(at, options)

    def _established(self, at: Located, answer: SynOptions) -> None:
        """Both SYNs are known, and with them what both ends use."""
        offer = self._syn_of[FORWARD]
        scales = offer.wscale is not None and answer.wscale is not None
        if offer.tsval is None or answer.tsval is None:
            self._hosts[FORWARD].tsval = self._hosts[BACKWARD].tsval = None
        forward, backward = self._halves[FORWARD], self._halves[BACKWARD]
        for half, receiver in ((forward, answer), (backward, offer)):
            half.shift = (receiver.wscale or 0) if scales else 0
            half.mss = receiver.mss or DEFAULT_MSS
        forward.edge = forward.una + at.window  # the window of a SYN is never scaled (RFC 7323 section 2.2)
        forward.told_window = at.window
        forward.promised = forward.edge

    def _see(self, direction: Direction, packet: Packet, at: Located, back: Half) -> Template:
        """Remember what packets in this host's name need; translate SACK blocks."""
        host, data = self._hosts[direction], packet.data
        host.ip = bytes(data[: at.tcp_offset])
        host.ports = at.five_tuple[-4:]
        options = b""
        if at.payload_offset > at.tcp_offset + TCP_HEADER_LEN:
            for kind, position, length in list(walk(packet, at)):
                if kind == TIMESTAMP and length == 10:
                    host.tsval = int.from_bytes(data[position + 2 : position + 6], "big")
                elif kind == SACK:
                    _translate_sack(data, position, length, back)
            options = bytes(data[at.tcp_offset + TCP_HEADER_LEN : at.payload_offset])
        if packet.gso_size:
            host.gso = True
            self._halves[direction].limit = packet.gso_size + len(options)
        template = Template(host.ip, host.ports, options, at.flags & (ACK | ECE | CWR | PSH), host.gso)
        if at.flags & URG:
            pointer = _U16.unpack_from(data, at.tcp_offset + 18)[0]
            template.urgent = self._halves[direction].map.in_end + _signed(
                at.seq + pointer - self._halves[direction].map.in_end
            )
        return template

    def _retell(self, half: Half, changed: bool) -> None:
        """Decide what the sender of a direction is told next. A repeated acknowledgement stays one that repeats."""
        if changed or half.in_acked != half.told:
            half.tell(half.window)

    def _receive_data(
        self, direction: Direction, packet: Packet, at: Located, template: Template, changed: bool, out: Out
    ) -> None:
        here = self._halves[direction]
        fin = bool(at.flags & FIN)
        known = here.map.in_end
        start = unwrap(at.seq, known)
        end = start + at.payload_len + fin
        before = len(out)
        if start < known:
            first, last = here.repeated(start, end)
            if first < last:
                self._send(direction, template, first, last, out)
            elif end <= here.in_acked:
                self._repeat(direction, template, at, out)
        if end > known:
            here.take(start, bytes(memoryview(packet.data)[at.payload_offset : at.total_len]), fin)
            if start > known:
                here.owed += 1
        self._send_new(direction, template, out)
        if len(out) == before:
            if here.sent < here.map.out_end and here.sent == here.una:
                # The window is closed: let the receiver say whether it still is (RFC 9293 section 3.8.6.1).
                self._emit(direction, template, here.una - 1, b"", False, out)
            elif changed:
                self._emit(direction, template, here.sent, b"", False, out)
        if here.in_acked != here.told:
            self._retell(here, True)
            self._acknowledge(direction, out)
        self._answer_holes(direction, out)

    def _repeat(self, direction: Direction, template: Template, at: Located, out: Out) -> None:
        """The sender has missed an acknowledgement, or asks whether anybody is there (one byte: a keepalive)."""
        here = self._halves[direction]
        if at.payload_len == 1 and not at.flags & FIN:
            self._emit(direction, template, here.una - 1, b"", False, out)
        else:
            self._acknowledge(direction, out)

    def _answer_holes(self, direction: Direction, out: Out) -> None:
        """Acknowledge again what came ahead of a hole, once nothing before the hole is under way any more."""
        half = self._halves[direction]
        if not half.has_hole:
            half.owed = 0
        elif half.owed and half.una == half.map.out_end:
            for _ in range(min(half.owed, _MOST_REPEATED)):
                self._acknowledge(direction, out)
            half.owed = 0

    def _flush(self, direction: Direction, out: Out) -> None:
        """Send what a window has held back, in the name of its sender."""
        half = self._halves[direction]
        if half.sent < half.map.out_end:
            template = self._own_template(direction, b"")
            if template is not None:
                self._send_new(direction, template, out)

    def _send_new(self, direction: Direction, template: Template, out: Out) -> None:
        half = self._halves[direction]
        limit = half.sendable()
        if limit > half.sent:
            self._send(direction, template, half.sent, limit, out)
            half.sent = limit

    def _send(self, direction: Direction, template: Template, start: int, end: int, out: Out) -> None:
        """Send the bytes (and FIN) between two positions, in as many packets as it takes."""
        half = self._halves[direction]
        segment = half.segment(len(template.options))
        most = segment
        if template.gso:
            most = max(1, (_LARGEST - len(template.ip) - 60) // segment) * segment
        flags = template.flags
        while start < end:
            stop = min(start + most, end, half.data_end)
            payload = half.read(start, stop)
            fin = stop == half.fin_out and stop < end
            template.flags = flags if stop + fin == end else flags & ~PSH
            self._emit(direction, template, start, payload, fin, out, segment)
            flags &= ~CWR
            start = stop + fin
        template.flags = flags

    def _emit(
        self,
        direction: Direction,
        template: Template,
        position: int,
        payload: bytes,
        fin: bool,
        out: Out,
        segment: int = 0,
    ) -> None:
        """Make one packet at a position that goes out; acknowledgement and window are what was to be told last."""
        back = self._halves[_OTHER[direction]]
        flags = (
            (template.flags | FIN if fin else template.flags)
            if payload or fin
            else template.flags & ~(PSH | CWR)
        )
        urgent = 0
        if template.urgent is not None and payload:
            offset = self._halves[direction].map.out_from(template.urgent) - position
            if 0 < offset <= 0xFFFF:
                flags, urgent = flags | URG, offset
        options, ip = template.options, template.ip
        length = TCP_HEADER_LEN + len(options) + len(payload)
        window = min(back.told_window >> back.shift, 0xFFFF)
        header = _TCP.pack(
            template.ports,
            position & _MASK,
            back.told & _MASK,
            (TCP_HEADER_LEN + len(options)) << 2,
            flags,
            window,
            0,
            urgent,
        )
        data = bytearray().join((ip, header, options, payload))
        if data[0] >> 4 == 4:
            addresses = memoryview(data)[12:20]
            _U16.pack_into(data, 2, len(data))
            _U16.pack_into(data, 10, 0)
            _U16.pack_into(data, 10, ~checksum.internet_sum(data[: len(ip)]) & 0xFFFF)
        else:
            addresses = memoryview(data)[8:40]
            _U16.pack_into(data, 4, len(data) - IPV6_HEADER_LEN)
        partial_sum = checksum.pseudo_sum(addresses, length)
        addresses.release()
        _U16.pack_into(data, len(ip) + 16, partial_sum)
        gso = segment if segment and len(payload) > segment else 0
        out.append((direction, Packet(data, True, gso, bool(gso and flags & CWR))))

    def _acknowledge(self, direction: Direction, out: Out) -> None:
        """Tell the sender of a direction, in the receiver's name, what is acknowledged, and what is kept."""
        half = self._halves[direction]
        other = _OTHER[direction]
        blocks = b""
        if self._uses_sack:
            blocks = b"".join(
                _BLOCK.pack(low & _MASK, high & _MASK) for low, high in half.blocks()[-_MOST_BLOCKS:]
            )
        options = bytes((NOP, NOP, SACK, 2 + len(blocks))) + blocks if blocks else b""
        template = self._own_template(other, options)
        if template is not None:
            self.counters["acknowledged_here"] += 1
            self._emit(other, template, self._halves[other].sent, b"", False, out)

    @property
    def _uses_sack(self) -> bool:
        return all(options.sack for options in self._syn_of.values())

    def _own_template(self, direction: Direction, options: bytes) -> Template | None:
        """Headers for a packet that no packet of its direction caused; None before that host has sent one."""
        host, other = self._hosts[direction], self._hosts[_OTHER[direction]]
        if not host.ip:
            return None
        if host.tsval is not None:
            options = _TIMESTAMPS.pack(NOP, NOP, TIMESTAMP, 10, host.tsval, other.tsval or 0) + options
        return Template(host.ip, host.ports, options, ACK | PSH, host.gso)

    def _reset(self, packet: Packet, at: Located, here: Half | None, back: Half | None) -> None:
        """Put the numbers of a RST where the receiver expects them (RFC 5961 section 3.2)."""
        self._was_reset = True
        seq, ack = at.seq, at.ack
        if here is not None:
            seq = here.out_of(unwrap(at.seq, here.map.in_end)) & _MASK
        if back is not None and at.flags & ACK:
            ack = back.map.in_acked(min(unwrap(at.ack, back.una), back.sent)) & _MASK
        _set_numbers(packet, at, seq, ack)


def reset_answers(direction: Direction, at: Located) -> list[tuple[Direction, int, int, int]]:
    """How to end a session whose numbers are not known: (direction, seq, ack, flags) of packets without data.

    The sender of the packet has said what it expects next: a reset there is exact. What the receiver expects is not
    known. A number far below its window makes it say so (RFC 9293 section 3.10.7.4), and that packet comes here too.
    """
    if at.flags & RST:
        return [(direction, at.seq, at.ack, at.flags)]
    if not at.flags & ACK:
        return []
    return [(direction, (at.seq - _FAR_BELOW) & _MASK, at.ack, ACK), (_OTHER[direction], at.ack, 0, RST)]


def _set_numbers(packet: Packet, at: Located, seq: int, ack: int) -> None:
    data, tcp = packet.data, at.tcp_offset
    old = checksum.internet_sum(data[tcp + 4 : tcp + 12])
    struct.pack_into("!II", data, tcp + 4, seq, ack)
    if not packet.partial:
        field = _U16.unpack_from(data, tcp + 16)[0]
        change = checksum.internet_sum(data[tcp + 4 : tcp + 12]) - old
        _U16.pack_into(data, tcp + 16, checksum.add(field, change % 0xFFFF))


def _translate_sack(data: bytearray, position: int, length: int, back: Half) -> None:
    """Put the sender's numbers into a SACK option; blocks that mean nothing to it are left out."""
    kept = []
    for at in range(position + 2, position + length - 7, 8):
        start, end = _BLOCK.unpack_from(data, at)
        low = unwrap(start, back.una)
        found = back.map.in_sacked(low, low + ((end - start) & _MASK)) if low >= back.una else None
        if found is not None and found[1] <= back.map.in_end:
            kept.append(_BLOCK.pack(found[0] & _MASK, found[1] & _MASK))
    size = 2 + 8 * len(kept) if kept else 0
    option = bytes((SACK, size)) + b"".join(kept) if kept else b""
    data[position : position + length] = bytes((NOP,)) * (length - size) + option


def _signed(number: int) -> int:
    return ((number + 0x80000000) & _MASK) - 0x80000000
