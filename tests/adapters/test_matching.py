"""Which sockets of one process belong together: first bytes, where the agent has seen them."""

from __future__ import annotations

import socket

from dysco.adapters.matching import Matching
from dysco.adapters.preambles import Heads
from dysco.adapters.sockets import ESTABLISHED, Socket
from dysco.wire.tuples import FiveTuple

PROXY = socket.inet_aton("10.0.0.9")


def client(number: int) -> FiveTuple:
    return FiveTuple.of(socket.inet_aton("10.0.0.1"), 40000 + number, PROXY, 1080)


def server(number: int) -> FiveTuple:
    return FiveTuple.of(PROXY, 50000 + number, socket.inet_aton("10.0.0.4"), 80)


class Process:
    """Sockets that move all the time, so that counts say nothing, and the first bytes that were seen of each."""

    def __init__(self) -> None:
        self.sockets: dict[int, Socket] = {}
        self.heads: dict[FiveTuple, Heads] = {}
        self.matching = Matching()

    def left(self, number: int, heads: Heads | None) -> None:
        self._add(2 * number, client(number).reversed(), opened=False, heads=heads)

    def right(self, number: int, heads: Heads | None) -> None:
        self._add(2 * number + 1, server(number), opened=True, heads=heads)

    def _add(self, inode: int, tuple_: FiveTuple, *, opened: bool, heads: Heads | None) -> None:
        one = Socket(inode, tuple_, ESTABLISHED, 0, 0, 1, 1, True, opened, b"")
        self.sockets[inode] = one
        if heads is not None:
            self.heads[one.session] = heads

    def partners(self) -> dict[int, int]:
        found = self.matching.observe(self.sockets, self.sockets, self.heads)
        return {left // 2: right // 2 for left, right in found.items()}


def begin(number: int, size: int = 300) -> bytes:
    """What sessions say that begin alike and go on differently."""
    return (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" + number.to_bytes(4, "big") * 300)[:size]


def test_sessions_are_told_apart_by_what_they_begin_with() -> None:
    process = Process()
    for number in range(50):
        process.left(number, Heads(begin(number), b""))
        process.right(number, Heads(begin(number), b""))
    assert process.partners() == {number: number for number in range(50)}


def test_what_a_proxy_took_off_or_put_before_does_not_matter() -> None:
    process = Process()
    request = b"CONNECT 10.0.0.4:80 HTTP/1.1\r\n\r\n"
    for number in range(3):
        process.left(number, Heads(request + begin(number), b"HTTP/1.1 200 OK\r\n\r\nhi"))
        process.right(number, Heads(begin(number), b"hi"))
    for number in range(3, 6):
        process.left(number, Heads(begin(number), b""))
        process.right(number, Heads(b"PROXY TCP4 10.0.0.1 10.0.0.9 4 5\r\n" + begin(number), b""))
    assert process.partners() == {number: number for number in range(6)}


def test_those_that_begin_alike_are_left_alone() -> None:
    process = Process()
    for number in range(3):
        process.left(number, Heads(begin(7), b""))
        process.right(number, Heads(begin(7), b""))
    assert process.partners() == {}


def test_a_partner_that_is_not_there_yet_is_not_replaced_by_another_one() -> None:
    process = Process()
    for number in range(2):
        process.left(number, Heads(begin(7), b""))
    process.right(0, Heads(begin(7), b""))
    process.right(1, Heads(b"", b""))
    assert process.partners() == {}


def test_first_bytes_alone_are_not_enough_where_some_were_not_seen() -> None:
    process = Process()
    process.left(0, Heads(begin(7), b""))
    process.left(1, None)
    process.right(0, Heads(begin(7), b""))
    process.right(1, Heads(begin(8), b""))
    assert process.partners() == {}


def test_a_few_bytes_are_an_accident() -> None:
    process = Process()
    for number in range(2):
        process.left(number, Heads(begin(number, 15), b""))
        process.right(number, Heads(bytes((number,)) * 15, b""))
    assert process.partners() == {}


def test_a_longer_beginning_is_found_by_what_has_come_already() -> None:
    """The server's side lags behind: what is there must still be nobody else's."""
    process = Process()
    for number in range(4):
        process.left(number, Heads(begin(number, 1000), b""))
        process.right(number, Heads(begin(number, 70 + 100 * number), b""))
    assert process.partners() == {number: number for number in range(4)}
