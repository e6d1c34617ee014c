"""What the core knows of its neighbours: associations, keys, counters, path MTU, ports, and whether to avoid them.

An association gives a key for each direction. A chain header is signed with the one and checked with the
other. A peer may use a new key a moment before it is known here that the association is the one in use, so
keys are accepted as soon as there is one; those before are good for two minutes more, for SYNs under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from dysco.protocol.ports import PortPool
from dysco.protocol.replay import ReplayWindow
from dysco.protocol.settings import Peer, Settings
from dysco.wire import chain_header
from dysco.wire.messages import Hello
from dysco.wire.tuples import FiveTuple

OLD_KEY_S: Final = 120.0
MOST_KEYS: Final = 8
LEARNT_MTU_S: Final = 600.0
FLOOR_MTU: Final = {4: 576, 16: 1280}
KEY_LEN: Final = 32
SELF: Final = ""


class Neighbour:
    """One peer, or this agent itself as its own neighbour (then `up` for ever, with a key that nobody knows).

    moved_to: the address, by its length, to which it has moved; what the configuration names does not reach it.
    """

    __slots__ = (
        "_accepted",
        "_budget",
        "_budget_at",
        "_learnt_mtu",
        "_learnt_until",
        "avoid_until",
        "counter",
        "hello",
        "moved_to",
        "peer",
        "probed_mtu",
        "send_key",
        "up",
    )

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.up = False
        self.hello: Hello | None = None
        self.moved_to: dict[int, bytes] = {}
        self.send_key = b""
        self.counter = 0
        self._accepted: dict[bytes, tuple[ReplayWindow, float]] = {}
        self.avoid_until = 0.0
        self.probed_mtu: int | None = None
        self._learnt_mtu = 0
        self._learnt_until = 0.0
        self._budget = 0.0
        self._budget_at = 0.0

    def accept(self, receive_key: bytes, now: float) -> None:
        """Accept a key that the peer may use soon, or never; one that is known keeps its replay window."""
        window, until = self._accepted.pop(receive_key, (ReplayWindow(), 0.0))
        self._accepted = {key: entry for key, entry in self._accepted.items() if now < entry[1]}
        if len(self._accepted) >= MOST_KEYS:
            # The one that expires first; the key in use never does.
            del self._accepted[min(self._accepted, key=lambda key: self._accepted[key][1])]
        self._accepted[receive_key] = (window, max(until, now + OLD_KEY_S))

    def associate(self, hello: Hello, send_key: bytes, receive_key: bytes, now: float) -> None:
        """Take the keys of the association in use; others expire. The counter goes on: keys may come back."""
        self.hello = hello
        self.up = True
        self.send_key = send_key
        self.accept(receive_key, now)
        for key, (window, until) in self._accepted.items():
            expires = math.inf if key == receive_key else min(until, now + OLD_KEY_S)
            self._accepted[key] = (window, expires)

    def next_counter(self) -> int:
        """The counter of the next chain header to this neighbour."""
        self.counter += 1
        return self.counter

    def window_of(self, payload: bytes, now: float) -> ReplayWindow | None:
        """The replay window of the key that signed a chain header; None if no key of ours did."""
        for key, (window, until) in reversed(self._accepted.items()):
            if now < until and chain_header.verify(payload, key):
                return window
        return None

    def mtu(self, now: float, default: int) -> int:
        """The largest IP packet in bytes that is known to reach this neighbour."""
        known = [default, *(m for m in (self.peer.mtu, self.probed_mtu) if m is not None)]
        if now < self._learnt_until:
            known.append(self._learnt_mtu)
        return min(known)

    def learn_mtu(self, mtu: int, address: bytes, now: float) -> None:
        """Believe an ICMP error for ten minutes, but nothing below what every path must carry."""
        self._learnt_mtu = max(mtu, FLOOR_MTU[len(address)])
        self._learnt_until = now + LEARNT_MTU_S

    def admit(self, rate: int, now: float) -> bool:
        """Whether this neighbour may begin one more chain now; a token bucket of one second's depth."""
        self._budget = min(float(rate), self._budget + (now - self._budget_at) * rate)
        self._budget_at = now
        if self._budget < 1:
            return False
        self._budget -= 1
        return True


class Neighbours:
    """All neighbours by name and by address, and the ports toward each of their addresses."""

    def __init__(self, settings: Settings, rng: Callable[[int], bytes]) -> None:
        self._rng = rng
        self._pools: dict[bytes, PortPool] = {}
        self.by_name: dict[str, Neighbour] = {}
        self._by_address: dict[bytes, Neighbour] = {}
        myself = Neighbour(Peer(SELF, settings.addresses, next_hops=None))
        key = rng(KEY_LEN)
        myself.associate(Hello(name=settings.name, port_range=settings.port_range), key, key, 0.0)
        self.by_name[SELF] = myself
        self._by_address.update(dict.fromkeys(settings.addresses, myself))
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take changed settings; associations of peers that stay are kept."""
        self.settings = settings
        wanted = {peer.name: peer for peer in settings.peers}
        for name in [name for name in self.by_name if name != SELF and name not in wanted]:
            del self.by_name[name]
        for name, peer in wanted.items():
            self.by_name.setdefault(name, Neighbour(peer)).peer = peer
        self._by_address = dict.fromkeys(settings.addresses, self.by_name[SELF])
        for neighbour in self.by_name.values():
            self._by_address.update(dict.fromkeys(neighbour.peer.addresses, neighbour))
        for neighbour in self.by_name.values():
            for address in neighbour.moved_to.values():
                self._by_address.setdefault(address, neighbour)

    def moved(self, name: str, addresses: Iterable[bytes]) -> bool:
        """Reach a peer at other addresses from now on; False if that changes nothing. None may be another's."""
        neighbour = self.by_name[name]
        before = dict(neighbour.moved_to)
        for address in addresses:
            if self._by_address.setdefault(address, neighbour) is not neighbour:
                continue
            if address in neighbour.peer.addresses:
                neighbour.moved_to.pop(len(address), None)
            else:
                neighbour.moved_to[len(address)] = address
        return before != neighbour.moved_to

    def reach(self, address: bytes) -> bytes:
        """Where the agent with an address can be reached now."""
        neighbour = self._by_address.get(address)
        return address if neighbour is None else neighbour.moved_to.get(len(address), address)

    def at(self, address: bytes) -> Neighbour | None:
        """The neighbour that has an address."""
        return self._by_address.get(address)

    def own(self, like: bytes) -> bytes | None:
        """This host's own address of the same family."""
        return next((address for address in self.settings.addresses if len(address) == len(like)), None)

    def pool(self, local: bytes, remote: bytes, neighbour: Neighbour) -> PortPool:
        """The ports toward one address of a neighbour."""
        pool = self._pools.get(local + remote)
        theirs = neighbour.hello.port_range if neighbour.hello else self.settings.port_range
        if pool is None:
            quarantine = self.settings.timers.quarantine
            pool = PortPool(local, remote, self.settings.port_range, theirs, quarantine, self._rng)
            self._pools[local + remote] = pool
        else:
            pool.aim(theirs)
        return pool

    def ports(self) -> int:
        """How many pairs of ports subsessions hold that were opened here."""
        return sum(pool.live for pool in self._pools.values())

    def release(self, subsession: FiveTuple, now: float) -> None:
        """Give the ports of a subsession back that was opened here, even if its neighbour is a peer no more."""
        pool = self._pools.get(subsession.src + subsession.dst)
        if pool is not None:
            pool.release(subsession.sport, subsession.dport, now)
