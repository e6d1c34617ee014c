"""What the core knows of its neighbours: associations, keys, counters, path MTU, ports, and whether to avoid them.

An association gives a key for each direction. A chain header is signed with the one and checked with the
other. A peer may use a new key a moment before it is known here that the association is the one in use, so
keys are accepted as soon as there is one; those before are good for two minutes more, for SYNs under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from dysco.protocol.ports import PortPool
from dysco.protocol.replay import ReplayWindow, Window
from dysco.protocol.settings import Peer, Settings
from dysco.wire import chain_header
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hello
from dysco.wire.tuples import FiveTuple

OLD_KEY_S: Final = 120.0
MOST_KEYS: Final = 8
ANNOUNCE_S: Final = (0.0, 0.5, 2.0, 8.0)
"""Ours: when a host that has moved says so, besides with each keepalive: nobody acknowledges it, and who has not heard
it drops its new sessions."""
MOST_LEFT: Final = 16
"""Ours: addresses that a peer has left and that are still taken for its own; who moves for ever fills no table."""
LEARNT_MTU_S: Final = 600.0
FLOOR_MTU: Final = {4: 576, 16: 1280}
KEY_LEN: Final = 32
SELF: Final = ""


class Neighbour:
    """One peer, or this agent itself as its own neighbour (then `up` for ever, with a key that nobody knows).

    moves: how often it has moved since it began. moved_to: the address, by its length, to which it has moved; what the
    configuration names does not reach it. left: those to which it had moved before; sessions that live may still name
    them. draw: gives the next counter where the kernel signs headers too; windows: makes the window of a new key.
    aware: it knows the address of this host; a chain that began before would look to it like a stranger's.
    """

    __slots__ = (
        "_accepted",
        "_budget",
        "_budget_at",
        "_learnt_mtu",
        "_learnt_until",
        "avoid_until",
        "aware",
        "counter",
        "draw",
        "hello",
        "left",
        "moved_to",
        "moves",
        "peer",
        "probed_mtu",
        "send_key",
        "up",
        "windows",
    )

    def __init__(self, peer: Peer, windows: Callable[[], Window] = ReplayWindow) -> None:
        self.peer = peer
        self.up = False
        self.aware = True
        self.hello: Hello | None = None
        self.moves = 0
        self.moved_to: dict[int, bytes] = {}
        self.left: dict[bytes, None] = {}
        self.send_key = b""
        self.counter = 0
        self.draw: Callable[[], int] | None = None
        self.windows = windows
        self._accepted: dict[bytes, tuple[Window, float]] = {}
        self.avoid_until = 0.0
        self.probed_mtu: int | None = None
        self._learnt_mtu = 0
        self._learnt_until = 0.0
        self._budget = 0.0
        self._budget_at = 0.0

    @property
    def may_begin(self) -> bool:
        """Whether chains toward it can begin now."""
        return self.up and self.aware

    def accept(self, receive_key: bytes, now: float) -> None:
        """Accept a key that the peer may use soon, or never; one that is known keeps its replay window."""
        known = self._accepted.pop(receive_key) if receive_key in self._accepted else None
        window, until = known or (self.windows(), 0.0)
        self._accepted = {key: entry for key, entry in self._accepted.items() if now < entry[1]}
        if len(self._accepted) >= MOST_KEYS:
            # The one that expires first; the key in use never does.
            del self._accepted[min(self._accepted, key=lambda key: self._accepted[key][1])]
        self._accepted[receive_key] = (window, max(until, now + OLD_KEY_S))

    def associate(self, hello: Hello, send_key: bytes, receive_key: bytes, now: float) -> None:
        """Take the keys of the association in use; others expire. The counter goes on: keys may come back."""
        if self.hello is not None and self.hello.boot_id != hello.boot_id:
            self.moves = 0
        self.hello = hello
        self.up = True
        self.send_key = send_key
        self.accept(receive_key, now)
        for key, (window, until) in self._accepted.items():
            expires = math.inf if key == receive_key else min(until, now + OLD_KEY_S)
            self._accepted[key] = (window, expires)

    def leave(self, address: bytes) -> None:
        """Remember an address that the peer has left; the oldest is forgotten."""
        self.left[address] = None
        if len(self.left) > MOST_LEFT:
            del self.left[next(iter(self.left))]

    def begins_again(self, address: bytes) -> tuple[bytes, ...]:
        """It has forgotten its moves, and answers from this address; gives where it is then, if that is elsewhere.

        If it is not where it had moved to, it is where the configuration says.
        """
        if not self.moved_to or self.moved_to.get(len(address)) == address:
            return ()
        for one in self.moved_to.values():
            self.leave(one)
        self.moved_to.clear()
        return self.peer.addresses

    def reach(self, address: bytes) -> bytes:
        """Where it is now that has, or had, this address."""
        if len(address) in self.moved_to:
            return self.moved_to[len(address)]
        if address not in self.left:
            return address
        return next((home for home in self.peer.addresses if len(home) == len(address)), address)

    def next_counter(self) -> int:
        """The counter of the next chain header to this neighbour."""
        self.counter = self.counter + 1 if self.draw is None else self.draw()
        return self.counter

    def accepted(self, now: float) -> Iterator[tuple[bytes, tuple[Window, float]]]:
        """The keys that are good now with their windows and when they expire, the newest first."""
        return (one for one in reversed(self._accepted.items()) if now < one[1][1])

    def window_of(self, payload: bytes, now: float) -> Window | None:
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
        self.charge(rate, 0, now)
        if self._budget < 1:
            return False
        self._budget -= 1
        return True

    def charge(self, rate: int, begun: int, now: float) -> None:
        """The kernel has let this neighbour begin so many chains, within the same rate; it may have none left here."""
        self._budget = min(float(rate), self._budget + (now - self._budget_at) * rate) - begun
        self._budget_at = now


class Neighbours:
    """All neighbours by name and by address, and the ports toward each of their addresses."""

    def __init__(
        self,
        settings: Settings,
        rng: Callable[[int], bytes],
        windows: Callable[[], Window] = ReplayWindow,
    ) -> None:
        self._rng = rng
        self._windows = windows
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
            self.by_name.setdefault(name, Neighbour(peer, self._windows)).peer = peer
        self._by_address = dict.fromkeys(settings.addresses, self.by_name[SELF])
        for neighbour in self.by_name.values():
            self._by_address.update(dict.fromkeys(neighbour.peer.addresses, neighbour))
        for neighbour in self.by_name.values():
            for address in neighbour.moved_to.values():
                self._by_address.setdefault(address, neighbour)
        for neighbour in self.by_name.values():
            for address in neighbour.left:
                self._by_address.setdefault(address, neighbour)

    def moved(self, name: str, number: int, addresses: Iterable[bytes]) -> bool:
        """Reach a peer at other addresses from now on; False if that changes nothing, or is overtaken.

        None may be another's. One that another peer has left is nobody's, and goes with who comes there.
        """
        neighbour = self.by_name[name]
        if number < neighbour.moves:
            return False
        neighbour.moves = number
        before = dict(neighbour.moved_to)
        for address in addresses:
            holder = self._by_address.setdefault(address, neighbour)
            if holder is not neighbour:
                if address not in holder.left:
                    continue
                del holder.left[address]
                self._by_address[address] = neighbour
            if neighbour.moved_to.get(len(address), address) != address:
                neighbour.leave(neighbour.moved_to[len(address)])
            neighbour.left.pop(address, None)
            if address in neighbour.peer.addresses:
                neighbour.moved_to.pop(len(address), None)
            else:
                neighbour.moved_to[len(address)] = address
        return before != neighbour.moved_to

    def reach(self, address: bytes) -> bytes:
        """Where the agent with an address can be reached now, which may be where it was at first."""
        neighbour = self._by_address.get(address)
        return address if neighbour is None else neighbour.reach(address)

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


def reached(hops: Sequence[Hop], subsession: FiveTuple) -> tuple[Hop, ...]:
    """The hops as the first of them is told them: by the address where it is now.

    Who asks knows the one that policies name, which it may have left so long ago that it has forgotten it.
    """
    return (Hop(subsession.dst, hops[0].box), *hops[1:])
