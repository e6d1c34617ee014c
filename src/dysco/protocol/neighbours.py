"""What the core knows of its neighbours: associations, keys, counters, path MTU, ports, and whether to avoid them.

An association gives a key for each direction. A chain header is signed with the one and checked with the
other; the key before is good for two minutes more, for SYNs that were under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dysco.protocol.ports import PortPool
from dysco.protocol.replay import ReplayWindow
from dysco.protocol.settings import Peer, Settings
from dysco.wire import chain_header
from dysco.wire.messages import Hello

OLD_KEY_S: Final = 120.0
LEARNT_MTU_S: Final = 600.0
FLOOR_MTU: Final = {4: 576, 16: 1280}
KEY_LEN: Final = 32
SELF: Final = ""


class Neighbour:
    """One peer, or this agent itself as its own neighbour (then `up` for ever, with a key that nobody knows)."""

    __slots__ = (
        "_budget",
        "_budget_at",
        "_learnt_mtu",
        "_learnt_until",
        "avoid_until",
        "counter",
        "hello",
        "old_key",
        "old_until",
        "old_window",
        "peer",
        "probed_mtu",
        "receive_key",
        "send_key",
        "up",
        "window",
    )

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.up = False
        self.hello: Hello | None = None
        self.send_key = b""
        self.receive_key = b""
        self.old_key = b""
        self.old_until = 0.0
        self.counter = 0
        self.window = ReplayWindow()
        self.old_window = self.window
        self.avoid_until = 0.0
        self.probed_mtu: int | None = None
        self._learnt_mtu = 0
        self._learnt_until = 0.0
        self._budget = 0.0
        self._budget_at = 0.0

    def associate(self, hello: Hello, send_key: bytes, receive_key: bytes, now: float) -> None:
        """Take the keys of a new association; the same association told again changes nothing."""
        self.hello = hello
        self.up = True
        if send_key == self.send_key and receive_key == self.receive_key:
            return
        if self.receive_key:
            self.old_key, self.old_window, self.old_until = self.receive_key, self.window, now + OLD_KEY_S
        self.send_key, self.receive_key = send_key, receive_key
        self.counter = 0
        self.window = ReplayWindow()

    def next_counter(self) -> int:
        """The counter of the next chain header to this neighbour."""
        self.counter += 1
        return self.counter

    def window_of(self, payload: bytes, now: float) -> ReplayWindow | None:
        """The replay window of the key that signed a chain header; None if no key of ours did."""
        if self.receive_key and chain_header.verify(payload, self.receive_key):
            return self.window
        if self.old_key and now < self.old_until and chain_header.verify(payload, self.old_key):
            return self.old_window
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

    def at(self, address: bytes) -> Neighbour | None:
        """The neighbour that has an address."""
        return self._by_address.get(address)

    def own(self, like: bytes) -> bytes | None:
        """This host's own address of the same family."""
        return next((address for address in self.settings.addresses if len(address) == len(like)), None)

    def pool(self, local: bytes, remote: bytes, neighbour: Neighbour) -> PortPool:
        """The ports toward one address of a neighbour."""
        pool = self._pools.get(remote)
        if pool is None:
            theirs = neighbour.hello.port_range if neighbour.hello else self.settings.port_range
            quarantine = self.settings.timers.quarantine
            pool = PortPool(local, remote, self.settings.port_range, theirs, quarantine, self._rng)
            self._pools[remote] = pool
        return pool
