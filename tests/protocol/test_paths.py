"""One anchor with two paths: every rule of which packet goes where, with numbers that wrap and that do not.

own numbers: 900 .. 1000 cutoff .. 1100        the other side's: 4900 .. 5000 old_rcvd .. 5100
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dysco.protocol.chain import Facing
from dysco.protocol.changing import Anchor
from dysco.protocol.paths import TwoPaths
from dysco.protocol.switching import at_cutoff, is_at_cutoff
from dysco.wire.messages import Change
from dysco.wire.numbers import FAR
from dysco.wire.options import walk
from dysco.wire.packet import ACK, FIN, PSH, RST, Located, Packet, build_tcp, locate, verify
from dysco.wire.tuples import FiveTuple

TUPLE = FiveTuple.of(b"\x0a\0\0\1", 40000, b"\x0a\0\0\2", 80)
SACK = 5
MASK = 0xFFFFFFFF
Numbers = Callable[[int], int]
Shown = tuple[int, int, int, int]


@pytest.fixture(params=[0, (1 << 32) - 1000, (1 << 32) - 5000, (1 << 31) - 950])
def at(request: pytest.FixtureRequest) -> Numbers:
    """Where the drawing's numbers lie."""
    return lambda number: (number + request.param) & MASK


def two(at: Numbers, **changed: int) -> TwoPaths:
    given = {"cutoff": 1000, "old_rcvd": 5000, "acked": 900, "answered": 4900, **changed}
    return TwoPaths(*(at(given[name]) for name in ("cutoff", "old_rcvd", "acked", "answered")))


def packet(
    at: Numbers, seq: int, ack: int, size: int = 0, flags: int = 0, *blocks: tuple[int, int]
) -> Packet:
    options = b""
    if blocks:
        edges = b"".join(at(edge).to_bytes(4, "big") for block in blocks for edge in block)
        options = b"\1\1" + bytes((SACK, 2 + len(edges))) + edges
    payload = bytes(number & 0xFF for number in range(seq, seq + size))
    return build_tcp(TUPLE, at(seq), at(ack), ACK | flags, 500, options, payload)


def located(one: Packet) -> Located:
    found = locate(one)
    assert found is not None
    return found


def shown(at: Numbers, packets: list[Packet]) -> list[Shown]:
    """Number, acknowledgement, size of payload and flags but ACK, all in the drawing's numbers; checksums are right."""
    back = at(0)
    found = []
    for one in packets:
        assert verify(one)
        where = located(one)
        found.append(
            ((where.seq - back) & MASK, (where.ack - back) & MASK, where.payload_len, where.flags & ~ACK)
        )
    return found


def blocks(at: Numbers, one: Packet) -> list[tuple[int, int]]:
    found = []
    for kind, position, length in walk(one, located(one)):
        if kind == SACK:
            edges = [
                int.from_bytes(one.data[i : i + 4], "big") for i in range(position + 2, position + length, 4)
            ]
            found += [
                (left - at(0) & MASK, right - at(0) & MASK)
                for left, right in zip(edges[::2], edges[1::2], strict=True)
            ]
    return found


def send(anchor: TwoPaths, at: Numbers, one: Packet) -> tuple[list[Shown], list[Shown]]:
    old, new = anchor.send(one, located(one))
    return shown(at, old), shown(at, new)


@pytest.mark.parametrize(
    ("given", "old", "new"),
    [
        # Data below the cutoff: the old path alone, unless there is an ack that only the new path may see.
        ((900, 4900, 50), [(900, 4900, 50, 0)], []),
        ((900, 5000, 50), [(900, 5000, 50, 0)], []),
        ((950, 5000, 50), [(950, 5000, 50, 0)], []),
        ((900, 5001, 50), [(900, 5000, 50, 0)], [(1000, 5001, 0, 0)]),
        # From the cutoff on: the new path, and the old one is told what it does not know.
        ((1000, 5000, 50), [(1000, 5000, 0, 0)], [(1000, 5000, 50, 0)]),
        ((1000, 4900, 50), [], [(1000, 4900, 50, 0)]),
        ((1001, 5100, 50), [(1000, 5000, 0, 0)], [(1001, 5100, 50, 0)]),
        # A packet that straddles is split, also by one byte at either end.
        ((950, 5000, 100), [(950, 5000, 50, 0)], [(1000, 5000, 50, 0)]),
        ((999, 5000, 2), [(999, 5000, 1, 0)], [(1000, 5000, 1, 0)]),
        ((950, 5100, 100), [(950, 5000, 50, 0)], [(1000, 5100, 50, 0)]),
        ((950, 5000, 100, PSH), [(950, 5000, 50, 0)], [(1000, 5000, 50, PSH)]),
        # FIN takes the number after its data.
        ((1000, 5000, 0, FIN), [(1000, 5000, 0, 0)], [(1000, 5000, 0, FIN)]),
        ((990, 5000, 10, FIN), [(990, 5000, 10, 0)], [(1000, 5000, 0, FIN)]),
        ((990, 5000, 9, FIN), [(990, 5000, 9, FIN)], []),
        # Acks alone: below what the old path brought to it alone, from there on to both.
        ((1000, 4999, 0), [(1000, 4999, 0, 0)], []),
        ((1100, 4999, 0), [(1000, 4999, 0, 0)], []),
        ((1000, 5000, 0), [(1000, 5000, 0, 0)], [(1000, 5000, 0, 0)]),
        ((1000, 5001, 0), [(1000, 5000, 0, 0)], [(1000, 5001, 0, 0)]),
        # RST goes to both, each in its numbers.
        ((1000, 5100, 0, RST), [(1000, 5000, 0, RST)], [(1000, 5100, 0, RST)]),
        ((1050, 4900, 0, RST), [(1000, 4900, 0, RST)], [(1050, 4900, 0, RST)]),
        # A keepalive probe, one below the next number, is data at that number.
        ((999, 5000, 0), [(999, 5000, 0, 0)], [(1000, 5000, 0, 0)]),
    ],
)
def test_where_a_packet_goes(at: Numbers, given: tuple[int, ...], old: list[Shown], new: list[Shown]) -> None:
    seq, ack, size, flags = (*given, 0)[:4]
    assert send(two(at), at, packet(at, seq, ack, size, flags)) == (old, new)


def test_data_tell_the_old_path_once(at: Numbers) -> None:
    anchor = two(at)
    assert send(anchor, at, packet(at, 1000, 5000, 50)) == ([(1000, 5000, 0, 0)], [(1000, 5000, 50, 0)])
    assert send(anchor, at, packet(at, 1050, 5000, 50)) == ([], [(1050, 5000, 50, 0)])
    assert send(anchor, at, packet(at, 1100, 5000)) == ([(1000, 5000, 0, 0)], [(1100, 5000, 0, 0)])


def test_payload_is_split_and_not_changed(at: Numbers) -> None:
    whole = packet(at, 940, 5000, 200, PSH)
    payload = bytes(whole.data[located(whole).payload_offset :])
    [first], [second] = two(at).send(whole, located(whole))
    parts = [bytes(one.data[located(one).payload_offset :]) for one in (first, second)]
    assert b"".join(parts) == payload
    assert len(parts[0]) == 60


def test_an_offload_packet_is_split(at: Numbers) -> None:
    whole = build_tcp(TUPLE, at(1000 - 30000), at(5000), ACK, 500, b"", bytes(60000))
    whole.gso_size = 1400
    [first], [second] = two(at).send(whole, located(whole))
    assert (located(first).payload_len, first.gso_size) == (30000, 1400)
    assert (located(second).payload_len, second.gso_size) == (30000, 1400)


def test_a_probe_beyond_the_cutoff_goes_to_the_new_path(at: Numbers) -> None:
    anchor = two(at)
    send(anchor, at, packet(at, 1000, 5000, 100))
    assert send(anchor, at, packet(at, 1099, 5000)) == ([(1000, 5000, 0, 0)], [(1099, 5000, 0, 0)])
    assert send(anchor, at, packet(at, 1000, 5000)) == ([(1000, 5000, 0, 0)], [(1000, 5000, 0, 0)])


def test_bare_acks_on_the_old_path_have_a_window(at: Numbers) -> None:
    one = packet(at, 1000, 5000, 50)
    old, _ = two(at).send(one, located(one))
    assert located(old[0]).window == 1460


def test_old_data_raise_what_the_old_path_may_be_told(at: Numbers) -> None:
    anchor = two(at)
    one = packet(at, 5000, 950, 20)
    assert anchor.receive_old(one, located(one))
    assert send(anchor, at, packet(at, 1000, 5020)) == ([(1000, 5020, 0, 0)], [(1000, 5020, 0, 0)])
    late = packet(at, 4950, 950, 10)
    assert anchor.receive_old(late, located(late))
    assert send(anchor, at, packet(at, 1000, 5020)) == ([(1000, 5020, 0, 0)], [(1000, 5020, 0, 0)])


def test_new_data_do_not(at: Numbers) -> None:
    anchor = two(at)
    one = packet(at, 5000, 1000, 20)
    assert anchor.receive_new(one, located(one))
    assert send(anchor, at, packet(at, 1000, 5020)) == ([(1000, 5000, 0, 0)], [(1000, 5020, 0, 0)])
    assert anchor.rcvd == at(5020)


@pytest.mark.parametrize("flags", [0, FIN])
def test_until_the_other_anchor_has_switched_its_acks_are_limited(at: Numbers, flags: int) -> None:
    anchor = two(at)
    anchor.ack_limit = at(4990)
    assert send(anchor, at, packet(at, 1000, 5000)) == ([(1000, 5000, 0, 0)], [])
    assert send(anchor, at, packet(at, 1000, 5000, 10)) == ([], [(1000, 4990, 10, 0)])
    data = packet(at, 5000, 1000, 0 if flags else 5, flags)
    anchor.receive_new(data, located(data))
    assert send(anchor, at, packet(at, 1010, 5000))[1] == [(1010, 5000, 0, 0)]


def test_an_ack_of_the_new_path_is_believed_from_the_cutoff_on(at: Numbers) -> None:
    anchor = two(at, acked=950)
    for ack, taken in ((999, False), (1000, True), (1001, True)):
        one = packet(at, 5000, ack)
        assert anchor.receive_new(one, located(one)) is taken
    anchor = two(at, acked=950)
    one = packet(at, 5000, 970, 10)
    assert anchor.receive_new(one, located(one))
    assert shown(at, [one]) == [(5000, 950, 10, 0)]
    assert anchor.acked == at(950)
    one = packet(at, 5010, 980, 0, FIN)
    assert anchor.receive_new(one, located(one))
    assert shown(at, [one]) == [(5010, 950, 0, FIN)]


def test_what_the_old_path_says_again_is_not_said_twice(at: Numbers) -> None:
    anchor = two(at, acked=950)
    for ack, taken in ((949, False), (950, True), (1000, True), (1000, False), (970, False)):
        one = packet(at, 5000, ack)
        assert anchor.receive_old(one, located(one)) is taken, ack
    data = packet(at, 5000, 970, 1)
    assert anchor.receive_old(data, located(data))
    assert anchor.acked == at(1000)


def test_what_both_paths_say_is_said_once(at: Numbers) -> None:
    anchor = two(at)

    def old(one: Packet) -> bool:
        return anchor.receive_old(one, located(one))

    def new(one: Packet) -> bool:
        return anchor.receive_new(one, located(one))

    assert old(packet(at, 5000, 1000))
    assert not new(packet(at, 5000, 1000))
    assert new(packet(at, 5000, 1000))  # it asks for what follows the cutoff
    assert not old(packet(at, 5000, 1000))
    anchor = two(at)
    assert old(packet(at, 5000, 1000))
    assert new(packet(at, 5000, 1000, 0, 0, (1050, 1060)))
    anchor = two(at)
    assert old(packet(at, 5000, 1000))
    assert new(packet(at, 5000, 1000, 10))
    assert new(packet(at, 5000, 1000, 0, FIN))
    assert new(build_tcp(TUPLE, at(5000), at(1000), ACK, 501))  # the window has changed
    anchor = two(at)
    assert old(build_tcp(TUPLE, at(5000), at(1000), ACK, 1460))
    assert not new(
        build_tcp(TUPLE, at(5000), at(1000), ACK, 0)
    )  # the old path's copy has one packet at least
    anchor = two(at)
    assert new(packet(at, 5000, 1000))
    assert not old(packet(at, 5000, 1000))


@pytest.mark.parametrize("flags", [PSH, FIN])
@pytest.mark.parametrize("ack", [0, 4990, 5000, 5100])
def test_what_acknowledges_nothing_goes_nowhere(at: Numbers, flags: int, ack: int) -> None:
    """No end takes it (RFC 9293 section 3.10.7.4), and what stands in its place must not be taken for an ack."""
    for seq in (950, 1000):
        anchor = two(at)
        one = build_tcp(TUPLE, at(seq), at(ack), flags, 500, b"", b"data")
        assert send(anchor, at, one) == ([], [])
        for receive in (anchor.receive_old, anchor.receive_new):
            assert not receive(one, located(one))
        assert (anchor.answered, anchor.told_old, anchor.rcvd) == (at(4900), at(4900), at(5000))
        assert anchor.remind() is None


def test_what_an_agent_asks_an_end_passes_on_both_paths_and_teaches_nothing(at: Numbers) -> None:
    anchor = two(at)
    asked = (1000 - FAR, 4950)
    there = [(asked[0] & MASK, asked[1], 0, 0)]
    assert send(anchor, at, packet(at, *asked)) == (there, there)
    assert (anchor.top, anchor.answered, anchor.last) == (at(1000), at(4900), None)
    for receive in (anchor.receive_old, anchor.receive_new):
        one = packet(at, 5000 - FAR, 990)
        before = bytes(one.data)
        assert receive(one, located(one))
        assert bytes(one.data) == before
    assert (anchor.rcvd, anchor.acked) == (at(5000), at(900))


def test_resets_always_pass(at: Numbers) -> None:
    one = packet(at, 5000, 10, 0, RST)
    assert two(at).receive_old(one, located(one))
    assert two(at).receive_new(one, located(one))


def test_sack_blocks_go_where_their_numbers_belong(at: Numbers) -> None:
    told = packet(at, 1000, 4950, 10, 0, (4960, 4980), (4990, 5100), (5200, 5300))
    [old], [new] = two(at).send(told, located(told))
    assert blocks(at, old) == [(4960, 4980), (4990, 5000)]
    assert blocks(at, new) == [(5000, 5100), (5200, 5300)]
    heard = packet(at, 5000, 1000, 10, 0, (900, 950), (980, 1050), (1060, 1070))
    two(at).receive_new(heard, located(heard))
    assert blocks(at, heard) == [(1000, 1050), (1060, 1070)]
    edge = packet(at, 1000, 4950, 10, 0, (4990, 5000), (5000, 5001))
    [old], [new] = two(at).send(edge, located(edge))
    assert blocks(at, old) == [(4990, 5000)]
    assert blocks(at, new) == [(5000, 5001)]


@pytest.mark.parametrize(
    ("acked", "answered", "told", "done"),
    [
        (1000, 5000, 5000, True),
        (1001, 5001, 5000, True),
        (999, 5000, 5000, False),
        (1000, 4999, 4999, False),
        (1000, 5000, 4999, False),
    ],
)
def test_when_a_half_is_empty(at: Numbers, acked: int, answered: int, told: int, done: bool) -> None:
    anchor = two(at, acked=acked, answered=answered)
    anchor.told_old = at(told)
    assert not anchor.is_done
    anchor.peer_cutoff = at(5000)
    assert anchor.is_done is done
    anchor.forced = True
    assert anchor.is_done


def test_an_endpoint_that_answers_empties_its_half(at: Numbers) -> None:
    anchor = two(at)
    anchor.peer_cutoff = at(5000)
    for one in (packet(at, 5000, 1000),):
        anchor.receive_old(one, located(one))
    assert not anchor.is_done
    send(anchor, at, packet(at, 1000, 4999))
    assert not anchor.is_done
    send(anchor, at, packet(at, 1000, 5000))
    assert anchor.is_done


def test_a_reminder_repeats_the_last_ack(at: Numbers) -> None:
    anchor = two(at)
    assert anchor.remind() is None
    send(anchor, at, packet(at, 1000, 5010, 40))
    reminder = anchor.remind()
    assert reminder is not None
    assert shown(at, [reminder]) == [(1000, 5000, 0, 0)]


def test_what_was_received_and_not_counted_is_known_by_its_acknowledgement(at: Numbers) -> None:
    anchor = two(at, old_rcvd=4950)
    anchor.peer_cutoff = at(5000)
    anchor.acked = anchor.cutoff
    old, _ = send(anchor, at, packet(at, 1000, 5000))
    assert old == [(1000, 5000, 0, 0)]
    assert anchor.is_done


def test_a_reminder_tells_what_was_received_and_not_counted(at: Numbers) -> None:
    anchor = two(at, old_rcvd=4950)
    anchor.acked = anchor.cutoff
    send(anchor, at, packet(at, 1000, 5000))
    anchor.peer_cutoff = at(5000)
    assert not anchor.is_done
    reminder = anchor.remind()
    assert reminder is not None
    assert shown(at, [reminder]) == [(1000, 5000, 0, 0)]
    assert anchor.is_done
    send(anchor, at, packet(at, 1000, 5100))
    reminder = anchor.remind()
    assert reminder is not None
    assert shown(at, [reminder]) == [(1000, 5000, 0, 0)]


def test_an_ack_at_the_cutoff_is_known() -> None:
    for one, known in (
        (at_cutoff(TUPLE, 1000, 5000), True),
        (build_tcp(TUPLE, 1000, 5000, ACK, 0xFFFF), False),
        (build_tcp(TUPLE, 1000, 5000, ACK | PSH, 500), False),
        (build_tcp(TUPLE, 1000, 5000, ACK | PSH, 0xFFFF, b"\1\1\1\1"), False),
        (build_tcp(TUPLE, 1000, 5000, ACK | PSH, 0xFFFF, payload=b"x"), False),
    ):
        assert is_at_cutoff(located(one)) is known


def test_nothing_of_the_path_handshake_comes_behind_the_end() -> None:
    anchor = Anchor(Change(1, 1, 2), Facing(0, 0, TUPLE, None), 0.0)
    assert not anchor.may_complete
    anchor.peer_done = True
    assert not anchor.may_complete
    anchor.tries = 1  # it may be lost
    assert anchor.may_complete
    anchor.tries, anchor.shown = 0, True
    assert anchor.may_complete
    anchor.peer_done = False
    assert not anchor.may_complete


def test_bytes_are_counted_by_path(at: Numbers) -> None:
    anchor = two(at)
    send(anchor, at, packet(at, 950, 5000, 80))
    one = packet(at, 4900, 1000, 7)
    anchor.receive_old(one, located(one))
    one = packet(at, 5000, 1000, 9)
    anchor.receive_new(one, located(one))
    assert (anchor.bytes_old, anchor.bytes_new) == (57, 39)
