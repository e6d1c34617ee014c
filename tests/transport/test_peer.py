"""At which of a peer's addresses it is called, after one of the two has moved."""

from __future__ import annotations

import ipaddress

from dysco.transport.peer import Peer
from dysco.transport.settings import PeerSettings, Timing

NAMED = ("192.0.2.1", "2001:db8::1")


def peer(*addresses: str) -> Peer:
    return Peer(PeerSettings("b", addresses or NAMED), Timing(), leads=True)


def next_address(one: Peer) -> str:
    return one.settings.addresses[one.attempts % len(one.settings.addresses)]


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


def test_where_a_peer_has_said_that_it_is_comes_behind_what_a_new_configuration_says() -> None:
    one = peer()
    one.tell(["198.51.100.1"])
    assert one.told(PeerSettings("b", NAMED, mtu=1400)) == PeerSettings(
        "b", ("198.51.100.1", *NAMED), mtu=1400
    )
    new = ("203.0.113.1", NAMED[1])
    assert one.told(PeerSettings("b", new)).addresses == (*new, "198.51.100.1")
    assert one.told(PeerSettings("b", ("198.51.100.1",))).addresses == ("198.51.100.1",)
