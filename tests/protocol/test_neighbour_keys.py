"""Which keys of a neighbour count, and for how long."""

from __future__ import annotations

from dysco.protocol.neighbours import MOST_KEYS, OLD_KEY_S, Neighbour
from dysco.protocol.settings import Peer
from dysco.wire import chain_header
from dysco.wire.chain_header import ChainHeader, Hop
from dysco.wire.messages import Hello
from dysco.wire.tuples import FiveTuple

A, B, C = (bytes([letter]) * 32 for letter in b"ABC")
SESSION = FiveTuple.parse("10.0.0.1:1 > 10.0.0.2:2")


def signed(key: bytes) -> bytes:
    return chain_header.encode(
        ChainHeader(bytes(16), 0, SESSION, SESSION, (Hop(b"\x0a\x00\x00\x02", 0),), 1), key
    )


def neighbour() -> Neighbour:
    return Neighbour(Peer("b", (b"\x0a\x00\x00\x02",)))


def test_a_key_counts_before_the_association_is_in_use() -> None:
    one = neighbour()
    assert one.window_of(signed(A), 0.0) is None
    one.accept(A, 0.0)
    window = one.window_of(signed(A), 1.0)
    assert window is not None
    one.associate(Hello(), C, A, 2.0)
    one.accept(A, 3.0)
    assert one.window_of(signed(A), 1e9) is window
    assert one.window_of(signed(C), 2.0) is None


def test_the_key_before_counts_for_two_minutes() -> None:
    one = neighbour()
    one.associate(Hello(), A, A, 0.0)
    one.next_counter()
    one.associate(Hello(), B, B, 1000.0)
    assert one.window_of(signed(A), 1000.0 + OLD_KEY_S - 1) is not None
    assert one.window_of(signed(A), 1000.0 + OLD_KEY_S) is None
    assert one.window_of(signed(B), 1e9) is not None


def test_a_key_that_comes_back_keeps_its_replay_window_and_the_counter_goes_on() -> None:
    one = neighbour()
    one.associate(Hello(), A, A, 0.0)
    window = one.window_of(signed(A), 0.0)
    assert one.next_counter() == 1
    one.associate(Hello(), B, B, 1.0)
    one.associate(Hello(), A, A, 2.0)
    assert one.window_of(signed(A), 1e9) is window
    assert one.next_counter() == 2


def test_keys_are_bounded() -> None:
    one = neighbour()
    one.associate(Hello(), A, A, 0.0)
    for number in range(3 * MOST_KEYS):
        one.accept(bytes([number]) * 32, float(number))
    assert one.window_of(signed(A), 1.0) is not None
    assert (
        sum(one.window_of(signed(bytes([n]) * 32), 1.0) is not None for n in range(3 * MOST_KEYS)) < MOST_KEYS
    )
