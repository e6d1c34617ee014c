"""Tracker entries moved between two strict firewalls, by packets that the tests make."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dysco.errors import HostError, RemoteError, WireError
from dysco.host import run_in, tracked
from dysco.host.conntrack import Conntrack
from dysco.wire.packet import ACK, FIN, SYN
from dysco.wire.tuples import FiveTuple
from netns.test_path_handshake import X, Y, options, ports, shake
from netns.tracker import Talk, Tracker
from netns.worlds import run

families = pytest.mark.parametrize("family", [4, 6])


class Pair:
    """The old firewall and the new one."""

    def __init__(self) -> None:
        self.old, self.new = Tracker(f"st-{os.getpid()}a"), Tracker(f"st-{os.getpid()}b")
        self.source, self.target = Conntrack(self.old.firewall), Conntrack(self.new.firewall)

    def open(self, family: int = 4) -> tuple[Talk, Talk]:
        """A session through the old one; and what is sent of it through the new one."""
        before = shake(self.old, 7, family=family)
        after = Talk(self.new, family)
        after.tuple = before.tuple
        return before, after

    def move(self, session: FiveTuple) -> None:
        state = self.source.export(session)
        assert state is not None
        self.target.install(session, state)

    def close(self) -> None:
        for part in (self.source, self.target, self.old, self.new):
            part.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


@families
def test_a_session_goes_on_where_its_entry_was_put_in_and_only_there(pair: Pair, family: int) -> None:
    before, after = pair.open(family)
    assert not after("left", X + 100, Y, ACK, payload=100)
    pair.move(before.tuple)
    assert after("left", X + 100, Y, ACK, payload=100)
    assert after("right", Y, X + 200, ACK, payload=100)
    assert after("left", X + 200, Y + 100, ACK | FIN)
    assert after("right", Y + 100, X + 201, ACK | FIN)
    found = pair.target.find(before.tuple)
    assert found is not None
    assert found.state > tracked.ESTABLISHED, "closing is followed as ever"


@families
def test_acks_of_what_came_by_the_old_path_pass_in_both_directions(pair: Pair, family: int) -> None:
    before, after = pair.open(family)
    pair.move(before.tuple)
    for step in range(1, 4):
        ahead = step << 20
        assert after("left", X + ahead, Y + 2 * ahead, ACK, payload=1000)
        assert after("right", Y + 2 * ahead, X + ahead + 5000, ACK, payload=1000)


@families
def test_the_entry_arrives_as_it_was(pair: Pair, family: int) -> None:
    before, _ = pair.open(family)
    run_in(
        pair.old.firewall,
        run,
        [
            "conntrack",
            "-U",
            "-f",
            f"ipv{family}",
            "-p",
            "tcp",
            "--sport",
            str(before.tuple.sport),
            "-m",
            "77",
        ],
    )
    pair.move(before.tuple)
    here, there = pair.source.find(before.tuple), pair.target.find(before.tuple)
    assert here is not None
    assert there is not None
    assert (here.mark, here.scales, here.assured) == (77, (7, 7), True)
    assert abs(here.timeout_s - there.timeout_s) <= 2
    assert {**_fields(here), "timeout_s": 0} == {**_fields(there), "timeout_s": 0}


def _fields(entry: tracked.Entry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in entry.__slots__}


def test_labels_travel_where_rules_use_them(pair: Pair) -> None:
    rules = "table inet labels { chain c { type filter hook forward priority 1; ct label 5 counter; }; }"
    for firewall in (pair.old.firewall, pair.new.firewall):
        run_in(firewall, run, ["nft", rules])
    before, _ = pair.open()
    state = tracked.Entry(
        before.tuple, before.tuple.reversed(), labels=bytes([0x20, *bytes(15)]), timeout_s=100
    )
    pair.target.install(before.tuple, tracked.encode(state))
    found = pair.target.find(before.tuple)
    assert found is not None
    assert found.labels == state.labels
    for firewall in (pair.old.firewall, pair.new.firewall):
        run_in(firewall, run, ["nft", "delete table inet labels"])
    other, _ = pair.open()
    for _ in range(2):  # a new entry, and a repetition: without such a rule labels are left out
        pair.target.install(
            other.tuple,
            tracked.encode(
                tracked.Entry(other.tuple, other.tuple.reversed(), labels=b"x" * 16, timeout_s=100)
            ),
        )


def test_a_repetition_changes_nothing(pair: Pair) -> None:
    before, after = pair.open()
    state = pair.source.export(before.tuple)
    assert state is not None
    pair.target.install(before.tuple, state)
    assert after("left", X, Y, ACK | FIN)
    closing = pair.target.find(before.tuple)
    pair.target.install(before.tuple, state)
    found = pair.target.find(before.tuple)
    assert closing is not None
    assert found is not None
    assert found.state == closing.state > tracked.ESTABLISHED
    assert pair.target.remove(before.tuple)
    assert not pair.target.remove(before.tuple)
    assert pair.target.export(before.tuple) is None


@families
def test_an_entry_that_is_there_takes_the_mark_and_is_checked_no_more(pair: Pair, family: int) -> None:
    """It may be of an earlier stay, with numbers of then."""
    after = shake(pair.new, 7, family=family)
    far = 1 << 28
    assert not after("left", X + far, Y + far, ACK, payload=10)
    state = tracked.Entry(after.tuple, after.tuple.reversed(), mark=5, timeout_s=1000)
    pair.target.install(after.tuple, tracked.encode(state))
    found = pair.target.find(after.tuple)
    assert found is not None
    assert (found.mark, found.scales, found.flags) == (5, (7, 7), (3, 3))
    assert after("left", X + far, Y + far, ACK, payload=10)
    assert after("right", Y + far, X + far + 10, ACK, payload=10)


def test_a_handshake_after_the_entry_passes(pair: Pair) -> None:
    before, after = pair.open()
    pair.move(before.tuple)
    ahead = 1 << 20
    assert after("left", X + ahead - 1, 0, SYN, options=options(7))
    assert after("right", Y + ahead - 1, X + ahead, SYN | ACK, options=options(7))
    assert after("left", X + ahead, Y + ahead, ACK)
    assert after("left", X + ahead, Y + ahead, ACK, payload=1000)
    assert after("right", Y + ahead, X + ahead + 1000, ACK, payload=1000)


def test_a_session_that_is_not_there_or_not_open_has_nothing_to_move(pair: Pair) -> None:
    talk = Talk(pair.old, 4, next(ports))
    assert pair.source.export(talk.tuple) is None
    assert talk("left", X - 1, 0, SYN, options=options(7))
    assert pair.source.export(talk.tuple) is None


def test_a_peer_that_lies_puts_nothing_in(pair: Pair) -> None:
    before, after = pair.open()
    state = pair.source.export(before.tuple)
    assert state is not None
    other = FiveTuple.parse("10.50.1.2:1 > 10.50.2.2:22")
    with pytest.raises(RemoteError):
        pair.target.install(before.tuple, tracked.encode(tracked.Entry(other, other.reversed())))
    with pytest.raises(RemoteError):
        pair.target.install(other, state)
    with pytest.raises(WireError):
        pair.target.install(before.tuple, state[:-1])
    for session in (other, before.tuple):
        assert pair.target.find(session) is None
    assert not after("left", X, Y, ACK)


def test_a_translation_moves_with_its_session(pair: Pair) -> None:
    """Source NAT: the new firewall would choose another address, and keeps that of the session."""
    nat = "table ip nat {{ chain p {{ type nat hook postrouting priority srcnat; oifname eth1 {}; }}; }}"
    run_in(pair.old.firewall, run, ["nft", nat.format("snat to 10.50.2.9")])
    udp_alike = "meta l4proto udp snat to 10.50.2.9; oifname eth1 meta l4proto tcp snat to 10.50.2.77"
    run_in(pair.new.firewall, run, ["nft", nat.format(udp_alike)])
    try:
        before, after = Talk(pair.old, 4, next(ports)), Talk(pair.new, 4)
        after.tuple = before.tuple
        right = FiveTuple.of(bytes([10, 50, 2, 9]), before.tuple.sport, before.tuple.dst, 80)
        before.behind = after.behind = right
        assert before("left", X - 1, 0, SYN, options=options(7))
        assert before("right", Y - 1, X, SYN | ACK, options=options(7))
        assert before("left", X, Y, ACK)
        state = pair.source.export(before.tuple)
        assert state is not None
        with pytest.raises(RemoteError):
            pair.target.install(before.tuple, state)
        for _ in range(2):
            entry = pair.target.install(before.tuple, state, right)
            assert entry.has_nat
            found = pair.target.find(before.tuple)
            assert found is not None
            assert found.reply == right.reversed()
            assert after("left", X, Y, ACK, payload=100)
            assert after("right", Y, X + 100, ACK, payload=100)
        # A handshake on the new path got the other address; the session's own wins.
        pair.target.remove(before.tuple)
        assert after("left", X - 1, 0, SYN, options=options(7))
        pair.target.install(before.tuple, state, right)
        assert after("left", X, Y, ACK, payload=100)
        assert after("right", Y, X + 100, ACK, payload=100)
    finally:
        for firewall in (pair.old.firewall, pair.new.firewall):
            run_in(firewall, run, ["nft", "delete table ip nat"])


def test_a_namespace_that_is_not_there_is_said() -> None:
    with pytest.raises(HostError, match="no such network namespace"):
        Conntrack("st-nowhere")
