"""One DTLS association between two agents, without socket and without clock: datagrams in, datagrams out.

Knows OpenSSL through memory BIOs, and the time that it is handed. Must not know sockets, addresses or
messages.

A server's association begins only after the cookie has come back (Listener): until then nothing is kept and
the answer is smaller than the question.

Lost flights are repeated by this layer on the caller's monotonic clock, 200 ms doubling, by sending what
OpenSSL wrote once more. (OpenSSL's own timer starts at a second and runs on the wall clock, which may be
stepped by years.) Records in clear get new sequence numbers each time, as RFC 6347, 4.2.4 wants it: a
receiver notes the number of a ChangeCipherSpec that came too early, throws it away, and would take the same
number for a replay for ever. Protected ones cannot be numbered anew and need it not: one that comes too
early is kept. The last flight of a handshake has no timer: the server repeats it when the client repeats
the flight before.
"""

from __future__ import annotations

import hmac
import secrets
from enum import Enum
from typing import Final

from OpenSSL import SSL

from dysco.errors import LocalError
from dysco.transport import records
from dysco.transport.identity import Handshake, Identity

# RFC 5705; our label, registered nowhere, as section 4 of it allows with this prefix.
EXPORTER_LABEL: Final = b"EXPORTER-dysco-syn"
KEY_LEN: Final = 32

# Largest datagram of a handshake: with DF it must pass every path of IPv4, 576 bytes with its headers (RFC
# 791).
HANDSHAKE_DATAGRAM: Final = 576 - 28
FIRST_REPEAT_S: Final = 0.2
LAST_REPEAT_S: Final = 2.0
HANDSHAKE_LIMIT_S: Final = 8.0
# A repeated flight is answered at most this often, so that echoes of it cannot be multiplied.
_ANSWER_PAUSE_S: Final = 0.1
COOKIE_LIFE_S: Final = 60.0
_COOKIE_LEN: Final = 16


class State(Enum):
    HANDSHAKE = "handshake"
    UP = "up"
    CLOSED = "closed"


class Association:
    """Either end of a DTLS association.

    The caller hands in datagrams and the time, sends what `outgoing` gives, and calls `handle_deadline` when
    `next_deadline` has come. `reason` says why a closed association is closed.
    """

    __slots__ = (
        "_answered_at",
        "_connection",
        "_expires_at",
        "_flight",
        "_handshake",
        "_number",
        "_out",
        "_pause",
        "_repeat_at",
        "client",
        "ignored",
        "peer",
        "reason",
        "receive_key",
        "send_key",
        "state",
    )

    def __init__(
        self,
        connection: SSL.Connection,
        handshake: Handshake,
        now: float,
        *,
        client: bool,
        limit_s: float = HANDSHAKE_LIMIT_S,
    ) -> None:
        """Take over a connection at the beginning of its handshake; see `connect` and `Listener`."""
        self.client = client
        self.state = State.HANDSHAKE
        self.peer: str | None = None
        self.reason: str | None = None
        self.send_key = b""
        self.receive_key = b""
        self.ignored = 0
        self._connection = connection
        self._handshake = handshake
        self._out: list[bytes] = []
        self._flight = b""
        self._number: int | None = None
        self._pause = FIRST_REPEAT_S
        self._repeat_at: float | None = None
        self._expires_at = now + limit_s
        self._answered_at = now
        self._advance(now)

    @classmethod
    def connect(
        cls, identity: Identity, peer: str, now: float, limit_s: float = HANDSHAKE_LIMIT_S
    ) -> Association:
        """Begin a handshake as client with the peer of that name, and no other."""
        connection, handshake = _connection(identity, frozenset((peer,)))
        connection.set_connect_state()
        return cls(connection, handshake, now, client=True, limit_s=limit_s)

    def receive(self, datagram: bytes, now: float) -> list[bytes]:
        """Take a datagram whose header is sane, give the plaintexts that it carried."""
        if self.state is State.CLOSED:
            return []
        if records.epoch(datagram) == 0:
            if datagram[0] == records.ALERT:
                # Anyone could have written it. If it is true, the handshake will time out.
                self.ignored += 1
                return []
            if self.state is State.UP:
                self._answer_repetition(now)
                return []
        self._connection.bio_write(datagram)
        if self.state is State.HANDSHAKE:
            self._advance(now)
        return self._read() if self.state is State.UP else []

    def send(self, plaintext: bytes) -> None:
        """Protect one message of at most 16,384 bytes as one datagram; raises LocalError unless up."""
        if self.state is not State.UP:
            raise LocalError(f"association is {self.state.value}")
        self._connection.send(plaintext)
        self._out.append(self._written())

    def outgoing(self) -> list[bytes]:
        """Give the datagrams to be sent now, and forget them."""
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """Tell when `handle_deadline` wants to be called, if ever."""
        if self.state is not State.HANDSHAKE:
            return None
        return self._expires_at if self._repeat_at is None else min(self._repeat_at, self._expires_at)

    def handle_deadline(self, now: float) -> None:
        """Repeat the last flight if that is due; give up after its limit."""
        if self.state is not State.HANDSHAKE:
            return
        if now >= self._expires_at:
            self._end("handshake timed out")
        elif self._repeat_at is not None and now >= self._repeat_at:
            self._pause = min(2 * self._pause, LAST_REPEAT_S)
            self._repeat_at = now + self._pause
            self._send_flight()

    def close(self) -> None:
        """Tell the peer, if there is one, and end."""
        if self.state is State.UP:
            try:
                self._connection.shutdown()
                self._out += records.pack(self._written(), HANDSHAKE_DATAGRAM)
            except SSL.Error:
                self.ignored += 1
        self._end("closed here")

    def _advance(self, now: float) -> None:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._keep_flight(now)
        except SSL.Error as error:
            self._keep_flight(now)
            self._end(self._handshake.refusal or f"handshake failed: {_why(error)}")
        else:
            self._keep_flight(now)
            self._complete()

    def _keep_flight(self, now: float) -> None:
        written = self._written()
        if written:
            self._flight = written
            self._send_flight()
            self._pause = FIRST_REPEAT_S
            self._repeat_at = now + self._pause

    def _complete(self) -> None:
        peer = self._handshake.peer
        if peer is None or peer not in self._handshake.accepts:
            # The verify callback refuses these already; without a name there is no association.
            self._end("peer has not proved a name")
            return
        material = self._connection.export_keying_material(EXPORTER_LABEL, 2 * KEY_LEN)
        from_client, from_server = material[:KEY_LEN], material[KEY_LEN:]
        self.send_key, self.receive_key = (
            (from_client, from_server) if self.client else (from_server, from_client)
        )
        self.peer = peer
        self.state = State.UP
        self._repeat_at = None
        if self.client:
            self._flight = b""

    def _answer_repetition(self, now: float) -> None:
        if self._flight and now >= self._answered_at + _ANSWER_PAUSE_S:
            self._answered_at = now
            self._send_flight()

    def _send_flight(self) -> None:
        if self._number is None:
            # A server begins with the number of the hello that brought the cookie (RFC 6347, 4.2.1).
            self._number = records.number_of(self._flight)
        numbered, self._number = records.renumber(self._flight, self._number)
        self._out += records.pack(numbered, HANDSHAKE_DATAGRAM)

    def _read(self) -> list[bytes]:
        plaintexts: list[bytes] = []
        try:
            while True:
                plaintexts.append(self._connection.recv(records.RECORD_LIMIT))
        except SSL.WantReadError:
            if plaintexts:
                self._flight = b""  # the client has what it needs
            else:
                self.ignored += 1
        except SSL.ZeroReturnError:
            self._end("closed by the peer")
        except SSL.Error as error:
            self._end(f"broken: {_why(error)}")
        written = self._written()
        if written:
            self._out += records.pack(written, HANDSHAKE_DATAGRAM)
        return plaintexts

    def _written(self) -> bytes:
        return _drain(self._connection)

    def _end(self, reason: str) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.reason = reason
            self._flight = b""


class Listener:
    """The stateless half of a server: answers ClientHellos with cookies, and makes associations of proved
    ones."""

    def __init__(self, identity: Identity, now: float, limit_s: float = HANDSHAKE_LIMIT_S) -> None:
        """Begin with a secret of its own; cookies live for one to two minutes."""
        self._limit_s = limit_s
        self._identity = identity
        self._secrets = [secrets.token_bytes(32)]
        self._rotated_at = now
        self._spare: tuple[SSL.Connection, Handshake] | None = None

    def proved(self, hello: bytes, source: bytes, now: float) -> bool:
        """Tell whether a ClientHello carries a cookie that was given to `source`; cheap."""
        cookie = records.cookie(hello)
        return len(cookie) == _COOKIE_LEN and any(
            hmac.compare_digest(cookie, good) for good in self._cookies(source, now)
        )

    def receive(
        self, hello: bytes, source: bytes, accepts: frozenset[str], now: float
    ) -> tuple[list[bytes], Association | None]:
        """Take a ClientHello from `source` (address and port as bytes).

        Gives the datagrams to answer with, or the association that begins for one of the peers that are
        accepted from there. The answer to a hello without a cookie is smaller than the hello.
        """
        if self._spare is None:
            connection, handshake = _connection(self._identity, accepts)
            connection.set_accept_state()
        else:
            connection, handshake = self._spare
            handshake.accepts = accepts
        self._spare = (connection, handshake)
        handshake.cookies = self._cookies(source, now)
        connection.bio_write(hello)
        try:
            connection.DTLSv1_listen()
        except SSL.WantReadError:
            answer = _drain(connection)
            return ([answer] if answer and len(answer) <= len(hello) else []), None
        except SSL.Error:
            self._spare = None
            return [], None
        self._spare = None
        return [], Association(connection, handshake, now, client=False, limit_s=self._limit_s)

    def _cookies(self, source: bytes, now: float) -> tuple[bytes, ...]:
        if now >= self._rotated_at + COOKIE_LIFE_S:
            # After a long silence the one before is too old as well.
            kept = self._secrets[:1] if now < self._rotated_at + 2 * COOKIE_LIFE_S else []
            self._secrets = [secrets.token_bytes(32), *kept]
            self._rotated_at = now
        return tuple(hmac.digest(secret, source, "sha256")[:_COOKIE_LEN] for secret in self._secrets)


def _connection(identity: Identity, accepts: frozenset[str]) -> tuple[SSL.Connection, Handshake]:
    connection = SSL.Connection(identity.context, None)
    handshake = Handshake(accepts)
    connection.set_app_data(handshake)
    connection.set_ciphertext_mtu(HANDSHAKE_DATAGRAM)
    return connection, handshake


def _drain(connection: SSL.Connection) -> bytes:
    parts: list[bytes] = []
    try:
        while True:
            parts.append(connection.bio_read(records.RECORD_LIMIT + records.RECORD_OVERHEAD))
    except SSL.WantReadError:
        return b"".join(parts)


def _why(error: SSL.Error) -> str:
    first = error.args[0] if error.args else None
    if isinstance(first, list) and first:
        return str(first[0][-1])
    return str(error) or type(error).__name__
