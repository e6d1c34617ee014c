"""What two handshakes on both sides of a proxy may differ in, and what is translated or refused then."""

from __future__ import annotations

import pytest

from dysco.protocol.chain import (
    HALF,
    SEEN,
    WITH_ECN,
    WITH_SACK,
    WITH_TIMESTAMPS,
    Chain,
    Facing,
    Seam,
    Terms,
    facing_agent,
    facing_host,
)
from dysco.protocol.flow import Flow
from dysco.protocol.joints import differences, is_cut_short, ours
from dysco.protocol.paths import TwoPaths
from dysco.protocol.right import join
from dysco.protocol.stamps import Stamps, raw_stamp
from dysco.protocol.switching import rehearsed_options
from dysco.wire.messages import Handshake, Hops, Syn
from dysco.wire.options import syn_options
from dysco.wire.packet import ACK, FIN, RST, SYN, Located, Packet, build_tcp, locate, verify
from dysco.wire.rewrite import apply
from dysco.wire.tuples import FiveTuple
from protocol.rig import address, session

ALL = SEEN | WITH_SACK | WITH_TIMESTAMPS
NO_SCALE = 255
STAMPS = "only one side of the proxy has timestamps"
ECN = "only one side of the proxy has ECN"
LARGER = "segments to the {} may be larger than its end takes"
SUBSESSION = FiveTuple.of(address(1), 61000, address(2), 61001)
Side = tuple[int, int, int]
"""MSS, window scale and flags of one half."""


def handshake(forward: Side, backward: Side) -> bytes:
    return b"".join(HALF.pack(1000, *side) for side in (forward, backward))


def chains(left: bytes, right: bytes, family: int = 4) -> tuple[Chain, Chain]:
    """The left and the right chain at a proxy's host, with these handshakes."""
    first = Chain(bytes(16) + b"\1", facing_agent(SUBSESSION, "a", 1, opened=False), session(), "", None, 0.0)
    first.right = facing_host(session())
    other = session(2, 4, family=family)
    second = Chain(bytes(16) + b"\0", facing_host(other), other, "", None, 0.0)
    onward = SUBSESSION if family == 4 else FiveTuple.of(address(2, 6), 61000, address(4, 6), 61001)
    second.right = facing_agent(onward, "d", 1, opened=True)
    first.left.handshake, second.right.handshake = left, right
    return first, second


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (((1460, 7, ALL), (1460, 7, ALL)), ((1460, 7, ALL), (1460, 7, ALL)), None),
        (((1460, 7, ALL), (1460, 3, ALL)), ((1460, NO_SCALE, ALL), (1460, 7, ALL)), None),
        (((1460, 7, ALL), (1460, 7, ALL & ~WITH_SACK)), ((1460, 7, ALL), (1460, 7, ALL)), None),
        (((1460, 7, SEEN), (1460, 7, SEEN)), ((1460, 7, ALL), (1460, 7, ALL)), STAMPS),
        (((1460, 7, ALL | WITH_ECN), (1460, 7, ALL | WITH_ECN)), ((1460, 7, ALL), (1460, 7, ALL)), ECN),
        (((1460, 7, ALL | WITH_ECN), (1460, 7, ALL)), ((1460, 7, ALL), (1460, 7, ALL)), None),
        (((1460, 7, ALL), (1460, 7, ALL)), ((1460, 7, ALL), (1220, 7, ALL)), LARGER.format("right")),
        (((536, 7, ALL), (1460, 7, ALL)), ((1460, 7, ALL), (1460, 7, ALL)), LARGER.format("left")),
        (((1460, 7, ALL), (1220, 7, ALL)), ((1220, 7, ALL), (1460, 7, ALL)), None),
        (((1460, 7, ALL), (1460, 7, 0)), ((1460, 7, ALL), (1460, 7, ALL)), "not ready: a handshake was not seen"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_refused_with_its_reason(
    left: tuple[Side, Side], right: tuple[Side, Side], reason: str | None
) -> None:
    assert differences(*chains(handshake(*left), handshake(*right))) == reason


def test_sides_of_different_families_are_refused() -> None:
    same = handshake((1460, 7, ALL), (1460, 7, ALL))
    assert differences(*chains(same, same, 6)) == "both sides are of different address families"


def joined(outer: bytes, inner: bytes, seam: Seam | None = None) -> Facing:
    """The new facing of a right anchor whose old one has seen `inner`, for a left anchor that has seen `outer`."""
    old = facing_agent(SUBSESSION, "b", 1, opened=False)
    old.handshake, old.seam = inner, seam
    new = facing_agent(SUBSESSION, "a", 300, opened=False)
    new.handshake = inner
    chain = Chain(bytes(16) + b"\1", old, session(), "", None, 0.0)
    chain.right = facing_host(session())
    syn = Syn(b"L" * 16, 300, 1, 300, session(), SUBSESSION, Hops(), Handshake(outer))
    join(chain, new, old, syn)
    return new


@pytest.mark.parametrize("outer_scale", [(7, 7), (0, 14), (NO_SCALE, 7), (3, 9)])
@pytest.mark.parametrize("inner_scale", [(7, 7), (14, 0), (7, NO_SCALE), (5, 2)])
@pytest.mark.parametrize("outer_sack", [True, False])
@pytest.mark.parametrize("inner_sack", [True, False])
def test_windows_and_blocks_mean_the_same_on_both_sides(
    outer_scale: tuple[int, int], inner_scale: tuple[int, int], outer_sack: bool, inner_sack: bool
) -> None:
    flags = [SEEN | WITH_SACK * has for has in (outer_sack, inner_sack)]
    outer = handshake((1460, outer_scale[0], flags[0]), (1460, outer_scale[1], flags[0]))
    inner = handshake((1460, inner_scale[0], flags[1]), (1460, inner_scale[1], flags[1]))
    facing = joined(outer, inner)
    shifts = [(0, 0) if NO_SCALE in scale else scale for scale in (outer_scale, inner_scale)]
    into, out = facing.translations()
    blocks = b"\1\1\5\x0a" + (5000).to_bytes(4, "big") + (6000).to_bytes(4, "big")
    for translation, sends, takes, strips in (
        (into, shifts[0][0], shifts[1][0], outer_sack and not inner_sack),
        (out, shifts[1][1], shifts[0][1], inner_sack and not outer_sack),
    ):
        for window in (0, 1, 500, 65535):
            packet = build_tcp(session(), 1, 2, ACK, window, blocks)
            apply(packet, Flow(0, session(), 0, SUBSESSION, translation=translation))
            at = locate(packet)
            assert at is not None
            assert verify(packet)
            real, said = window << sends, at.window << takes
            assert said <= real or at.window == 1
            assert (at.window == 0) == (window == 0)
            assert real - said < 1 << takes or at.window == 0xFFFF
            assert (b"\5\x0a" in packet.data) == (not strips)
    again = joined(outer, outer, Seam(b"R" * 16, 0, facing.seam.terms if facing.seam else Terms()))
    assert again.seam is not None
    assert facing.seam is not None
    assert again.seam.terms == facing.seam.terms, "a later change finds what the first has left"


@pytest.mark.parametrize(
    ("flags", "seq", "size", "left"),
    [
        (ACK, 900, 10, ACK),
        (ACK | FIN, 989, 10, ACK | FIN),  # the other end has closed before it switched
        (ACK | FIN, 1000, 0, None),
        (ACK | FIN, 990, 10, ACK),
        (ACK | FIN, 900, 10, ACK),  # it has died before all had passed it
        (ACK | FIN, 998, 0, None),
        (RST, 990, 0, RST),
    ],
)
def test_the_end_of_a_proxy_is_not_the_end_of_its_session(
    flags: int, seq: int, size: int, left: int | None
) -> None:
    two = TwoPaths(5000, 900, 5000, 900)
    two.peer_cutoff = 1000
    packet = build_tcp(session(), seq, 5000, flags, 3, payload=bytes(size))
    at = locate(packet)
    assert at is not None
    kept = ours(two, packet, at)
    found = None if kept is None else locate(kept)
    assert (None if found is None else found.flags) == left
    two.rcvd = 1000
    reset = build_tcp(session(), 1000, 0, RST, 0)
    at = locate(reset)
    assert at is not None
    assert ours(two, reset, at) is reset, "what has come may have come past a gap"
    two.answered = 1000
    assert ours(two, reset, at) is None


@pytest.mark.parametrize(
    ("flags", "seq", "cutoff", "is_so"),
    [
        (ACK | FIN, 900, 1000, True),
        (ACK | FIN, 890, 1000, True),  # it comes again
        (ACK | FIN, 901, 1000, False),  # what was written before it is still under way
        (ACK | FIN, 900, 901, False),
        (ACK | FIN, 900, 900, False),
        (ACK | FIN, 900, None, False),
        (ACK, 900, 1000, False),
    ],
)
def test_a_proxy_that_is_killed_ends_before_the_cutoff(
    flags: int, seq: int, cutoff: int | None, *, is_so: bool
) -> None:
    two = TwoPaths(5000, 900, 5000, 900)
    two.peer_cutoff = cutoff
    assert is_cut_short(two, located(build_tcp(session(), seq, 5000, flags, 3))) is is_so


def located(packet: Packet) -> Located:
    at = locate(packet)
    assert at is not None
    return at


def stamped(value: int, echo: int) -> Packet:
    options = b"\1\1\x08\x0a" + value.to_bytes(4, "big") + echo.to_bytes(4, "big")
    return build_tcp(session(), 1, 2, ACK, 3, options)


@pytest.mark.parametrize("base", [1000, (1 << 32) - 3])
def test_timestamps_never_go_back_while_two_clocks_are_in_use(base: int) -> None:
    mask = (1 << 32) - 1
    stamps, facing = Stamps(), facing_agent(SUBSESSION, "a", 1, opened=False)
    inside = stamped(77, base)
    at = locate(inside)
    assert at is not None
    stamps.from_inside(inside, at)
    assert stamps.is_known
    stamps.peer = 5_000_000
    stamps.settle(facing)
    given = []
    for path, value in (("old", 4), ("new", 2), ("old", 3), ("new", 9), ("old", 5), ("new", 10), ("new", 11)):
        packet = stamped((base + value) & mask if path == "old" else 5_000_000 + value, 1)
        at = locate(packet)
        assert at is not None
        if path == "old":
            stamps.from_old(packet, at)
        else:
            apply(packet, Flow(0, session(), 0, session(), translation=facing.translations()[0]))
            stamps.from_new(packet, at, facing)
        assert verify(packet)
        found = raw_stamp(packet, at)
        assert found is not None
        given.append((found - base) & mask)
    assert given == sorted(given)
    assert given[-1] - given[-2] == 1, "from here on the constant is one"
    echo = stamped(78, (base + given[-1]) & mask)
    at = locate(echo)
    assert at is not None
    stamps.to_new(echo, at)
    apply(echo, Flow(0, session(), 0, session(), translation=facing.translations()[1]))
    assert syn_options(echo).tsecr == 5_000_011


def test_what_acknowledges_nothing_echoes_nothing() -> None:
    stamps = Stamps()
    syn = build_tcp(session(), 1, 0, SYN, 3, b"\1\1\x08\x0a" + bytes(3) + b"\7" + bytes(3) + b"\x09")
    stamps.from_inside(syn, located(syn))
    assert (stamps.own, stamps.given) == (7, None)
    data = stamped(8, 5)
    stamps.from_inside(data, located(data))
    assert (stamps.own, stamps.given) == (8, 5)


def test_a_timestamp_of_another_length_is_none() -> None:
    odd = build_tcp(session(), 1, 2, ACK, 3, b"\x08\x06" + bytes(4) + b"\1\1")
    assert raw_stamp(odd, located(odd)) is None
    stamps = Stamps()
    stamps.from_inside(odd, located(odd))
    stamps.from_old(odd, located(odd))
    stamps.from_new(odd, located(odd), facing_agent(SUBSESSION, "a", 1, opened=False))
    assert not stamps.is_known
    before = bytes(odd.data)
    stamps.old = stamps.new = 3
    stamps.to_old(odd, located(odd))
    stamps.to_new(odd, located(odd))
    assert odd.data == before


def test_before_the_constant_is_chosen_the_old_clock_is_left_as_it_is() -> None:
    stamps = Stamps()
    for value in (100, 90):
        packet = stamped(value, 1)
        stamps.from_old(packet, located(packet))
        assert raw_stamp(packet, located(packet)) == value
    assert (stamps.given, stamps.old) == (100, 100)


def test_a_handshake_that_was_not_seen_leaves_all_terms_as_they_are() -> None:
    inner = handshake((1460, 7, ALL), (1460, 3, ALL))
    facing = joined(handshake((1460, 9, 0), (1460, 9, 0)), inner)
    assert facing.seam is not None
    assert facing.seam.terms == Terms()
    assert facing.handshake == inner


@pytest.mark.parametrize("mss", [0, 1460])
@pytest.mark.parametrize("scales", [(7, 3), (NO_SCALE, 3)])
@pytest.mark.parametrize("sack", [(ALL, ALL), (ALL, SEEN)])
@pytest.mark.parametrize("forward", [True, False])
def test_a_path_handshake_announces_what_both_ends_have_agreed_on(
    mss: int, scales: tuple[int, int], sack: tuple[int, int], forward: bool
) -> None:
    facing = facing_agent(SUBSESSION, "a", 1, opened=False)
    facing.handshake = handshake((mss, scales[0], sack[0]), (mss, scales[1], sack[1]))
    packet = build_tcp(session(), 1, 0, SYN, 3, rehearsed_options(facing, forward=forward))
    found = syn_options(packet, located(packet))
    assert found.mss == (mss or None)
    assert found.wscale == (None if NO_SCALE in scales else scales[0 if forward else 1])
    assert found.sack == (sack == (ALL, ALL))
    assert found.tsval is None
