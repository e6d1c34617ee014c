"""The switchboard: all sockets of a channel, and which link a datagram that arrives belongs to.

Knows sockets, links in their handshake, and the gate before them. Must not know peers' states or messages:
the channel, its owner, is told of plaintexts and of links that have ended. A datagram is looked at from the
cheap to the dear: the link of its address and port, or a configured address; a sane header; for a hello the
gate; then OpenSSL.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from dysco.transport import records, sockets
from dysco.transport.association import Association, State
from dysco.transport.gate import Gate
from dysco.transport.identity import Identity
from dysco.transport.link import Link
from dysco.transport.settings import ChannelSettings, PeerSettings

# Datagrams that one socket may hand over before the other callbacks of the loop get their turn.
_BATCH: Final = 64


class Owner(Protocol):
    """Whom the switchboard tells."""

    def listens_to(self, names: frozenset[str], now: float) -> bool:
        """Tell whether a call from one of these peers is wanted now."""

    def called_by(self, names: frozenset[str], own: str, now: float) -> None:
        """One of these peers calls, and has proved its address; own: the one here that it calls."""

    def arrived(self, link: Link, before: State, plaintexts: list[bytes], now: float) -> None:
        """An association has taken a datagram; `before` is the state it was in."""

    def ended(self, link: Link, before: State, now: float) -> None:
        """An association has ended by itself."""


class Switchboard:
    """Sockets, readers and the links behind them, while the event loop runs."""

    def __init__(
        self,
        settings: ChannelSettings,
        identity: Identity,
        counters: Counter[str],
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Open the listening sockets; raises ConfigError, PermissionDeniedError or HostError."""
        self._settings = settings
        self._identity = identity
        self._counters = counters
        self._owner = owner
        self._loop = loop
        self._gate = Gate(identity, counters, loop.time(), settings.timing.handshake_s, settings.roaming)
        self._reader = sockets.Reader()
        self.listening: list[socket.socket] = []
        self.served: dict[tuple[int, sockets.Endpoint], list[Link]] = {}
        self.half_open: set[Link] = set()
        try:
            for address in settings.addresses:
                self.listening.append(sockets.listen(address, settings.port))
        except BaseException:
            for opened in self.listening:
                opened.close()
            raise
        for opened in self.listening:
            loop.add_reader(opened.fileno(), self.readable, opened)

    def move(self, settings: ChannelSettings) -> None:
        """Listen on further addresses, and call from them; raises what opening does.

        Sockets of addresses that are left stay as long as associations live there.
        """
        heard = {one.getsockname()[0] for one in self.listening}
        for address in settings.addresses:
            if address not in heard:
                opened = sockets.listen(address, settings.port)
                self.listening.append(opened)
                self._loop.add_reader(opened.fileno(), self.readable, opened)
        self._settings = settings
        served = {descriptor for descriptor, _ in self.served}
        for opened in self.listening.copy():
            if opened.getsockname()[0] not in settings.addresses and opened.fileno() not in served:
                self.listening.remove(opened)
                self._loop.remove_reader(opened.fileno())
                opened.close()

    def allow(self, peers: Iterable[PeerSettings]) -> None:
        """Let these peers knock and nobody else."""
        self._gate.allow(peers)

    def call(self, peer: str, remote: sockets.Endpoint, now: float) -> Link:
        """Begin a handshake as client, from a fresh port; raises HostError."""
        opened = sockets.call(remote, self._settings.addresses)
        association = Association.connect(self._identity, peer, now, self._settings.timing.handshake_s)
        link = Link(association, opened, remote, self._counters, now, owns=True)
        self._loop.add_reader(opened.fileno(), self._readable_link, link)
        self.after(link, State.HANDSHAKE, now)
        return link

    def drop(self, link: Link) -> None:
        """End a link, telling its peer, and forget where it is found."""
        if link.released:
            return
        self.half_open.discard(link)
        descriptor = link.socket.fileno()
        if link.owns:
            self._loop.remove_reader(descriptor)
        else:
            key = (descriptor, link.remote)
            links = self.served.get(key, [])
            if link in links:
                links.remove(link)
            if not links:
                self.served.pop(key, None)
        link.close()

    def close(self) -> None:
        """End what is half open, and close the listening sockets."""
        for link in list(self.half_open):
            self.drop(link)
        for opened in self.listening:
            self._loop.remove_reader(opened.fileno())
            opened.close()
        self.listening.clear()

    def readable(self, opened: socket.socket) -> None:
        """Read what has come to a listening socket, a batch of it."""
        now = self._loop.time()
        for _ in range(_BATCH):
            try:
                found = self._reader.read(opened)
            except OSError:
                self._counters["receive_errors"] += 1
                continue
            if found is None:
                return
            self._from_source(opened, found[0], found[1], now)

    def _from_source(
        self, opened: socket.socket, datagram: bytes, source: sockets.Endpoint, now: float
    ) -> None:
        """Find out for whom a datagram is, by checks that cost little, before OpenSSL sees it."""
        links = self.served.get((opened.fileno(), source))
        names = self._gate.names(source[0])
        if links is None and not names:
            self._counters["dropped_unknown_source"] += 1
        elif not records.sane(datagram):
            self._counters["dropped_malformed"] += 1
        elif records.epoch(datagram) == 0 and records.is_client_hello(datagram):
            if names:
                self._client_hello(opened, datagram, source, names, now)
        elif links is None:
            self._counters["dropped_no_association"] += 1
        elif records.epoch(datagram) == 0:
            self._receive(links[-1], datagram, now)
        else:
            for link in tuple(links):
                self._receive(link, datagram, now)

    def _client_hello(
        self,
        opened: socket.socket,
        hello: bytes,
        source: sockets.Endpoint,
        names: frozenset[str],
        now: float,
    ) -> None:
        key = (opened.fileno(), source)
        expected = records.client_random(hello)
        if any(link.expected == expected for link in self.served.get(key, ())):
            self._counters["dropped_repeated_hello"] += 1
            return
        if self._gate.is_named(source[0]) and not self._owner.listens_to(names, now):
            self._counters["dropped_own_call_first"] += 1
            return
        room = len(self.half_open) < self._settings.half_open_limit and (
            sum(link.remote[0] == source[0] for link in self.half_open)
            < self._settings.half_open_source_limit
        )
        answers, association = self._gate.knock(hello, source, names, now, room=room)
        for answer in answers:
            with contextlib.suppress(OSError):
                opened.sendto(answer, source)
                self._counters["cookies_out"] += 1
        if association is None:
            return
        link = Link(association, opened, source, self._counters, now, owns=False)
        link.expected = expected
        self.half_open.add(link)
        self.served.setdefault(key, []).append(link)
        if self._gate.is_named(source[0]):
            self._owner.called_by(names, opened.getsockname()[0], now)
        self.after(link, State.HANDSHAKE, now)

    def _readable_link(self, link: Link) -> None:
        now = self._loop.time()
        for _ in range(_BATCH):
            if link.socket.fileno() < 0:
                return
            try:
                found = self._reader.read(link.socket)
            except OSError:
                # An ICMP error that anyone may have forged; the time-outs decide.
                self._counters["receive_errors"] += 1
                continue
            if found is None:
                return
            if found[1] != link.remote:
                self._counters["dropped_other_source"] += 1
            elif records.sane(found[0]):
                self._receive(link, found[0], now)
            else:
                self._counters["dropped_malformed"] += 1

    def _receive(self, link: Link, datagram: bytes, now: float) -> None:
        before, ignored = link.association.state, link.association.ignored
        plaintexts = link.association.receive(datagram, now)
        if link.association.ignored != ignored:
            self._counters["dropped_not_authentic"] += 1
        if link.up:
            self.half_open.discard(link)
        self._owner.arrived(link, before, plaintexts, now)
        self.after(link, before, now)

    def after(self, link: Link, before: State, now: float) -> None:
        """Send what the association has to say, notice its end, and arm its timer while it is in
        handshake."""
        if link.released:
            return
        if link.association.state is State.CLOSED:
            self._owner.ended(link, before, now)
            return
        link.transmit()
        deadline = link.association.next_deadline()
        if link.timer is not None:
            link.timer.cancel()
            link.timer = None
        if deadline is not None:
            link.timer = self._loop.call_at(deadline, self._handshake_deadline, link)

    def _handshake_deadline(self, link: Link) -> None:
        now = self._loop.time()
        link.timer = None
        link.association.handle_deadline(now)
        self.after(link, State.HANDSHAKE, now)
