"""The first bytes of sessions of this host's stack: what is kept of them, and for how long their flows are slow.

a ---- b (this agent, on whose host a proxy is)        the sessions end here, or begin here
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.beginnings import MOST_BYTES, MOST_PACKETS
from dysco.protocol.flow import FIRST_BOX, HOST, UNDERLAY, Flow
from dysco.wire.packet import ACK, FIN, PSH, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import PAIR_BOX, Rig, hops, read, session, syn_ack, to_c

SESSION = session(1, 2)


class Watched:
    """A session between a client and this host's stack, whose first bytes are kept."""

    def __init__(self, *, begins_here: bool = False) -> None:
        self.rig = Rig(decision=to_c() if begins_here else None)
        settings = replace(self.rig.settings, watch=lambda _, ends_here: ends_here is not begins_here)
        self.rig.agent.configure(settings, lambda _, __: self.rig.decision)
        if begins_here:
            self.session = session(2)
            self.out = self.rig.establish()
            self.ports = HOST, UNDERLAY
            self.tuples = self.session, self.out.reversed()
        else:
            self.session = SESSION
            syn = self.rig.chained_syn(hops(2), of=SESSION)
            self.rig.feed(UNDERLAY, syn)
            self.rig.feed(HOST, syn_ack(SESSION))
            self.ports = UNDERLAY, HOST
            self.tuples = read(syn).five_tuple, SESSION.reversed()

    def pass_(self, data: bytes, at: int = 0, *, back: bool = False, flags: int = ACK | PSH) -> list[Packet]:
        """Let bytes pass that stand at this place in the stream."""
        seq, ack = (9001 + at, 1001) if back else (1001 + at, 9001)
        packet = build_tcp(self.tuples[back], seq, ack, flags, 1000, b"", data)
        return [out for _, out in self.rig.feed(self.ports[back], packet)]

    @property
    def seen(self) -> tuple[bytes, bytes] | None:
        return self.rig.agent.first_bytes(self.session)

    def slow(self, *, back: bool = False) -> bool:
        flow = self.rig.table.get(self.ports[back], self.tuples[back])
        assert flow is not None
        return flow.slow


@pytest.mark.parametrize("begins_here", [False, True])
def test_both_directions_are_kept_and_passed_on(begins_here: bool) -> None:
    one = Watched(begins_here=begins_here)
    assert one.seen == (b"", b"")
    [out] = one.pass_(b"hello ")
    assert out.data.endswith(b"hello ")
    one.pass_(b"world", 6)
    one.pass_(b"answer", back=True)
    assert one.seen == (b"hello world", b"answer")


def test_repeated_and_reordered_bytes_are_kept_once_in_their_order() -> None:
    one = Watched()
    one.pass_(b"def", 3)
    assert one.seen is None  # what comes first is not there yet
    one.pass_(b"abcd")
    one.pass_(b"def", 3)
    one.pass_(b"a")
    assert one.seen == (b"abcdef", b"")


def test_no_more_is_kept_than_is_needed_and_the_flow_is_fast_again() -> None:
    one = Watched()
    data = bytes(range(256)) * 8
    assert one.slow()
    one.pass_(data[:1000])
    assert one.slow()
    one.pass_(data[1000:], 1000)
    assert one.seen == (data[:MOST_BYTES], b"")
    assert not one.slow()
    assert one.slow(back=True)
    flow = one.rig.table.get(one.ports[0], one.tuples[0])
    assert flow is not None
    assert flow.top_seq == 1001 + len(data)
    assert flow.packets == 2


def test_a_direction_that_only_acknowledges_is_fast_after_so_many_packets() -> None:
    one = Watched()
    for _ in range(MOST_PACKETS):
        assert one.slow(back=True)
        one.pass_(b"", back=True, flags=ACK)
    assert not one.slow(back=True)
    assert one.seen == (b"", b"")


def test_who_has_missed_a_byte_knows_nothing() -> None:
    one = Watched()
    for number in range(MOST_PACKETS):
        one.pass_(b"x" * 10, 1 + 10 * number)
    assert not one.slow()
    assert one.seen is None


def test_it_is_forgotten_with_the_session() -> None:
    one = Watched()
    one.pass_(b"bye", flags=FIN | ACK)
    one.pass_(b"", back=True, flags=FIN | ACK)
    one.rig.wait(200.0)
    assert one.seen is None
    assert one.rig.agent.leftovers() == []


def test_others_are_left_alone() -> None:
    rig = Rig()
    syn = rig.chained_syn(hops(2), of=SESSION)
    rig.feed(UNDERLAY, syn)
    rig.feed(HOST, syn_ack(SESSION))
    flow = rig.table.get(UNDERLAY, read(syn).five_tuple)
    assert flow is not None
    assert not flow.slow
    assert rig.agent.first_bytes(SESSION) is None


def test_the_oldest_makes_room_and_is_fast_from_its_next_packet_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysco.protocol.beginnings.MOST_SESSIONS", 1)
    one = Watched()
    another = FiveTuple.of(SESSION.src, 40001, SESSION.dst, SESSION.dport)
    one.rig.feed(
        UNDERLAY, one.rig.chained_syn(hops(2), of=another, ports=(61003, 61004), chain_id=b"another-01234567")
    )
    one.rig.feed(HOST, syn_ack(another))
    assert one.rig.agent.first_bytes(another) == (b"", b"")
    assert one.seen is None
    one.pass_(b"late")
    assert not one.slow()


@pytest.mark.parametrize("wanted", [True, False])
def test_only_sessions_are_watched_that_are_wanted_and_end_at_this_stack(wanted: bool) -> None:
    rig = Rig(boxes=[PAIR_BOX])
    rig.agent.configure(replace(rig.settings, watch=lambda *_: wanted), lambda _, __: None)
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))  # which passes the box
    _, out = rig.one(FIRST_BOX + 1, inner)
    _, back = rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    rig.one(FIRST_BOX, back)
    ends = rig.chained_syn(hops(2), of=SESSION, ports=(61003, 61004), chain_id=b"another-01234567")
    rig.one(UNDERLAY, ends)
    rig.one(HOST, syn_ack(SESSION))
    assert rig.state() == ["established"] * 2
    assert rig.agent.first_bytes(session()) is None
    assert (rig.agent.first_bytes(SESSION) is not None) == wanted
    slow = {match for (_, match), flow in rig.table.flows.items() if flow.slow}
    assert slow == ({read(ends).five_tuple, SESSION.reversed()} if wanted else set())


@pytest.mark.parametrize("passed", [0, 7])
def test_what_has_passed_before_the_session_was_known_is_not_made_up(passed: int) -> None:
    """A kernel that opens chains may have carried data before its report of the SYN-ACK is read."""
    rig = Rig()
    rig.agent.configure(replace(rig.settings, watch=lambda *_: True), lambda _, __: None)
    rig.one(UNDERLAY, rig.chained_syn(hops(2), of=SESSION))

    def refresh(flow: Flow) -> int:
        flow.top_seq = (1001 if flow.port == UNDERLAY else 9001) + passed
        return 1

    rig.table.refresh = refresh  # type: ignore[method-assign]
    rig.one(HOST, syn_ack(SESSION))
    assert rig.agent.first_bytes(SESSION) == (None if passed else (b"", b""))


def test_a_flow_that_nobody_watches_is_made_fast_again() -> None:
    """As when a change is over in which its packets had to be seen."""
    rig = Rig(boxes=[PAIR_BOX])
    _, inner = rig.one(UNDERLAY, rig.chained_syn(hops(2, 4)))
    _, out = rig.one(FIRST_BOX + 1, inner)
    _, back = rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
    rig.one(FIRST_BOX, back)
    flow = rig.table.get(FIRST_BOX, session().reversed())
    assert flow is not None
    flow.slow = True
    rig.one(FIRST_BOX, build_tcp(session().reversed(), 9001, 1001, ACK, 100))
    flow = rig.table.get(FIRST_BOX, session().reversed())
    assert flow is not None
    assert not flow.slow
