"""Who may make a chain here: nobody who did not sign it, and nobody further than the configuration allows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dysco.protocol.admission import LONGEST_CHAIN, is_target
from dysco.protocol.events import SetupRefused
from dysco.protocol.flow import HOST, UNDERLAY
from dysco.protocol.settings import Limits, Peer
from dysco.wire.chain_header import Egress
from dysco.wire.tuples import FiveTuple
from protocol.rig import Rig, address, hops, read, session, syn

OURS = session(1, 2)


def refusals(rig: Rig) -> list[str]:
    return [event.reason for event in rig.events(SetupRefused) if isinstance(event, SetupRefused)]


def test_each_flipped_bit_of_a_header_is_noticed() -> None:
    rig = Rig()
    good = rig.chained_syn(hops(2, 3, 4))
    at = read(good)
    payload = bytes(good.data[at.payload_offset :])
    for bit in range(8 * len(payload)):
        wrong = bytearray(payload)
        wrong[bit // 8] ^= 1 << bit % 8
        packet = syn(at.five_tuple, payload=bytes(wrong))
        # It is ordinary TCP: this host's stack sees it as it is, and nothing goes out.
        assert rig.one(UNDERLAY, packet) == (HOST, packet)
    assert len(rig.agent) == 0
    assert rig.messages == []
    assert not rig.table.flows


def test_random_payloads_make_nothing() -> None:
    rig, rng = Rig(), random.Random(5)
    to_us = FiveTuple.of(address(1), 61001, address(2), 61002)
    for _ in range(2000):
        payload = b"DYSC\x01" * (rng.random() < 0.5) + rng.randbytes(rng.randrange(1, 300))
        packet = syn(to_us, payload=payload)
        assert rig.one(UNDERLAY, packet) == (HOST, packet)
    assert len(rig.agent) == 0
    assert not rig.table.flows


def test_a_bare_syn_between_reserved_ports_of_peers_waits_for_the_message_that_tells_of_it() -> None:
    rig = Rig()
    rehearsal = syn(FiveTuple.of(address(1), 61001, address(2), 61002))
    assert rig.feed(UNDERLAY, rehearsal) == []
    ordinary = syn(FiveTuple.of(address(1), 40000, address(2), 61002))
    assert rig.one(UNDERLAY, ordinary) == (HOST, ordinary)


@pytest.mark.parametrize(
    ("of", "allowed"),
    [
        ("10.0.0.1:5 > 10.0.0.2:80", True),
        ("10.0.0.1:5 > 8.8.8.8:80", False),
        ("10.0.0.1:5 > 127.0.0.1:80", False),
    ],
)
def test_a_chain_ends_here_or_where_the_peer_may_go(of: str, allowed: bool) -> None:
    rig = Rig()
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=FiveTuple.parse(of)))
    assert refusals(rig) == ([] if allowed else ["a may not send this session on from here"])


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "255.255.255.255"],
)
def test_some_addresses_are_never_targets(target: str) -> None:
    rig = Rig(peers=lambda peer: replace(peer, may_use=lambda _: True))
    of = FiveTuple.parse(f"10.0.0.1:5 > {target}:80")
    for egress in Egress:
        rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=of, egress=egress, chain_id=bytes([egress]) * 16))
    assert len(refusals(rig)) == 3
    hop = hops(2) + tuple(one._replace(address=of.dst) for one in hops(3))
    rig.feed(UNDERLAY, rig.chained_syn(hop))
    assert refusals(rig) == ["a next hop has an address that is never a target"]


def test_targets() -> None:
    assert is_target(address(7))
    assert is_target(address(7, 6))
    assert not is_target(bytes(15) + b"\x01")
    assert not is_target(bytes(10) + b"\xff\xff" + address(7))
    assert not is_target(b"\xfe\x80" + bytes(14))


def test_the_control_port_is_never_a_target() -> None:
    rig = Rig(peers=lambda peer: replace(peer, may_use=lambda _: True))
    of = FiveTuple.parse("10.0.0.1:5 > 10.0.0.9:2016")
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=of, egress=Egress.NATIVE))
    assert refusals(rig) == ["the control port is never a target"]


def test_a_peer_goes_on_only_where_it_may() -> None:
    def only_d(peer: Peer) -> Peer:
        return replace(peer, next_hops=frozenset({"d"}))

    rig = Rig(peers=only_d)
    rig.feed(UNDERLAY, rig.chained_syn(hops(2, 3, 4)))
    assert refusals(rig) == ["a may not go on to c"]
    rig.feed(UNDERLAY, rig.chained_syn(hops(2, 2, 4), chain_id=b"b" * 16))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2, 4, 77), chain_id=b"c" * 16, ports=(61001, 61008)))
    assert refusals(rig) == []


def test_a_peer_that_is_not_accepted() -> None:
    rig = Rig(peers=lambda peer: replace(peer, accept=False))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=OURS))
    assert refusals(rig) == ["a may not send chains here"]


def test_what_a_header_may_not_say() -> None:
    rig = Rig()
    rig.feed(UNDERLAY, rig.chained_syn(hops(3, 4)))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=OURS, ports=(61001, 60000), chain_id=b"b" * 16))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=OURS, hop_index=LONGEST_CHAIN))
    assert refusals(rig) == [
        "this host is not the hop that the header names",
        "the subsession's port is not in the reserved range",
        "the chain is too long",
    ]


def test_the_same_chain_by_another_subsession_is_refused() -> None:
    rig = Rig()
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=OURS))
    rig.feed(UNDERLAY, rig.chained_syn(hops(2), of=OURS, ports=(61001, 61004)))
    assert refusals(rig) == ["the chain is here already"]


def test_a_peer_that_floods_is_held_back() -> None:
    rig = Rig(limits=Limits(setups_per_second=3))
    for number in range(5):
        rig.feed(
            UNDERLAY,
            rig.chained_syn(
                hops(2), of=session(1, 2, port=1 + number), ports=(61001, 61002 + 2 * number),
                chain_id=bytes([number]) * 16,
            ),
        )  # fmt: skip
    assert refusals(rig) == ["too many sessions a second"] * 2
    rig.now += 1
    other = rig.chained_syn(hops(2), of=session(1, 2, port=99), ports=(61001, 61020), chain_id=b"n" * 16)
    assert len(rig.feed(UNDERLAY, other)) == 1


def test_refusals_that_are_remembered_are_bounded() -> None:
    rig = Rig()
    for number in range(1100):
        rig.feed(UNDERLAY, rig.chained_syn(hops(2, box=9), chain_id=number.to_bytes(16, "big")))
    assert len(rig.agent._setup._admission._refused) == 1024
