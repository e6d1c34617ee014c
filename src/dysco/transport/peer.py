"""What the channel remembers of a peer, and when it wants to be looked at again.

Plain state with a few questions; who acts on it is channel.py. Times are the event loop's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import replace

from dysco.transport.link import Link
from dysco.transport.settings import PeerSettings, PeerStatus, Timing
from dysco.wire.messages import Message

# Pauses are spread by this much either way, so that peers do not call in step.
_JITTER = 0.25
# Addresses that a peer has left, and from which it may still call.
_MOST_LEFT = 16
# A link whose Hello is not answered for so long keeps nobody from calling: the other side may have given it up.
_GREETING_S = 3.0


class Peer:
    """A configured peer: its links, which of them is used, the call that is going on, and what waits.

    configured: what the configuration says of it. told: where the peer says that it is; those addresses come before the
    others in the settings.
    """

    __slots__ = (
        "armed_for",
        "attempts",
        "call",
        "call_at",
        "configured",
        "current",
        "keepalive_at",
        "keepalives",
        "last_failure",
        "leads",
        "links",
        "mtu",
        "pause_s",
        "probe_at",
        "probes",
        "queue",
        "rekeying",
        "settings",
        "timer",
        "timing",
        "told",
    )

    def __init__(self, settings: PeerSettings, timing: Timing, *, leads: bool) -> None:
        """Begin without a link; `leads` tells whether we are the one who settles which link is used."""
        self.settings = self.configured = settings
        self.told: tuple[str, ...] = ()
        self.timing = timing
        self.leads = leads
        self.links: list[Link] = []
        self.current: Link | None = None
        self.call: Link | None = None
        self.call_at = 0.0
        self.pause_s = timing.first_pause_s
        self.attempts = 0
        self.rekeying = False
        self.last_failure: str | None = None
        self.queue: deque[Message] = deque()
        self.keepalive_at = 0.0
        self.keepalives = 0
        self.probe_at = 0.0
        self.probes = 0
        self.mtu: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.armed_for = 0.0

    def failed(self, now: float, rng: random.Random) -> None:
        """Wait before the next call, longer each time."""
        self.call_at = now + self.pause_s * rng.uniform(1 - _JITTER, 1 + _JITTER)
        self.pause_s = min(2 * self.pause_s, self.timing.last_pause_s)
        self.rekeying = False

    def tell(self, addresses: Iterable[str]) -> None:
        """Know that the peer says to be at these addresses: they come first. Who moves for ever fills no list."""
        self.told = told = tuple(addresses)
        known = [one for one in self.settings.addresses if one not in told]
        named = self.configured.addresses
        left = [one for one in known if one not in named]
        kept = [one for one in known if one in named or one in left[:_MOST_LEFT]]
        self.settings = replace(self.settings, addresses=(*told, *kept))
        self.attempts = 0

    def has_left(self, address: str) -> bool:
        """Tell whether the peer says that it is at another address of the same IP version."""
        versions = {_version(told) for told in self.told}
        return address not in self.told and _version(address) in versions

    def address(self, attempt: int) -> str:
        """Where a call goes: each address in turn, but every other call to where the peer says that it is."""
        others = [one for one in self.settings.addresses if one not in self.told]
        if not self.told or not others:
            return self.settings.addresses[attempt % len(self.settings.addresses)]
        turn, is_other = divmod(attempt, 2)
        return others[turn % len(others)] if is_other else self.told[turn % len(self.told)]

    def turn_to(self, versions: Collection[int]) -> None:
        """Have the next call go to an address of one of these IP versions, if the peer has one.

        First to where the peer says that it is, or else to where it is reached now.
        """
        addresses = self.settings.addresses
        if self.told:
            self.attempts = 0
        elif self.current is not None and self.current.remote[0] in addresses:
            self.attempts = addresses.index(self.current.remote[0])
        for more in range(2 * len(addresses)):
            if _version(self.address(self.attempts + more)) in versions:
                self.attempts += more
                return

    def silent(self, now: float, keepalives: float) -> bool:
        """Tell whether the peer has missed so many keepalives."""
        if self.current is None:
            return False
        return now >= self.current.heard_at + keepalives * self.timing.keepalive_s

    def aged(self, now: float) -> bool:
        """Tell whether the association is to be replaced for its age."""
        return self.current is not None and now >= self._ages_at()

    def _ages_at(self) -> float:
        # The leader first; the other side if the leader cannot call.
        ready_at = self.current.ready_at if self.current is not None else None
        limit = self.timing.rekey_s if self.leads else 1.1 * self.timing.rekey_s
        return (ready_at or 0.0) + limit

    def greeting(self, now: float) -> bool:
        """Tell whether a link is up whose exchange of Hello is going on."""
        return any(
            link.up and link.ready_at is None and now < link.heard_at + _GREETING_S for link in self.links
        )

    def next_deadline(self, now: float, keepalives: float, *, strayed: bool = False) -> float:
        """Tell when the peer is to be looked at again; strayed: whether it is to be called as soon as may be."""
        timing = self.timing
        deadlines = []
        for link in self.links:
            if link.retired_at is not None:
                deadlines.append(link.retired_at + timing.linger_s)
            else:
                deadlines.append(link.heard_at + timing.dead_s)
            if link.hello_at is not None and not link.confirmed:
                deadlines.append(link.hello_at)
            if link.ready_at is None and now < link.heard_at + _GREETING_S:
                deadlines.append(link.heard_at + _GREETING_S)
        may_call = self.call is None and not self.greeting(now)
        if self.current is not None:
            deadlines.append(self.keepalive_at)
            if may_call:
                silent_at = self.current.heard_at + keepalives * timing.keepalive_s
                deadlines.append(max(self.call_at, now if strayed else min(silent_at, self._ages_at())))
            if self.current.search is not None:
                deadlines.append(self.current.search.next_deadline() or now)
            elif self.settings.mtu is None:
                deadlines.append(self.probe_at)
        elif may_call:
            deadlines.append(self.call_at)
        return min(deadlines, default=now + timing.last_pause_s)

    def status(self, now: float) -> PeerStatus:
        """Tell how the peer stands."""
        link = self.current
        return PeerStatus(
            name=self.settings.name,
            up=link is not None,
            address=link.remote[0] if link is not None else None,
            boot_id=link.hello.boot_id if link is not None and link.hello is not None else None,
            client=link.association.client if link is not None else None,
            up_for_s=now - link.ready_at if link is not None and link.ready_at is not None else None,
            heard_s=now - link.heard_at if link is not None else None,
            mtu=self.mtu,
            attempts=self.attempts,
            last_failure=self.last_failure,
        )


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version
