"""The host of a proxy, message by message: two chains are joined, and both sockets of the proxy see an ordinary end.

a --1-- b (this agent) | proxy | b --1-- c            two chains; client 10.0.0.1, server 10.0.0.4 behind c
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dysco.protocol.changing import Phase
from dysco.protocol.events import ChangeMoved, SessionClosed
from dysco.protocol.flow import HOST, UNDERLAY
from dysco.protocol.ground import alias
from dysco.protocol.joints import LINGER_S, PATIENCE_S
from dysco.protocol.locks import LEASE_S
from dysco.wire.chain_header import Hop
from dysco.wire.messages import (
    AckCancel,
    AckLock,
    CancelLock,
    Change,
    Hops,
    Message,
    NackLock,
    OldDone,
    OldDoneAck,
    Progress,
    RenewLock,
    RequestLock,
    RightRequest,
    Syn,
)
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, Packet, build_tcp
from dysco.wire.tuples import FiveTuple
from protocol.rig import Rig, address, hops, read, session, syn, syn_ack, to_c

LEFT_ID = b"chain-0123456789"
CLIENT, SERVER = session(1, 2), session(2)
REQUEST = 44
NOT_SHOWN = "not ready: no packets have passed since the agent began"


class Proxy:
    """Both sessions of a proxy at b, open: ISNs 1000 and 9000 on the left, 5000 and 7000 on the right."""

    def __init__(self, rig: Rig | None = None) -> None:
        self.rig = rig = rig or Rig(decision=to_c())
        arriving = rig.chained_syn(hops(2), of=CLIENT)
        self.left_sub = read(arriving).five_tuple
        rig.one(UNDERLAY, arriving)
        rig.one(HOST, syn_ack(CLIENT))
        rig.one(UNDERLAY, build_tcp(self.left_sub, 1001, 9001, ACK, 64240))
        self.right_sub = rig.begin(SERVER, isn=5000)
        rig.one(UNDERLAY, syn_ack(self.right_sub, isn=7000, of=5000))
        rig.one(HOST, build_tcp(SERVER, 5001, 7001, ACK, 64240))
        self.right_id = next(key for key in rig.agent._life.chains if key[:16] != LEFT_ID)[:16]
        self.first, self.last = alias(LEFT_ID, 1), alias(self.right_id, 1)
        self.change = Change(REQUEST, self.first, self.last, Hops((Hop(address(3)),)), origin="b")
        rig.messages.clear()
        rig.events()

    @property
    def keys(self) -> tuple[bytes, bytes]:
        return LEFT_ID + b"\1", self.right_id + b"\0"

    def splice(self, request: int = REQUEST, right: int = 0, left: int = 0) -> list[tuple[str, Message]]:
        """Take the proxy out; right, left: bytes that it has added in that direction."""
        now = self.rig.now
        assert self.rig.agent.splice(*self.keys, request, now, added_right=right, added_left=left)
        return self.said()

    def said(self) -> list[tuple[str, Message]]:
        self.rig.take()
        said, self.rig.messages = self.rig.messages, []
        return said

    def tell(self, peer: str, message: Message) -> list[tuple[str, Message]]:
        self.said()
        self.rig.agent.receive_message(peer, message, self.rig.now)
        return self.said()

    def ask(self, **changed: object) -> list[tuple[str, Message]]:
        """The lock is asked for by a, the left anchor."""
        change = replace(self.change, **changed)  # type: ignore[arg-type]
        return self.tell("a", RequestLock(LEFT_ID, 1, change, "a", 10, 20))

    def locked(self) -> Proxy:
        self.splice()
        self.ask()
        assert self.tell("c", AckLock(self.right_id, 1, REQUEST, True)) == [
            ("a", AckLock(LEFT_ID, 1, REQUEST, True))
        ]
        return self

    def done(self, peer: str) -> OldDone:
        """What an anchor says along the old path."""
        left = peer == "a"
        return OldDone(LEFT_ID if left else self.right_id, 1, REQUEST, left, self.last)

    def leave(self) -> list[tuple[FiveTuple, int, int, int]]:
        """Both anchors are done; gives what goes to the proxy."""
        for peer in "ac":
            self.rig.agent.receive_message(peer, self.done(peer), self.rig.now)
        out = [read(packet) for port, packet in self.rig.take() if port == HOST]
        self.rig.messages.clear()
        return [(one.five_tuple, one.flags, one.seq, one.ack) for one in out]

    def from_proxy(
        self, tuple_: FiveTuple, seq: int, ack: int, flags: int, data: bytes = b""
    ) -> list[Packet]:
        return [out for _, out in self.rig.feed(HOST, build_tcp(tuple_, seq, ack, flags, 64240, b"", data))]

    def moves(self) -> list[tuple[str, str]]:
        events = self.rig.events(ChangeMoved)
        return [(one.phase, one.reason) for one in events if isinstance(one, ChangeMoved)]

    def closed(self) -> list[str]:
        return [one.reason for one in self.rig.events(SessionClosed) if isinstance(one, SessionClosed)]


def test_who_takes_a_proxy_out_asks_the_left_anchor() -> None:
    proxy = Proxy()
    assert proxy.splice() == [("a", RightRequest(LEFT_ID, 1, proxy.change, False))]


def test_the_lock_goes_from_one_chain_to_the_other_with_what_the_proxy_adds() -> None:
    proxy = Proxy()
    proxy.splice()
    forward, backward = 10 + 5000 - 1000, 20 + 9000 - 7000
    passed = RequestLock(proxy.right_id, 1, proxy.change, "a", forward, backward, True)
    assert proxy.ask() == [("c", passed)]
    granted = proxy.tell("c", AckLock(proxy.right_id, 1, REQUEST, True))
    assert granted == [("a", AckLock(LEFT_ID, 1, REQUEST, True))]


def test_what_a_proxy_has_added_counts() -> None:
    proxy = Proxy()
    proxy.from_proxy(SERVER, 5001, 7001, ACK | PSH, b"PROXY line")  # written, and nothing was read
    assert proxy.splice(right=9) == []
    assert proxy.moves() == [
        ("refused", "not ready: the proxy has written 1 bytes more to the right than it has read")
    ]
    assert proxy.splice(right=10)
    [(_, passed)] = proxy.ask()
    assert isinstance(passed, RequestLock)
    assert passed.forward_sum == 10 + 5000 - 1000 + 10


def test_nothing_takes_the_place_of_a_proxy() -> None:
    proxy = Proxy()
    proxy.splice()
    refused = NackLock(LEFT_ID, 1, REQUEST, "b", "nothing can take the place of a proxy")
    assert proxy.ask(hops=Hops((Hop(address(3)), Hop(address(3))))) == [("a", refused)]


def test_another_change_does_not_go_through_a_proxy() -> None:
    proxy = Proxy()
    proxy.splice()
    assert proxy.ask(request=45) == [("a", NackLock(LEFT_ID, 1, 45, "b", "not found"))]


def test_a_session_that_begins_elsewhere_is_not_the_right_one() -> None:
    proxy = Proxy()
    other = proxy.rig.chained_syn(
        hops(2), of=session(1, 2, 40001), ports=(61003, 61004), chain_id=b"other-0123456789"
    )
    proxy.rig.one(UNDERLAY, other)
    proxy.rig.one(HOST, syn_ack(session(1, 2, 40001)))
    proxy.rig.one(UNDERLAY, build_tcp(read(other).five_tuple, 1001, 9001, ACK, 64240))
    left, right = proxy.keys[0], b"other-0123456789\1"
    assert proxy.rig.agent.splice(left, right, REQUEST, proxy.rig.now)
    assert proxy.moves() == [("refused", "the right chain does not begin at this host")]
    assert proxy.rig.agent.splice(proxy.keys[1], left, REQUEST, proxy.rig.now)
    assert proxy.moves() == [("refused", "the left chain does not end at this host")]


def test_after_a_restart_packets_must_show_where_both_sides_stand() -> None:
    before = Proxy()
    records = [record for _, record in before.rig.agent.records()]
    rig = Rig(decision=to_c())
    for record in records:
        assert rig.agent.restore(record, rig.now)
    left, right = before.keys
    # The client shows that it has heard the SYN-ACK; the right side shows nothing.
    rig.feed(UNDERLAY, build_tcp(before.left_sub, 1001, 9001, ACK, 64240))
    rig.events()
    assert rig.agent.splice(left, right, REQUEST, rig.now)
    [moved] = rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert (moved.phase, moved.reason) == ("refused", NOT_SHOWN)


def test_a_client_that_has_said_nothing_may_still_want_the_syn_ack_again() -> None:
    rig = Rig(decision=to_c())
    rig.one(UNDERLAY, rig.chained_syn(hops(2), of=CLIENT))
    rig.one(HOST, syn_ack(CLIENT))
    rig.establish(SERVER)
    rig.events()
    keys = sorted(rig.agent._life.chains, key=lambda key: key[:16] != LEFT_ID)
    assert rig.agent.splice(keys[0], keys[1], REQUEST, rig.now)
    [moved] = rig.events(ChangeMoved)
    assert isinstance(moved, ChangeMoved)
    assert moved.reason == "not ready: the client has said nothing since its SYN"


def test_a_second_splice_waits_until_the_first_is_forgotten() -> None:
    proxy = Proxy()
    proxy.splice()
    proxy.splice(45)
    assert proxy.moves() == [("refused", "busy")]
    proxy.rig.wait(PATIENCE_S + 1)
    proxy.moves()
    assert proxy.splice(46)


def test_a_lock_that_is_locked_outlives_the_patience_of_the_splice() -> None:
    proxy = Proxy().locked()
    for _ in range(4):
        proxy.rig.wait(LEASE_S - 5)
        passed = proxy.tell("a", RenewLock(LEFT_ID, 1, REQUEST, proxy.last))
        assert passed == [("c", RenewLock(proxy.right_id, 1, REQUEST, proxy.last))]
    assert proxy.ask() != []
    assert proxy.leave() != []


def test_a_proxy_that_writes_what_it_has_not_read_is_found_out_behind_the_grant() -> None:
    proxy = Proxy()
    proxy.splice()
    proxy.ask()
    proxy.from_proxy(SERVER, 5001, 7001, ACK | PSH, b"x")
    answer = proxy.tell("c", AckLock(proxy.right_id, 1, REQUEST, True))
    reason = "not ready: the proxy has written 1 bytes more to the right than it has read"
    assert answer == [
        ("c", CancelLock(proxy.right_id, 1, REQUEST, proxy.last)),
        ("a", NackLock(LEFT_ID, 1, REQUEST, "b", reason)),
    ]
    assert proxy.tell("c", AckCancel(proxy.right_id, 1, REQUEST)) == [("a", AckCancel(LEFT_ID, 1, REQUEST))]


def test_a_change_of_the_right_chain_keeps_the_name_by_which_a_splice_knows_it() -> None:
    proxy = Proxy()
    proxy.splice()
    proxy.tell("a", Progress(LEFT_ID, 1, REQUEST, Phase.REFUSED, True, "a", "no"))
    own = Change(50, proxy.last, proxy.last, Hops((Hop(address(3)),)), origin="b")
    assert proxy.rig.agent.change(proxy.keys[1], own, proxy.rig.now)
    asked = {type(one): one for _, one in proxy.said()}
    [syn_] = [one for kind, one in asked.items() if kind is Syn]
    assert isinstance(syn_, Syn)
    assert syn_.chain_id == proxy.right_id


# The end.


def test_both_sockets_see_an_ordinary_end_and_nothing_of_it_leaves_the_host() -> None:
    proxy = Proxy().locked()
    assert proxy.leave() == [
        (CLIENT, ACK | FIN, 1001, 9001),
        (SERVER.reversed(), ACK | FIN, 7001, 5001),
    ]
    # One has seen the end before it has closed; both ends of the other cross, and it shall not wait in TIME-WAIT.
    [last] = [read(out) for out in proxy.from_proxy(CLIENT.reversed(), 9001, 1002, ACK | FIN)]
    assert (last.five_tuple, last.flags, last.seq, last.ack) == (CLIENT, ACK, 1002, 9002)
    answers = [read(out) for out in proxy.from_proxy(SERVER, 5001, 7001, ACK | FIN)]
    assert [(one.flags, one.seq, one.ack) for one in answers] == [(ACK, 7002, 5002), (ACK | RST, 7002, 5002)]
    assert {one.five_tuple for one in answers} == {SERVER.reversed()}
    proxy.rig.wait(LINGER_S + 0.1)
    assert proxy.closed() == ["moved"] * 2
    assert not proxy.rig.table.flows


def test_what_the_proxy_repeats_is_answered() -> None:
    proxy = Proxy().locked()
    proxy.leave()
    [answer] = proxy.from_proxy(SERVER, 4996, 7001, ACK | PSH, b"again")
    at = read(answer)
    assert (at.flags, at.seq, at.ack) == (ACK, 7002, 5001)
    assert proxy.from_proxy(SERVER, 5001, 7002, ACK) == []
    [answer] = proxy.from_proxy(SERVER, 5000, 7002, ACK)  # a probe
    assert (read(answer).seq, read(answer).ack) == (7002, 5000)


def test_a_proxy_that_takes_its_port_for_another_session_gets_it() -> None:
    proxy = Proxy().locked()
    proxy.leave()
    assert proxy.rig.feed(HOST, syn(SERVER, 99_000)) == []
    assert proxy.closed() == ["moved"] * 2
    port, out = proxy.rig.one(HOST, syn(SERVER, 99_000))
    assert (port, read(out).flags) == (UNDERLAY, SYN)


def test_a_lock_that_is_asked_for_again_when_the_host_has_left_is_refused() -> None:
    proxy = Proxy().locked()
    proxy.leave()
    [(to, refused)] = proxy.ask()
    assert (to, type(refused)) == ("a", NackLock)


def test_a_host_that_has_left_asks_nobody_any_more() -> None:
    proxy = Proxy().locked()
    proxy.leave()
    proxy.rig.wait(LEASE_S * 3)
    assert [one for _, one in proxy.said() if isinstance(one, OldDone)] == []
    assert proxy.rig.state() == ["established"] * 2  # the sockets of the proxy have not ended


@pytest.mark.parametrize("peer", ["a", "c"])
def test_an_end_of_which_one_half_was_lost_is_asked_for_and_found(peer: str) -> None:
    """The other one is done, too, or the session is over: the proxy is empty, and nothing moves any more."""
    proxy = Proxy().locked()
    proxy.tell(peer, proxy.done(peer))
    assert proxy.rig.wait(LEASE_S - 1) == []
    assert [read(packet).flags for _, packet in proxy.rig.wait(2)] == [ACK | FIN] * 2
    assert [one for _, one in proxy.said() if isinstance(one, OldDone)] == []
    proxy.from_proxy(SERVER, 5001, 7002, ACK | FIN)
    proxy.from_proxy(CLIENT.reversed(), 9001, 1002, ACK | FIN)
    proxy.rig.wait(LINGER_S + 0.1)
    assert proxy.closed() == ["moved"] * 2


@pytest.mark.parametrize("peer", ["a", "c"])
def test_an_end_of_which_one_half_was_lost_is_asked_for_while_the_proxy_is_not_empty(peer: str) -> None:
    proxy = Proxy().locked()
    proxy.rig.one(UNDERLAY, build_tcp(proxy.left_sub, 1001, 9001, ACK | PSH, 64240, b"", b"unread"))
    proxy.tell(peer, proxy.done(peer))
    proxy.rig.wait(LEASE_S + 1)
    other = "c" if peer == "a" else "a"
    left = other == "a"
    question = OldDone(LEFT_ID if left else proxy.right_id, 1, REQUEST, not left, proxy.last, waiting=True)
    assert [(to, one) for to, one in proxy.said() if isinstance(one, OldDone)] == [(other, question)]
    assert proxy.tell(other, OldDoneAck(question.chain_id, 1, REQUEST, left, proxy.last)) != []
    assert proxy.leave() != []


def test_without_an_end_the_lock_ends_with_its_lease() -> None:
    proxy = Proxy().locked()
    proxy.rig.wait(LEASE_S + 1)
    assert proxy.ask(request=45) == [("a", NackLock(LEFT_ID, 1, 45, "b", "not found"))]
    proxy.rig.wait(PATIENCE_S)
    assert proxy.splice(46)


# A session that ends, an agent that begins again.


@pytest.mark.parametrize("side", [0, 1])
def test_one_session_ends_and_the_other_goes_on_alone(side: int) -> None:
    proxy = Proxy().locked()
    ends = proxy.rig.agent._life.chains[proxy.keys[side]]
    stays = proxy.rig.agent._life.chains[proxy.keys[1 - side]]
    proxy.rig.agent._life.close(ends, "reset", proxy.rig.now)
    assert (stays.joint, stays.changing) == (None, None)
    proxy.rig.wait(PATIENCE_S)
    assert proxy.rig.state() == ["established"]


def restarted(proxy: Proxy, *keys: bytes) -> Rig:
    rig = Rig(decision=to_c())
    for key, record in proxy.rig.agent.records():
        if key in keys:
            assert rig.agent.restore(record, rig.now)
    return rig


def test_a_proxys_host_that_begins_again_goes_on_with_the_change() -> None:
    proxy = Proxy().locked()
    proxy.rig = restarted(proxy, *proxy.keys)
    # Both ends show where they stand.
    proxy.rig.feed(UNDERLAY, build_tcp(proxy.left_sub, 1001, 9001, ACK, 64240))
    proxy.rig.feed(HOST, build_tcp(CLIENT.reversed(), 9001, 1001, ACK, 64240))
    proxy.rig.feed(HOST, build_tcp(SERVER, 5001, 7001, ACK, 64240))
    proxy.rig.feed(UNDERLAY, build_tcp(proxy.right_sub.reversed(), 7001, 5001, ACK, 64240))
    assert [(one[0], one[1]) for one in proxy.leave()] == [
        (CLIENT, ACK | FIN),
        (SERVER.reversed(), ACK | FIN),
    ]


def test_a_proxys_host_that_begins_again_behind_the_end_asks_its_sockets_where_they_stand() -> None:
    proxy = Proxy().locked()
    proxy.rig = restarted(proxy, *proxy.keys)
    probes = proxy.leave()
    assert [(one[0], one[1]) for one in probes] == [(CLIENT, ACK), (SERVER.reversed(), ACK)]
    for tuple_, seq, ack in ((CLIENT.reversed(), 9001, 1001), (SERVER, 5001, 7001)):
        [end, *_] = [read(out) for out in proxy.from_proxy(tuple_, seq, ack, ACK)]
        assert (end.five_tuple, end.flags, end.seq, end.ack) == (tuple_.reversed(), ACK | FIN, ack, seq)


@pytest.mark.parametrize("side", [0, 1])
def test_a_session_whose_other_one_does_not_come_back_goes_on_alone(side: int) -> None:
    proxy = Proxy().locked()
    rig = restarted(proxy, proxy.keys[side])
    rig.wait(LEASE_S + 1)
    [chain] = rig.agent._life.chains.values()
    assert (chain.joint, chain.changing) == (None, None)
    assert rig.state() == ["established"]


def test_a_session_that_ends_before_its_other_one_has_come_back_is_forgotten() -> None:
    proxy = Proxy().locked()
    rig = restarted(proxy, proxy.keys[0])
    [chain] = rig.agent._life.chains.values()
    rig.agent._life.close(chain, "reset", rig.now)
    rig.wait(LEASE_S + 1)
    assert rig.state() == []
    assert rig.agent.leftovers() == []


def test_a_proxys_host_that_begins_again_behind_the_end_ends_its_sockets_again() -> None:
    proxy = Proxy().locked()
    fins = proxy.leave()
    proxy.from_proxy(SERVER, 5001, 7002, ACK | FIN)  # one has ended already
    records = [record for _, record in proxy.rig.agent.records()]
    proxy.rig = rig = Rig(decision=to_c())
    for record in records:
        assert rig.agent.restore(record, rig.now)
    again = [read(packet) for _, packet in rig.take()]
    assert [(one.five_tuple, one.flags, one.seq, one.ack) for one in again] == fins
    proxy.from_proxy(SERVER, 5001, 7002, ACK | FIN)
    proxy.from_proxy(CLIENT.reversed(), 9001, 1002, ACK | FIN)
    rig.wait(LINGER_S + 0.1)
    assert proxy.closed() == ["moved"] * 2


def test_the_end_of_a_session_whose_splice_is_over_leaves_that_of_another_change_alone() -> None:
    """Nobody here waits for the splice any more, and the chains are two again only when its patience is over."""
    proxy = Proxy().locked()
    proxy.rig = restarted(proxy, *proxy.keys)
    proxy.rig.wait(LEASE_S + 1)
    proxy.rig.feed(HOST, build_tcp(SERVER, 5001, 7001, ACK, 64240))
    proxy.rig.feed(UNDERLAY, build_tcp(proxy.right_sub.reversed(), 7001, 5001, ACK, 64240))
    own = Change(50, proxy.last, proxy.last, Hops((Hop(address(3)),)), origin="b")
    assert proxy.rig.agent.change(proxy.keys[1], own, proxy.rig.now)
    proxy.rig.agent._life.close(proxy.rig.agent._life.chains[proxy.keys[0]], "reset", proxy.rig.now)
    proxy.moves()
    proxy.tell("c", AckLock(proxy.right_id, 1, 50))
    assert ("locked", "") in proxy.moves()


def close_forward(proxy: Proxy) -> None:
    """The client has closed, and the proxy has read that."""
    proxy.rig.one(UNDERLAY, build_tcp(proxy.left_sub, 1001, 9001, ACK | FIN, 64240))
    proxy.rig.one(HOST, build_tcp(CLIENT.reversed(), 9001, 1002, ACK, 64240))


def pass_on(proxy: Proxy) -> None:
    """The proxy closes its other side, too."""
    proxy.rig.one(HOST, build_tcp(SERVER, 5001, 7001, ACK | FIN, 64240))
    proxy.rig.one(UNDERLAY, build_tcp(proxy.right_sub.reversed(), 7001, 5002, ACK, 64240))


def test_a_proxy_that_has_not_passed_an_end_on_is_not_taken_out() -> None:
    proxy = Proxy()
    close_forward(proxy)
    assert proxy.splice() == []
    reason = "not ready: one side has closed, and the proxy has not passed that on"
    assert proxy.moves() == [("refused", reason)]


def test_a_direction_that_has_ended_before_is_not_ended_again() -> None:
    proxy = Proxy()
    close_forward(proxy)
    pass_on(proxy)
    proxy.locked()
    assert proxy.leave() == [(SERVER.reversed(), ACK | FIN, 7001, 5002)]
    # The right socket has closed before; the left one answers what it hears of the other direction.
    [last] = [read(out) for out in proxy.from_proxy(CLIENT.reversed(), 9001, 1002, ACK | FIN)]
    assert (last.flags, last.seq, last.ack) == (ACK, 1002, 9002)
    proxy.rig.wait(LINGER_S + 0.1)
    assert proxy.closed() == ["moved"] * 2


def test_a_session_that_is_over_has_no_proxy_to_take_out() -> None:
    proxy = Proxy()
    close_forward(proxy)
    proxy.rig.one(HOST, build_tcp(CLIENT.reversed(), 9001, 1002, ACK | FIN, 64240))
    assert proxy.splice() == []
    assert proxy.moves() == [("refused", "the session is not established")]


def test_an_anchor_is_no_proxys_host_at_the_same_time() -> None:
    proxy = Proxy()
    mine = Change(51, proxy.first, proxy.first, Hops((Hop(address(2)),)), origin="a")
    proxy.tell("a", RequestLock(LEFT_ID, 1, mine, "a"))
    assert proxy.splice() == []
    assert proxy.moves() == [("locked", ""), ("refused", "busy")]


def test_an_end_of_which_one_half_was_lost_is_asked_for_after_a_restart() -> None:
    """What both sides hold is not known, so the proxy may not be empty."""
    proxy = Proxy().locked()
    proxy.tell("a", proxy.done("a"))
    proxy.rig = restarted(proxy, *proxy.keys)
    proxy.rig.wait(LEASE_S + 1)
    question = OldDone(proxy.right_id, 1, REQUEST, True, proxy.last, waiting=True)
    assert [(to, one) for to, one in proxy.said() if isinstance(one, OldDone)] == [("c", question)]


def test_a_lock_that_has_lapsed_is_back_with_the_first_end_that_is_told() -> None:
    proxy = Proxy().locked()
    proxy.rig.wait(LEASE_S + 1)
    assert proxy.tell("a", proxy.done("a")) == [("c", replace(proxy.done("a"), chain_id=proxy.right_id))]
    proxy.rig.agent.receive_message("c", proxy.done("c"), proxy.rig.now)
    assert [read(packet).flags for port, packet in proxy.rig.take() if port == HOST] == [ACK | FIN] * 2
