"""Single packets through a stream box: what each one becomes, and what the box says in whose name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from dysco.middlebox import Direction
from dysco.service.stream import StreamSession, reset_answers
from dysco.wire.options import SACK, walk
from dysco.wire.packet import ACK, CWR, FIN, PSH, RST, SYN, URG, Located, Packet, build_tcp, locate, verify
from dysco.wire.tuples import FiveTuple

V4 = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
LEFT, RIGHT = 0xFFFFFF00, 5000
SYN_OPTIONS = bytes.fromhex("020405b4 0402 0101")
STAMPED = bytes.fromhex("020405b4 0402 080a00000001000000000103 0300")
Seen = tuple[Direction, int, int, int, bytes]


class Bench:
    """A session that is established; `left` and `right` send, and get what came out."""

    def __init__(
        self,
        forward: Callable[[bytes], bytes] = bytes,
        end: Callable[[], bytes] = bytes,
        options: bytes = SYN_OPTIONS,
        window: int = 10_000,
    ) -> None:
        self.options = options
        self.box = StreamSession(
            lambda way, chunk: forward(chunk) if way is FORWARD else chunk,
            lambda way: end() if way is FORWARD else b"",
        )
        self.left(SYN, 0, 0, options=options)
        self.right(SYN | ACK, 0, 1, window=window, options=options)
        self.left(ACK, 1, 1)

    def left(self, flags: int, seq: int, ack: int, payload: bytes = b"", **more: Any) -> list[Packet]:
        return self.send(FORWARD, flags, LEFT + seq, RIGHT + ack, payload, **more)

    def right(self, flags: int, seq: int, ack: int, payload: bytes = b"", **more: Any) -> list[Packet]:
        return self.send(BACKWARD, flags, RIGHT + seq, LEFT + ack, payload, **more)

    def send(
        self,
        way: Direction,
        flags: int,
        seq: int,
        ack: int,
        payload: bytes,
        window: int = 10_000,
        options: bytes = b"",
        gso_size: int = 0,
        urgent: int = 0,
    ) -> list[Packet]:
        tuple_ = V4 if way is FORWARD else V4.reversed()
        packet = build_tcp(tuple_, seq % 2**32, ack % 2**32, flags, window, options, payload)
        if urgent:
            struct.pack_into("!H", packet.data, 38, urgent)
        packet.gso_size = gso_size
        at = locate(packet)
        assert at is not None
        self.last = self.box.receive(way, packet, at)
        return [one for _, one in self.last]

    @property
    def seen(self) -> list[Seen]:
        """What came out of the last packet: direction, flags, relative seq and ack, payload."""
        found = []
        for way, packet in self.last:
            assert verify(packet)
            at = view(packet)
            near, far = (LEFT, RIGHT) if way is FORWARD else (RIGHT, LEFT)
            found.append((way, at.flags, (at.seq - near) % 2**32, (at.ack - far) % 2**32, payload_of(packet)))
        return found


def view(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at


def payload_of(packet: Packet) -> bytes:
    at = view(packet)
    return bytes(packet.data[at.payload_offset : at.total_len])


def blocks_of(packet: Packet, isn: int) -> list[tuple[int, int]]:
    """The SACK blocks, relative."""
    at = view(packet)
    for kind, position, length in walk(packet, at):
        if kind == SACK:
            edges = struct.unpack_from(f"!{(length - 2) // 4}I", packet.data, position + 2)
            relative = [(edge - isn) % 2**32 for edge in edges]
            return list(zip(relative[::2], relative[1::2], strict=True))
    return []


def sack(isn: int, *blocks: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack("!II", (isn + a) % 2**32, (isn + b) % 2**32) for a, b in blocks)
    return bytes((1, 1, SACK, 2 + len(body))) + body


def double(chunk: bytes) -> bytes:
    return bytes(byte for byte in chunk for _ in range(2))


def nothing(chunk: bytes) -> bytes:
    return b""


def test_bytes_grow_and_acknowledgements_come_back_in_the_senders_numbers() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH, 1, 1, b"abcd")
    assert bench.seen == [(FORWARD, ACK | PSH, 1, 1, b"aabbccdd")]
    bench.right(ACK, 1, 5)
    assert bench.seen == [(BACKWARD, ACK, 1, 3, b"")]
    bench.right(ACK, 1, 9)
    assert bench.seen == [(BACKWARD, ACK, 1, 5, b"")]
    bench.left(ACK, 5, 1)
    assert bench.seen == [(FORWARD, ACK, 9, 1, b"")]
    assert bench.box.delta(FORWARD) == 4
    assert bench.box.delta(BACKWARD) == 0


def test_a_repetition_is_the_same_bytes_and_the_box_is_asked_once() -> None:
    asked: list[bytes] = []
    bench = Bench(lambda chunk: asked.append(chunk) or double(chunk))  # type: ignore[func-returns-value]
    bench.left(ACK | PSH, 1, 1, b"abcd")
    bench.left(ACK | PSH, 3, 1, b"cd")
    assert bench.seen == [(FORWARD, ACK | PSH, 5, 1, b"ccdd")]
    bench.right(ACK, 1, 6)
    bench.left(ACK | PSH, 1, 1, b"abcdef")
    assert bench.seen == [
        (FORWARD, ACK | PSH, 6, 1, b"cdd"[-3:]),
        (FORWARD, ACK | PSH, 9, 1, b"eeff"),
    ]
    assert asked == [b"abcd", b"ef"]


def test_what_the_box_swallows_is_acknowledged_here() -> None:
    bench = Bench(nothing)
    bench.left(ACK | PSH, 1, 1, b"abcd")
    assert bench.seen == [(BACKWARD, ACK, 1, 5, b"")]
    bench.left(ACK | PSH, 1, 1, b"abcd")
    assert bench.seen == [(BACKWARD, ACK, 1, 5, b"")]
    bench.left(ACK | FIN, 5, 1)
    assert bench.seen == [(FORWARD, ACK | FIN, 1, 1, b"")]


def test_what_is_swallowed_behind_bytes_under_way_waits_for_them() -> None:
    bench = Bench(lambda chunk: chunk if chunk == b"keep" else b"")
    bench.left(ACK | PSH, 1, 1, b"keep")
    bench.left(ACK | PSH, 5, 1, b"drop")
    assert bench.seen == []
    bench.right(ACK, 1, 5)
    assert bench.seen == [(BACKWARD, ACK, 1, 9, b"")]


def test_what_is_ahead_of_a_hole_waits_and_is_told_by_sack() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH, 5, 1, b"efgh")
    assert bench.seen == [(BACKWARD, ACK, 1, 1, b"")]
    assert blocks_of(bench.last[0][1], LEFT) == [(5, 9)]
    bench.left(ACK | PSH, 11, 1, b"kl")
    assert blocks_of(bench.last[0][1], LEFT) == [(5, 9), (11, 13)]
    bench.left(ACK | PSH, 9, 1, b"ij")
    assert blocks_of(bench.last[0][1], LEFT) == [(5, 13)]
    bench.left(ACK | PSH, 1, 1, b"abcd")
    assert bench.seen == [(FORWARD, ACK | PSH, 1, 1, b"aabbccddeeffgghhiijjkkll")]


def test_a_hole_is_told_only_when_all_before_it_has_arrived() -> None:
    bench = Bench()
    bench.left(ACK | PSH, 1, 1, b"ab")
    bench.left(ACK | PSH, 5, 1, b"ef")
    bench.left(ACK | PSH, 7, 1, b"gh")
    assert bench.seen == []
    bench.right(ACK, 1, 3)
    assert bench.seen == [(BACKWARD, ACK, 1, 3, b"")] * 3
    assert blocks_of(bench.last[-1][1], LEFT) == [(5, 9)]


def test_sack_blocks_are_put_in_the_senders_numbers_or_left_out() -> None:
    bench = Bench(double)
    for seq in (1, 5, 9):
        bench.left(ACK | PSH, seq, 1, b"abcd")
    bench.right(ACK, 1, 9, options=sack(LEFT, (17, 25)))
    assert bench.seen == [(BACKWARD, ACK, 1, 5, b"")]
    assert blocks_of(bench.last[0][1], LEFT) == [(9, 13)]
    bench.right(ACK, 1, 9, options=sack(LEFT, (17, 18), (19, 23)))
    assert blocks_of(bench.last[0][1], LEFT) == [(10, 12)]
    bench.right(ACK, 1, 9, options=sack(LEFT, (1, 5), (4000, 5000)))
    assert blocks_of(bench.last[0][1], LEFT) == []


def test_packets_are_cut_to_the_receivers_mss() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH | CWR, 1, 1, b"x" * 1460)
    assert [(one[1], one[2], len(one[4])) for one in bench.seen] == [
        (ACK | CWR, 1, 1460),
        (ACK | PSH, 1461, 1460),
    ]


def test_timestamps_leave_less_room() -> None:
    bench = Bench(double, options=STAMPED)
    stamp = bytes.fromhex("0101080a0000000500000006")
    bench.left(ACK | PSH, 1, 1, b"x" * 1448, options=stamp)
    assert [len(one[4]) for one in bench.seen] == [1448, 1448]
    assert all(stamp in packet.data for _, packet in bench.last)


def test_offload_packets_stay_large_and_carry_the_size_of_their_segments() -> None:
    bench = Bench(double, window=65535, options=SYN_OPTIONS)
    bench.right(ACK, 1, 1, window=65535)
    bench.left(ACK | PSH, 1, 1, b"x" * 30_000, gso_size=1000)
    assert [(packet.gso_size, len(payload_of(packet))) for _, packet in bench.last] == [(1000, 60_000)]
    bench.right(ACK, 1, 60_001, window=65535)
    bench.left(ACK | PSH | CWR, 30_001, 1, b"x" * 32_000, gso_size=1000)
    sizes = [(packet.gso_size, len(payload_of(packet)), packet.ecn) for _, packet in bench.last]
    assert sizes == [(1000, 64_000, True)]


def test_what_the_receivers_window_does_not_take_waits_for_it() -> None:
    bench = Bench(double, window=10)
    bench.left(ACK | PSH, 1, 1, b"abcdefgh")
    assert bench.seen == [(FORWARD, ACK | PSH, 1, 1, b"aabbccddee")]
    bench.right(ACK, 1, 11, window=0)
    assert bench.seen == [(BACKWARD, ACK, 1, 6, b"")]
    assert view(bench.last[0][1]).window == 5  # what the SYN-ACK has promised is not taken back
    bench.left(ACK | PSH, 6, 1, b"f")
    assert bench.seen == [(FORWARD, ACK, 10, 1, b"")]  # asks whether the window is still closed
    bench.right(ACK, 1, 11, window=100)
    assert bench.seen == [
        (BACKWARD, ACK, 1, 6, b""),
        (FORWARD, ACK | PSH, 11, 1, b"ffgghh"),
    ]
    assert view(bench.last[0][1]).window == 3 + 94


def test_fin_stands_behind_what_the_end_adds() -> None:
    bench = Bench(end=lambda: b"tail")
    bench.left(ACK | PSH | FIN, 1, 1, b"ab")
    assert bench.seen == [(FORWARD, ACK | PSH | FIN, 1, 1, b"abtail")]
    bench.left(ACK | PSH | FIN, 1, 1, b"ab")
    assert bench.seen == [(FORWARD, ACK | PSH | FIN, 1, 1, b"abtail")]
    bench.right(ACK, 1, 7)
    assert bench.seen == [(BACKWARD, ACK, 1, 3, b"")]
    bench.right(ACK, 1, 8)
    assert bench.seen == [(BACKWARD, ACK, 1, 4, b"")]
    bench.left(ACK | FIN, 3, 1)
    assert bench.seen == [(BACKWARD, ACK, 1, 4, b"")]


def test_a_reset_has_the_number_that_its_receiver_expects() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH, 1, 1, b"abcd")
    bench.left(RST | ACK, 5, 1)
    assert bench.seen == [(FORWARD, RST | ACK, 9, 1, b"")]
    bench.right(ACK | PSH, 1, 9, b"late")
    bench.right(RST | ACK, 5, 9)
    assert bench.seen == [(BACKWARD, RST | ACK, 5, 5, b"")]


def test_keepalive_probes_reach_the_other_end() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH, 1, 1, b"abcd")
    bench.right(ACK, 1, 9)
    bench.left(ACK, 4, 1)
    assert bench.seen == [(FORWARD, ACK, 8, 1, b"")]
    bench.left(ACK, 4, 1, b"\0")
    assert bench.seen == [(FORWARD, ACK, 8, 1, b"")]


def test_payload_of_a_syn_is_left_out() -> None:
    box = StreamSession(lambda way, chunk: chunk, lambda way: b"")
    packet = build_tcp(V4, LEFT, 0, SYN, 1000, SYN_OPTIONS, b"early")
    (way, out), *more = box.receive(FORWARD, packet, view(packet))
    assert (way, payload_of(out), more) == (FORWARD, b"", [])
    assert verify(out)
    assert box.counters["syn_payload_left_out"] == 1


def test_an_acknowledgement_of_what_was_not_sent_does_nothing() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH, 1, 1, b"ab")
    assert bench.right(ACK, 1, 6) == []
    assert bench.box.counters["ack_of_unsent"] == 1
    bench.right(ACK, 1, 5)
    assert bench.seen == [(BACKWARD, ACK, 1, 3, b"")]


def test_an_old_acknowledgement_is_not_passed_on_as_a_repeated_one() -> None:
    bench = Bench()
    bench.left(ACK | PSH, 1, 1, b"abcd")
    bench.right(ACK, 1, 5)
    assert bench.right(ACK, 1, 3) == []


def test_the_urgent_pointer_points_to_the_same_byte() -> None:
    bench = Bench(double)
    (packet,) = bench.left(ACK | PSH | URG, 1, 1, b"abcd", urgent=3)
    assert view(packet).flags & URG
    assert struct.unpack_from("!H", packet.data, 38)[0] == 6


def test_a_number_that_an_icmp_error_quotes() -> None:
    bench = Bench(double)
    bench.left(ACK | PSH, 1, 1, b"abcd")
    assert bench.box.translate_quoted(FORWARD, (LEFT + 5) % 2**32) == (LEFT + 3) % 2**32
    assert bench.box.translate_quoted(FORWARD, (LEFT + 9) % 2**32) is None
    bench.box.learn_mtu(FORWARD, 700)
    bench.left(ACK | PSH, 5, 1, b"x" * 1000)
    assert max(len(one[4]) for one in bench.seen) == 660


@pytest.mark.parametrize("flags", [ACK, ACK | PSH | FIN])
def test_how_a_session_of_unknown_numbers_is_ended(flags: int) -> None:
    packet = build_tcp(V4, 100, 900, flags, 1000)
    answers = reset_answers(FORWARD, view(packet))
    assert answers == [(FORWARD, (100 - (1 << 30)) % 2**32, 900, ACK), (BACKWARD, 900, 0, RST)]


def test_a_reset_of_an_unknown_session_passes() -> None:
    packet = build_tcp(V4, 100, 0, RST, 0)
    assert reset_answers(FORWARD, view(packet)) == [(FORWARD, 100, 0, RST)]
    syn = build_tcp(V4, 100, 0, SYN, 0)
    assert reset_answers(FORWARD, view(syn)) == []
