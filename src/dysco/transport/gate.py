"""The gate before every server's association: who may knock, how often, and who has proved an address.

Knows the addresses that the configuration names, ClientHellos and cookies. Must not know sockets, or what
becomes of an association. Nothing is kept for a knock but the level of two buckets for each named address.

A hello whose cookie is good comes from the address that it says, so it has a bucket that nobody else can
empty. Hellos without one are answered statelessly and have a wider bucket; a flood with a forged address
that empties it keeps that peer from calling us, and not us from calling the peer.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Final

from dysco.transport import sockets
from dysco.transport.association import Association, Listener
from dysco.transport.identity import Identity
from dysco.transport.settings import PeerSettings

UNPROVED_PER_S: Final = 200.0
PROVED_PER_S: Final = 10.0
_BURST_S: Final = 2.0


class Bucket:
    """A token bucket: `rate` a second on average, two seconds' worth at once."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        """Begin full."""
        self._rate = rate
        self._tokens = _BURST_S * rate
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        self._tokens = min(_BURST_S * self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Gate:
    """Answers ClientHellos, or makes associations of them."""

    def __init__(
        self,
        identity: Identity,
        counters: Counter[str],
        now: float,
        limit_s: float,
        roaming: Iterable[str] = (),
    ) -> None:
        """Begin without any address that may knock; `counters` are the channel's. Handshakes end after
        `limit_s`. From the networks `roaming` any peer may knock, for its certificate tells who it is."""
        self._listener = Listener(identity, now, limit_s)
        self._counters = counters
        self._sources: dict[str, frozenset[str]] = {}
        self._buckets: dict[tuple[str, bool], Bucket] = {}
        self._roaming = tuple(map(ipaddress.ip_network, roaming))
        self._all: frozenset[str] = frozenset()

    def allow(self, peers: Iterable[PeerSettings]) -> None:
        """Let these peers knock, from their addresses, and nobody else."""
        sources: dict[str, set[str]] = {}
        for peer in peers:
            for address in peer.addresses:
                sources.setdefault(str(ipaddress.ip_address(address)), set()).add(peer.name)
        self._all = frozenset(name for names in sources.values() for name in names)
        self._sources = {address: frozenset(names) for address, names in sources.items()}
        self._buckets = {
            key: level for key, level in self._buckets.items() if not key[0] or key[0] in sources
        }

    def names(self, source: str) -> frozenset[str]:
        """Tell which peers may be behind an address; none: it gets no answer."""
        return self._sources.get(source) or (self._all if self._roams(source) else frozenset())

    def is_named(self, source: str) -> bool:
        """Tell whether the configuration names an address."""
        return source in self._sources

    def _roams(self, source: str) -> bool:
        return bool(self._roaming) and any(ipaddress.ip_address(source) in one for one in self._roaming)

    def knock(
        self, hello: bytes, source: sockets.Endpoint, names: frozenset[str], now: float, *, room: bool
    ) -> tuple[list[bytes], Association | None]:
        """Take a ClientHello from an address that `names` knows: gives the answer to send back, smaller than the
        hello, or an association.

        Without `room` no association begins.
        """
        address = sockets.packed(source)
        proved = self._listener.proved(hello, address, now)
        # Addresses that nobody has named share one: there may be any number of them.
        key = (source[0] if self.is_named(source[0]) else "", proved)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(PROVED_PER_S if proved else UNPROVED_PER_S, now)
        if not bucket.take(now):
            self._counters["dropped_hello_rate"] += 1
            return [], None
        if proved and not room:
            self._counters["dropped_half_open_full"] += 1
            return [], None
        return self._listener.receive(hello, address, names, now)
