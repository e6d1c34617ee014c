"""What a strict connection tracker lets pass of a session that comes to it in the middle, by a handshake of ours.

X and Y are the next numbers of the left and the right end when the handshake is made; data goes on N bytes later, for
the session has gone on over its old path meanwhile. W is 65535 << scale. The rules are those of tcp_in_window in
Linux's nf_conntrack_proto_tcp.c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dysco.wire.packet import ACK, FIN, SYN
from netns.tracker import Talk, Tracker

X, Y = 0xFFFF_F000, 5_000_000  # the left end's numbers wrap around soon
ports = iter(range(20_000, 60_000))


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    made = Tracker(f"st-{os.getpid()}")
    yield made
    made.close()


def options(scale: int | None) -> bytes:
    """MSS, SACK permitted, timestamps, and window scaling unless None."""
    scaling = b"" if scale is None else b"\x01\x03\x03" + bytes([scale])
    return b"\x02\x04\x05\xb4\x04\x02\x08\x0a\0\0\0\1\0\0\0\0" + scaling


def shake(
    tracker: Tracker, scale: int | None, *, family: int = 4, update: bool = True, window: int = 0xFFFF
) -> Talk:
    """The handshake: SYN, SYN-ACK, ACK, and the right end's window update."""
    talk = Talk(tracker, family, next(ports))
    assert talk("left", X - 1, 0, SYN, options=options(scale))
    assert talk("right", Y - 1, X, SYN | ACK, options=options(scale))
    assert talk("left", X, Y, ACK, window)
    if update:
        assert talk("right", Y, X, ACK, window)
    return talk


@pytest.mark.parametrize("family", [4, 6])
def test_nothing_passes_without_a_handshake(tracker: Tracker, family: int) -> None:
    talk = Talk(tracker, family, next(ports))
    assert not talk("left", X, Y, ACK, payload=100)
    assert not talk("right", Y, X, ACK, payload=100)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("scale", "ahead", "passes"),
    [
        (None, 0, True),
        (None, 65_536, True),
        (None, 1 << 20, False),
        (2, 1 << 18, True),
        (7, 1 << 20, True),
        (7, 8 << 20, True),
        (7, 16 << 20, False),
        (14, 512 << 20, True),
    ],
)
def test_data_passes_up_to_two_windows_ahead(
    tracker: Tracker, family: int, scale: int | None, ahead: int, passes: bool
) -> None:
    assert shake(tracker, scale, family=family)("left", X + ahead, Y, ACK, payload=1000) is passes
    assert shake(tracker, scale, family=family)("right", Y + ahead, X, ACK, payload=1000) is passes


def test_the_right_ends_update_must_come_and_must_open_the_window(tracker: Tracker) -> None:
    # The window of a SYN-ACK is not scaled (RFC 7323 section 2.2), so it opens 64 KiB only.
    far = 1 << 20
    assert not shake(tracker, 7, update=False)("left", X + far, Y, ACK, payload=1000)
    assert not shake(tracker, 7, window=500)("left", X + far, Y, ACK, payload=1000)
    assert shake(tracker, 7)("left", X + far, Y, ACK, payload=1000)


@pytest.mark.parametrize("ahead", [70_000, 130_000])
def test_an_update_that_comes_behind_the_first_packet_of_the_left_end_is_not_believed(
    tracker: Tracker, ahead: int
) -> None:
    """Between one and two windows of the SYN-ACK ahead: it passes, is noted, and the update is too old then."""
    talk = shake(tracker, 7, update=False)
    assert talk("left", X + ahead, Y, ACK)
    assert talk("right", Y, X, ACK)
    for _ in range(3):
        assert not talk("left", X + 140_000, Y, ACK, payload=1000)
    talk = shake(tracker, 7)
    assert talk("left", X + ahead, Y, ACK)
    assert talk("left", X + 140_000, Y, ACK, payload=1000)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("ahead", [70_000, 8 << 20])
def test_an_update_right_behind_the_syn_ack_opens_the_window(
    tracker: Tracker, family: int, ahead: int
) -> None:
    talk = Talk(tracker, family, next(ports))
    assert talk("left", X - 1, 0, SYN, options=options(7))
    assert talk("right", Y - 1, X, SYN | ACK, options=options(7))
    assert talk("right", Y, X, ACK)
    assert talk("left", X, Y, ACK)
    assert talk("left", X + ahead, Y, ACK)
    assert talk("left", X + ahead, Y, ACK, payload=1000)


def test_an_ack_of_what_the_tracker_has_not_seen_never_passes(tracker: Tracker) -> None:
    talk = shake(tracker, 14)
    assert not talk("right", Y, X + 1, ACK)
    assert not talk("left", X, Y + 1, ACK, payload=1000)
    blocks = b"\1\1\5\x0a" + (X + 1000 & 0xFFFFFFFF).to_bytes(4, "big") + (X + 2000).to_bytes(5, "big")[1:]
    assert not talk("right", Y, X, ACK, options=blocks)


def test_true_acks_in_both_directions_wait_for_each_other_for_ever(tracker: Tracker) -> None:
    talk, ahead, behind = shake(tracker, 7), 1 << 20, 2 << 20
    for _ in range(3):
        assert not talk("left", X + ahead, Y + behind, ACK, payload=1000)
        assert not talk("right", Y + behind, X + ahead, ACK, payload=1000)


def test_acks_no_higher_than_what_came_on_the_new_path_pass(tracker: Tracker) -> None:
    talk, ahead, behind = shake(tracker, 7), 1 << 20, 2 << 20
    assert talk("left", X + ahead, Y, ACK, payload=1000)  # the ack of the handshake
    assert talk("right", Y + behind, X + ahead, ACK, payload=1000)
    assert talk("left", X + ahead + 1000, Y + behind + 1000, ACK, payload=1000)


def test_a_refresh_at_the_cutoff_lets_everything_pass(tracker: Tracker) -> None:
    talk, ahead, behind = shake(tracker, 7), 1 << 20, 2 << 20
    assert talk("left", X + ahead, Y, ACK)
    assert talk("right", Y + behind, X + ahead, ACK)
    assert talk("left", X + ahead, Y + behind, ACK, payload=1000)
    assert talk("right", Y + behind, X + ahead + 1000, ACK, payload=1000)
    assert talk("left", X, Y, ACK, payload=1000), "a late repetition of old numbers"
    assert talk("left", X + ahead + 1000, Y + behind + 1000, ACK | FIN)


def test_steps_of_one_window_reach_any_cutoff_without_scaling(tracker: Tracker) -> None:
    talk, reached = shake(tracker, None), 0
    assert not talk("left", X + (1 << 20), Y, ACK)
    while reached < 1 << 20:
        reached += 0xFFFF
        assert talk("left", X + reached, Y, ACK)
        assert talk("right", Y, X + reached, ACK)
    assert talk("left", X + reached, Y, ACK, payload=1000)


def test_a_second_handshake_gives_an_old_entry_new_numbers(tracker: Tracker) -> None:
    """A session that comes back to a firewall which has not forgotten it."""
    talk, far = shake(tracker, 7), 1 << 28
    assert not talk("left", X + far, Y + far, ACK, payload=1000)
    assert talk("left", X + far - 1, 0, SYN, options=options(7))
    assert talk("right", Y + far - 1, X + far, SYN | ACK, options=options(7))
    assert talk("left", X + far, Y + far, ACK)
    assert talk("right", Y + far, X + far, ACK)
    assert talk("left", X + far + (1 << 20), Y + far, ACK, payload=1000)
    assert talk("right", Y + far, X + far + (1 << 20) + 1000, ACK, payload=1000)
