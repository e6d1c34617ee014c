"""What the kernel says of sockets: bytes without SYN and FIN, in every state of a session, for both families."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from dysco.adapters.sockets import (
    CLOSE_WAIT,
    ESTABLISHED,
    FIN_WAIT2,
    Socket,
    Sockets,
    holders,
    inodes,
    with_children,
)
from dysco.wire.tuples import FiveTuple


class Ends(NamedTuple):
    client: socket.socket
    server: socket.socket


@pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """A session on loopback; the last kind has an IPv6 socket at the server and IPv4 on the wire."""
    host = request.param
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        if host.startswith("::ffff:"):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::", 0))
        else:
            listener.bind((host, 0))
        listener.listen()
        client = socket.create_connection((host.removeprefix("::ffff:"), listener.getsockname()[1]))
        server, _ = listener.accept()
        with client, server:
            yield Ends(client, server)


def of(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def look(one: socket.socket) -> Socket:
    """What the kernel says of a socket as soon as its peer has acknowledged all; on loopback that is at once."""
    end = time.monotonic() + 30.0
    with Sockets() as kernel:
        while True:
            found = kernel.connected()[of(one)]
            if found.sure and not found.unacked and kernel.again(found) == found:
                return found
            assert time.monotonic() < end, found


def test_bytes(ends: Ends) -> None:
    ends.client.sendall(b"x" * 1000)
    assert ends.server.recv(600, socket.MSG_WAITALL) == b"x" * 600
    client, server = look(ends.client), look(ends.server)
    assert (client.state, client.written, client.read, client.unread, client.opened) == (
        ESTABLISHED,
        1000,
        0,
        0,
        True,
    )
    assert (server.state, server.written, server.read, server.unread, server.opened) == (
        ESTABLISHED,
        0,
        600,
        400,
        False,
    )
    assert client.tuple == server.tuple.reversed() == client.session == server.session
    host, port = ends.client.getsockname()[:2]
    assert (client.tuple.sport, client.tuple.family) == (port, 6 if ":" in host else 4)
    assert not server.still
    assert client.still


def test_fins_are_no_bytes(ends: Ends) -> None:
    ends.client.sendall(b"x" * 10)
    ends.client.shutdown(socket.SHUT_WR)
    ends.server.sendall(b"y" * 20)
    assert ends.client.recv(20, socket.MSG_WAITALL) == b"y" * 20
    client, server = look(ends.client), look(ends.server)
    assert (client.state, client.written, client.read, client.opened) == (FIN_WAIT2, 10, 20, True)
    # The FIN waits behind the ten bytes.
    assert (server.state, server.written, server.read, server.unread) == (CLOSE_WAIT, 20, 0, 10)
    assert ends.server.recv(10, socket.MSG_WAITALL) == b"x" * 10
    assert look(ends.server)[3:6] == (10, 20, 0)
    assert ends.server.recv(10) == b""
    assert look(ends.server)[3:6] == (10, 20, 0)


def test_what_waits_to_be_acknowledged(ends: Ends) -> None:
    """A peer that does not read: what the program has written counts, wherever it is."""
    ends.client.setblocking(False)
    written = 0
    while True:
        try:
            written += ends.client.send(b"z" * 65536)
        except BlockingIOError:
            break
    end = time.monotonic() + 30.0
    with Sockets() as kernel:
        one = kernel.connected()[of(ends.client)]
        while not one.sure:
            one = kernel.connected()[of(ends.client)]
            assert time.monotonic() < end
    assert one.written == written
    assert one.unacked > 0
    assert not one.still


def test_who_listens_and_who_holds(ends: Ends) -> None:
    port = ends.server.getsockname()[1]
    with Sockets() as kernel:
        (inode,) = {inode for _, listened, inode in kernel.listening() if listened == port}
    assert os.getpid() in holders({inode})
    assert of(ends.client) in inodes(os.getpid()).values()
    assert inodes(2**22 + 1) == {}
    assert os.getpid() in with_children(os.getppid())


def test_a_session_that_is_over(ends: Ends) -> None:
    one = look(ends.client)
    ends.server.close()
    ends.client.close()
    with Sockets() as kernel:
        assert kernel.again(one) is None
        strange = FiveTuple.parse("192.0.2.1:1 > 192.0.2.2:2")
        assert kernel.again(one._replace(tuple=strange)) is None
