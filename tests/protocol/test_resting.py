"""Sessions at rest are there for whoever asks, as they were, and take a fraction of the memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from dysco.dataplane.table import PythonFlowTable
from dysco.protocol.chain import SessionInfo
from dysco.protocol.events import SessionClosed, SessionRecord
from dysco.protocol.flow import FORWARD, HOST, UNDERLAY
from dysco.protocol.settings import Limits
from dysco.protocol.traces import REPEAT_S, TRIES
from dysco.wire.packet import ACK, FIN, RST, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import KERNEL_BOX, PAIR_BOX, Rig, hops, read, session, syn_ack
from protocol.test_memory import NoKernel


class Middle:
    """Agent b with one session through its box. left and right: the subsessions' tuples, left to right."""

    def __init__(self, *, family: int = 4, awake: int = 0) -> None:
        self.rig = rig = Rig(boxes=[KERNEL_BOX], limits=Limits(awake=awake))
        first = rig.chained_syn(hops(2, 4, family=family), of=session(family=family))
        self.left = read(first).five_tuple
        [(_, into)] = rig.feed(UNDERLAY, first)
        self.session = read(into).five_tuple
        [(_, out)] = rig.feed(HOST, into)
        self.right = read(out).five_tuple
        [(port, back)] = rig.feed(UNDERLAY, syn_ack(self.right))
        assert port == FORWARD
        rig.feed(HOST, back)
        [self.key] = rig.agent._life.chains

    @property
    def rests(self) -> bool:
        return self.rig.agent._life.chains.is_at_rest(self.key)

    def info(self) -> SessionInfo:
        [info] = self.rig.agent.sessions(self.rig.now)
        return replace(info, age_s=0.0)

    def data(self, flags: int = ACK) -> tuple[int, FiveTuple]:
        """Send a packet from the left, and give where it leaves and with which tuple."""
        port, packet = self.rig.one(UNDERLAY, build_tcp(self.left, 1001, 9001, flags, 100, payload=b"x" * 10))
        return port, read(packet).five_tuple


@pytest.mark.parametrize("family", [4, 6])
def test_a_session_that_nobody_asks_for_goes_to_rest_and_is_shown_as_it_was(family: int) -> None:
    middle = Middle(family=family)
    rig = middle.rig
    assert middle.data() == (FORWARD, middle.session)
    before, records = middle.info(), dict(rig.agent.records())
    rig.wait(3)
    assert middle.rests
    assert rig.table.flows == {}
    assert len(rig.agent) == 1
    assert middle.info() == before
    assert before.packets == 3  # the SYN-ACK into the box and out of it
    assert dict(rig.agent.records()) == records
    assert middle.rests  # who looks only does not wake it


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, RST])
def test_a_packet_wakes_it(flags: int) -> None:
    middle = Middle()
    middle.rig.wait(3)
    assert middle.rests
    assert middle.data(flags) == (FORWARD, middle.session)
    assert not middle.rests
    [info] = middle.rig.agent.sessions()
    assert info.packets == 3
    assert info.state == {ACK: "established", FIN | ACK: "half-closed", RST: "reset"}[flags]


def test_a_packet_of_the_other_direction_wakes_it_too() -> None:
    middle = Middle()
    middle.rig.wait(3)
    assert middle.rests
    port, packet = middle.rig.one(HOST, build_tcp(middle.session.reversed(), 9001, 1001, ACK, 100))
    assert (port, read(packet).five_tuple) == (UNDERLAY, middle.left.reversed())
    assert not middle.rests


def test_a_message_wakes_it_and_who_waits_for_an_answer_keeps_it_awake() -> None:
    middle = Middle()
    rig = middle.rig
    rig.wait(3)
    assert middle.rests
    assert rig.agent.trace(middle.key, 7, rig.now)
    rig.wait(REPEAT_S * (TRIES - 2))
    assert not middle.rests
    rig.wait(120)  # nobody answers; it gives up
    assert middle.rests
    assert rig.agent.subsessions(middle.key)
    assert not middle.rests


def test_its_timer_ends_it_if_nothing_has_passed() -> None:
    middle = Middle()
    rig = middle.rig
    rig.wait(3)
    assert middle.rests
    rig.events()
    rig.wait(2 * rig.settings.timers.established)  # the SYN-ACK was something, at the first time
    [closed] = [event for event in rig.events() if isinstance(event, SessionClosed)]
    assert closed.reason == "idle"
    assert len(rig.agent) == 0
    assert rig.agent.ports_held() == 0 or rig.wait(rig.settings.timers.quarantine + 1) == []


def test_its_timer_lets_it_live_if_something_has_passed() -> None:
    middle = Middle()
    rig = middle.rig
    middle.data()
    for _ in range(3):
        rig.wait(rig.settings.timers.established - 100)
        assert middle.rests
        middle.data()
    assert not [event for event in rig.events() if isinstance(event, SessionClosed)]
    rig.wait(2 * rig.settings.timers.established)
    assert len(rig.agent) == 0


def test_a_session_that_ends_here_goes_to_rest_too() -> None:
    rig = Rig(limits=Limits(awake=0))
    first = rig.chained_syn(hops(2), of=session(server=2))
    port, into = rig.one(UNDERLAY, first)
    assert port == HOST
    rig.one(HOST, syn_ack(read(into).five_tuple))
    rig.wait(3)
    assert rig.agent.at_rest == 1
    port, packet = rig.one(UNDERLAY, build_tcp(read(first).five_tuple, 1001, 9001, ACK, 100, payload=b"x"))
    assert (port, read(packet).five_tuple) == (HOST, session(server=2))
    assert rig.agent.at_rest == 0


def test_few_sessions_stay_awake() -> None:
    middle = Middle(awake=1)
    middle.rig.wait(300)
    assert not middle.rests


def test_what_no_kernel_carries_stays_awake() -> None:
    middle = Middle()
    for flow in middle.rig.table.flows.values():
        flow.slow = True
    middle.rig.wait(300)
    assert not middle.rests


def test_the_same_host_twice_in_a_chain_is_not_confused() -> None:
    """Both chains have the session's tuple at the host: one of them stays awake, and packets find their way."""
    other = replace(PAIR_BOX, name="other", tag=0xB, left_read=6, left_write=6, right_read=7, right_write=7)
    rig = Rig(boxes=[PAIR_BOX, other], limits=Limits(awake=0))
    ways = []
    for number, port in ((0xA, 40000), (0xB, 40000)):
        first = rig.chained_syn(
            hops(2, 4, box=number),
            ports=(61001 + number, 61002),
            chain_id=bytes([number]) * 16,
            of=session(port=port),
        )
        box_port, into = rig.one(UNDERLAY, first)
        _, out = rig.one(box_port + 1, into)
        _, back = rig.one(UNDERLAY, syn_ack(read(out).five_tuple))
        rig.one(box_port, back)
        ways.append((read(first).five_tuple, box_port))
    rig.wait(30)
    assert (len(rig.agent), rig.agent.at_rest) == (2, 1)
    for subsession, box_port in ways:
        port, _ = rig.one(UNDERLAY, build_tcp(subsession, 1001, 9001, ACK, 100))
        assert port == box_port


def test_a_session_that_is_stopped_wakes_first() -> None:
    middle = Middle()
    rig = middle.rig
    rig.wait(3)
    assert middle.rests
    rig.agent.reset(rig.agent.session_keys(), rig.now)
    assert len(rig.take()) == 2  # both ends are asked where they are
    assert not middle.rests


def test_its_timer_is_not_lost_behind_one_that_is_due_sooner() -> None:
    """The timer's entry from when it was opened still stands behind another session's that is being opened."""
    rig = Rig(boxes=[KERNEL_BOX], limits=Limits(awake=0))
    rig.one(
        UNDERLAY,
        rig.chained_syn(hops(2, 4), of=session(port=1), ports=(61005, 61006), chain_id=b"another " * 2),
    )
    rig.wait(1)
    first = rig.chained_syn(hops(2, 4))
    _, into = rig.one(UNDERLAY, first)
    _, out = rig.one(HOST, into)
    rig.one(HOST, rig.one(UNDERLAY, syn_ack(read(out).five_tuple))[1])
    rig.wait(30)
    assert (len(rig.agent), rig.agent.at_rest) == (2, 1)
    assert len(dict(rig.agent.records())) == 1  # what is being opened is in no journal
    rig.wait(rig.settings.timers.embryonic)
    assert (len(rig.agent), rig.agent.at_rest) == (1, 1)
    rig.wait(2 * rig.settings.timers.established)
    assert len(rig.agent) == 0


def test_timers_that_were_left_behind_are_thrown_out_and_those_of_sessions_at_rest_are_not() -> None:
    middle = Middle()
    rig = middle.rig
    rig.wait(3)
    assert rig.agent.at_rest == 1
    life = rig.agent._life
    for number in range(1100):
        first = rig.chained_syn(
            hops(2, 4),
            of=session(port=number + 1),
            ports=(62000, 62000 + number),
            chain_id=number.to_bytes(16, "big"),
        )
        _, into = rig.one(UNDERLAY, first)
        rig.feed(HOST, build_tcp(read(into).five_tuple.reversed(), 0, 1001, RST | ACK, 0))
        for chain in [one for one in life.chains.values() if one.key != middle.key]:
            life.close(chain, "reset", rig.now)
    assert len(life._heap) < 1100
    assert middle.rests
    rig.wait(2 * rig.settings.timers.established)
    assert len(rig.agent) == 0


def test_who_is_not_there_is_not_found() -> None:
    middle = Middle()
    with pytest.raises(KeyError):
        middle.rig.agent._life.chains[b"nobody"]


def test_a_table_of_its_own_has_nobody_at_rest() -> None:
    table = PythonFlowTable(NoKernel(), (), (61000, 65535))
    assert table.get(HOST, session()) is None
    assert not table.at_rest.has(session())


def test_what_the_kernel_has_of_sessions_at_rest_is_not_taken_for_stale() -> None:
    middle = Middle()
    middle.rig.wait(3)
    table = middle.rig.table
    assert table.at_rest.has(middle.session)
    assert table.at_rest.has(middle.right.reversed())
    assert not table.at_rest.has(session(port=1))
    assert middle.rests


def test_a_record_is_not_written_again_for_resting_or_waking() -> None:
    middle = Middle()
    rig = middle.rig
    rig.wait(30)
    rig.events()
    middle.data()
    rig.wait(30)
    assert middle.rests
    assert not [event for event in rig.events() if isinstance(event, SessionRecord)]


def test_two_chains_whose_packets_look_the_same_do_not_wake_each_other_for_ever() -> None:
    middle = Middle()
    rig, chains = middle.rig, middle.rig.agent._life.chains
    twin = copy.copy(chains[middle.key])
    twin.key = b"another-chain-id" + twin.key[-1:]
    chains[twin.key] = twin
    rig.wait(3)
    assert (chains.is_at_rest(middle.key), chains.is_at_rest(twin.key)) == (True, False)
    looks = []
    for _ in range(50):
        looks.append(chains.next_deadline() or 0.0)
        rig.wait(max(0.0, looks[-1] - rig.now))
    assert looks[-1] - looks[0] > 60
    assert chains.is_at_rest(middle.key)
