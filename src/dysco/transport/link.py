"""A link: one association with its socket, the exchange of Hello over it, and what is known of its life.

Knows associations, sockets and the messages that belong to the channel itself. Must not know which of a
peer's links is used: that is decided in channel.py.

    handshake ----> up ----> greeted (Hello received) ----> ready (any other message received: the peer has
                                                            our Hello, and accepts our key)

A Hello is repeated, 200 ms doubling, until the link is ready; each Hello is answered by a Keepalive.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from typing import Final

from dysco.transport import records
from dysco.transport.association import Association, State
from dysco.transport.mtu import LEAST_V4, LEAST_V6, Search
from dysco.transport.sockets import Endpoint, ip_udp_length
from dysco.wire.messages import Hello

# Largest datagram that many messages are packed into, whatever the path carries.
DATAGRAM_LIMIT: Final = 1200
_HELLO_FIRST_S: Final = 0.2
_HELLO_LAST_S: Final = 2.0


class Link:
    """One association on one path; a socket that it `owns` belongs to it alone and is closed with it."""

    __slots__ = (
        "association",
        "began_at",
        "confirmed",
        "counters",
        "expected",
        "heard_at",
        "hello",
        "hello_at",
        "hello_pause_s",
        "owns",
        "peer",
        "ready_at",
        "refused_size",
        "released",
        "remote",
        "retired_at",
        "room",
        "search",
        "sent_at",
        "socket",
        "timer",
    )

    def __init__(
        self,
        association: Association,
        opened: socket.socket,
        remote: Endpoint,
        counters: Counter[str],
        now: float,
        *,
        owns: bool,
    ) -> None:
        """Begin with an association in its handshake."""
        self.association = association
        self.socket = opened
        self.remote = remote
        self.owns = owns
        self.counters = counters
        self.peer: str | None = None
        self.expected: bytes = b""  # the random bytes of the ClientHello that a server's link began with
        self.began_at = now
        self.heard_at = now
        self.sent_at = now
        self.ready_at: float | None = None
        self.retired_at: float | None = None
        self.hello: Hello | None = None
        self.hello_at: float | None = None
        self.hello_pause_s = _HELLO_FIRST_S
        self.confirmed = False
        self.released = False
        self.search: Search | None = None
        self.refused_size = False
        self.room = 0  # bytes of plaintext that a datagram has room for
        self.fit(LEAST_V6 if ":" in remote[0] else LEAST_V4)
        self.timer: asyncio.TimerHandle | None = None

    @property
    def up(self) -> bool:
        return self.association.state is State.UP

    @property
    def ready(self) -> bool:
        return self.up and self.hello is not None and self.confirmed

    def fit(self, mtu: int) -> None:
        """Pack no more into a datagram than IP packets of `mtu` bytes carry."""
        self.room = min(DATAGRAM_LIMIT, mtu - ip_udp_length(self.remote[0])) - records.RECORD_OVERHEAD

    def send(self, plaintext: bytes, now: float) -> None:
        """Send a protected datagram; it is lost if the link is not up or the kernel does not take it."""
        if self.up:
            self.association.send(plaintext)
            self.sent_at = now
            self.transmit()

    def transmit(self) -> None:
        """Hand to the kernel what the association wants sent; what it does not take is lost and counted."""
        self.refused_size = False
        for datagram in self.association.outgoing():
            try:
                self.socket.sendto(datagram, self.remote)
            except BlockingIOError:
                self.counters["lost_buffer_full"] += 1
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    self.refused_size = True
                else:
                    self.counters["lost_send_error"] += 1
            else:
                self.counters["datagrams_out"] += 1
                self.counters["bytes_out"] += len(datagram)

    def hello_due(self, now: float) -> bool:
        """Tell whether the Hello is to be sent (again), and note that it was."""
        if self.confirmed or self.hello_at is None or now < self.hello_at:
            return False
        self.hello_at = now + self.hello_pause_s
        self.hello_pause_s = min(2 * self.hello_pause_s, _HELLO_LAST_S)
        return True

    def close(self) -> None:
        """End the association, telling the peer, and the socket if it belongs to this link."""
        self.association.close()
        self.release()

    def release(self) -> None:
        """Send what is left, and let go of the timer and the socket."""
        if self.released:
            return
        self.released = True
        self.transmit()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.owns:
            self.socket.close()
