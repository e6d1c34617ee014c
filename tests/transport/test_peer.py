"""At which of a peer's addresses it is called, after one of the two has moved."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any

from dysco.transport.peer import Peer
from dysco.transport.settings import PeerSettings, Timing

NAMED = ("192.0.2.1", "2001:db8::1")


def peer(*addresses: str) -> Peer:
    return Peer(PeerSettings("b", addresses or NAMED), Timing(), leads=True)


def next_address(one: Peer) -> str:
    return one.address(one.attempts)


def test_who_has_moved_calls_from_the_address_that_is_new() -> None:
    one = peer()
    for attempts in range(4):
        for version, address in zip((4, 6), NAMED, strict=True):
            one.attempts = attempts
            one.turn_to({version})
            assert next_address(one) == address


def test_a_peer_without_an_address_of_that_version_is_called_as_before() -> None:
    one = peer(NAMED[1])
    one.attempts = 3
    one.turn_to({4})
    assert next_address(one) == NAMED[1]


def test_who_moves_again_and_again_calls_a_peer_where_it_is_and_not_where_it_was() -> None:
    one = peer()
    for where in ("198.51.100.1", "198.51.100.2"):
        one.tell([where])
    for _ in range(3):
        one.turn_to({4})
        assert next_address(one) == "198.51.100.2"
        one.attempts += 1  # it is called


def test_a_peer_that_goes_to_and_fro_is_called_where_it_was_last() -> None:
    one = peer()
    for where in ("198.51.100.1", NAMED[0], "198.51.100.1", NAMED[0]):
        one.attempts = 1
        one.tell([where])
        assert next_address(one) == where
        assert sorted(one.settings.addresses) == sorted({*NAMED, "198.51.100.1"})


def test_a_peer_that_moves_for_ever_fills_no_list() -> None:
    one = peer()
    for number in range(100):
        one.tell([str(ipaddress.ip_address("198.51.100.0") + number)])
    assert len(one.settings.addresses) < 20
    assert set(NAMED) < set(one.settings.addresses)
    assert next_address(one) == "198.51.100.99"


def test_every_other_call_goes_to_where_the_peer_says_that_it_is() -> None:
    one = peer()
    one.tell(["198.51.100.1"])
    one.tell(["198.51.100.2"])
    told = ["198.51.100.2"] * 3
    others = ["198.51.100.1", *NAMED]
    calls = [one.address(attempt) for attempt in range(6)]
    assert calls[::2] == told
    assert sorted(calls[1::2]) == sorted(others)


def test_who_has_moved_calls_first_where_the_peer_says_that_it_is() -> None:
    one = peer()
    one.tell(["198.51.100.2"])
    one.attempts = 3
    one.turn_to({4})
    assert next_address(one) == "198.51.100.2"
    one.turn_to({6})
    assert next_address(one) == NAMED[1]


def test_who_has_moved_calls_first_where_the_peer_was_reached_last() -> None:
    one = peer("192.0.2.1", "192.0.2.2", "192.0.2.3")
    current: Any = SimpleNamespace(remote=("192.0.2.2", 2016))
    one.current = current
    one.turn_to({4})
    assert next_address(one) == "192.0.2.2"


def test_a_hello_without_answer_keeps_nobody_from_calling() -> None:
    one = peer()
    link: Any = SimpleNamespace(
        up=True, ready_at=None, heard_at=100.0, retired_at=None, hello_at=None, confirmed=False
    )
    one.links.append(link)
    assert one.greeting(102.9)
    assert one.next_deadline(101.0, 1.6) == 103.0
    assert not one.greeting(103.0)
    assert one.next_deadline(103.0, 1.6) == one.call_at
