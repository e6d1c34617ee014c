"""Moving: this host has another address, and its sessions go on, wherever on their chains it stands.

    kernel, channel, core: the new address     peers: told over associations that prove who says so
    each subsession: replaced by one from the new address, as a change of a segment without hosts

The old path is not waited for (`force`), for the old address may be gone, or go in the middle; nothing lies between
two neighbours that could hold a byte. The addresses that the applications see do not change.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Collection, Iterator
from typing import Final, Protocol

from dysco.config.models import HostConfig
from dysco.errors import ConfigError
from dysco.protocol.admission import is_target
from dysco.protocol.agent import Agent
from dysco.protocol.chain import SessionInfo, key_of
from dysco.protocol.neighbours import ANNOUNCE_S
from dysco.service.changes import ChainChanges, Outcome, Run, Tell, Terms
from dysco.service.kernel import KernelSide, Underlay
from dysco.service.kernel import move as move_kernel
from dysco.transport.channel import Channel
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops, Message, Moved
from dysco.wire.tuples import FiveTuple, show_address

_LOOK_S: Final = 0.02  # between two looks whether a peer is reached from the new address
_PASSING: Final = (
    "busy",
    "not ready",
    "the next hop is no peer",
    "no association",
    "the lock was not answered",
    "the new path",
)
"""Beginnings of reasons that may be over when one asks again: neither the peer nor the network may know the new address
yet."""
_NO_ASSOCIATION: Final = "there is no association from the new address yet"
_NOT_OPEN: Final = ("the session is not established", "not found", "the session has ended")
"""Reasons where a session is still being opened at the other end, so that it begins anew from there, or has ended."""
_UNANSWERED: Final = "not ready: the SYN-ACK has not been acknowledged yet"
_ANSWER_S: Final = 10.0
"""How long that may be so: a SYN-ACK comes again after 1, 3 and 7 s. Who has begun the session has gone by then."""


class Owner(Protocol):
    """The agent, as far as it is needed here."""

    config: HostConfig
    changes: ChainChanges
    channel: Channel
    core: Agent
    kernel: KernelSide

    def now(self) -> float: ...

    def live_sessions(self) -> Iterator[SessionInfo]: ...

    def readdress(self, underlay: Underlay) -> None: ...

    def aware(self, peer: str) -> None: ...


class Moving:
    """Does what `dysco move` wants.

    addresses: those to which this host has moved since its agent began. left: those that it has left.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.left: frozenset[bytes] = frozenset()
        self._home: frozenset[bytes] = (
            frozenset()
        )  # where others know this host; they may begin sessions to there
        self._moves = 0
        self._in_turn = asyncio.Lock()
        self.addresses: dict[int, bytes] = {}

    async def move(self, tell: Tell, addresses: list[str], terms: Terms) -> dict[str, int]:
        """Have these addresses, one of a family; tells what becomes of each session, and counts how they have ended.

        Raises ConfigError, HostError and its kinds; then nothing is changed.
        """
        owner, new = self._owner, self._read(addresses)
        async with self._in_turn:
            left = await self._readdress(new, terms)
        counts: dict[str, int] = {}

        async def one(info: SessionInfo) -> None:
            ended = await owner.changes.run(info, tell, terms, lambda run: self._session(run, terms, left))
            counts[ended.outcome] = counts.get(ended.outcome, 0) + 1

        async with asyncio.TaskGroup() as group:
            for info in list(owner.live_sessions()):
                if self._stale(info, left):
                    group.create_task(one(info))
        return counts

    async def _readdress(self, new: tuple[bytes, ...], terms: Terms) -> frozenset[bytes]:
        """Have these addresses, and tell all peers, unless it is a dry run; gives those that are left then."""
        owner = self._owner
        old = owner.kernel.underlay.addresses
        if not self._moves:
            self._home = frozenset(old) - self.left
        idle = self.left - self._home - self._named() - set(new)
        of_these = {one for one in old if any(len(one) == len(other) for other in new)}
        left = (self.left - idle | of_these) - set(new)
        if not terms.dry_run:
            steering = await asyncio.to_thread(move_kernel, owner.config, owner.kernel, new, idle)
            owner.kernel.steering.configure(steering)
            underlay = owner.kernel.underlay
            self.left = left
            self._moves += 1
            self.addresses.update({len(address): address for address in new})
            owner.readdress(underlay)
            owner.channel.move(show_address(one) for one in underlay.addresses if one not in self.left)
            for peer in owner.channel.status():
                self.announce(peer.name)
        return left

    def announce(self, peer: str) -> None:
        """Tell a peer where this host is, if it has moved; more than once, for a message may be lost."""
        for wait in ANNOUNCE_S if self.addresses else ():
            asyncio.get_running_loop().call_later(wait, self._announce, peer)

    def standing(self) -> list[Message]:
        """Where this host is, if it has moved: what peers are told with each keepalive, too."""
        return [Moved(self._moves, Hops(map(Hop, self.addresses.values())))] if self.addresses else []

    def _announce(self, peer: str) -> None:
        """Say it once. New sessions go behind it: they wait until the peer has answered from here, and was told."""
        channel = self._owner.channel
        said = [channel.send(peer, message) for message in self.standing()]
        if any(said) and channel.has_moved(peer):
            asyncio.get_running_loop().call_soon(self._owner.aware, peer)

    def _read(self, texts: list[str]) -> tuple[bytes, ...]:
        try:
            found = tuple(ipaddress.ip_address(text).packed for text in texts)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not found or len({len(one) for one in found}) != len(found):
            raise ConfigError("a move needs one address, or one of each family")
        for text, address in zip(texts, found, strict=True):
            if not is_target(address):
                raise ConfigError(f"{text}: other hosts cannot reach this one there")
        for peer in self._owner.config.peer:
            if any(address.packed in found for address in peer.addresses):
                raise ConfigError(f"{', '.join(texts)}: that is an address of the peer {peer.name}")
        return found

    def _named(self) -> set[bytes]:
        """Addresses that sessions of this host name, those among them that are over but for a late packet."""
        tuples: set[FiveTuple] = set()
        for info in self._owner.core.sessions(self._owner.now()):
            ends = (info.left, info.right)
            tuples.update((info.session, info.session_out), (one.tuple for one in ends if one is not None))
        return {address for one in tuples for address in (one.src, one.dst)}

    def _stale(self, info: SessionInfo, left: Collection[bytes]) -> list[tuple[bool, FiveTuple, int]]:
        """The subsessions of a session that this host has at an address that it has left."""
        return [
            (right, tuple_, label)
            for right, tuple_, label in self._owner.core.subsessions(key_of(info))
            if (tuple_.src if right else tuple_.dst) in left
        ]

    async def _session(self, run: Run, terms: Terms, left: Collection[bytes]) -> Outcome:
        """Replace each subsession that has an old end here, until none is left.

        left: the addresses that this move leaves. Another move may begin before it is done; then that one's count.
        """
        owner, wait, told, asked = self._owner, _LOOK_S, False, 0
        until = owner.now() + _ANSWER_S
        while stale := self._stale(run.info, left if terms.dry_run else self.left):
            right, tuple_, label = stale[0]
            if not told:
                told = True
                ends = [(one.src, one.dst) if is_right else (one.dst, one.src) for is_right, one, _ in stale]
                before = [f"{show_address(own)} == {show_address(other)}" for own, other in ends]
                after = [f"{show_address(self._new(own))} == {show_address(other)}" for own, other in ends]
                await run.say("plan", before=before, after=after)
            if terms.dry_run:
                return Outcome("planned")
            info = run.info
            facing = info.right if right else info.left
            peer = "" if facing is None or facing.peer is None else facing.peer
            while peer and not owner.channel.has_moved(peer):
                run.by, run.reason = peer, _NO_ASSOCIATION
                await asyncio.sleep(_LOOK_S)
            if run.reason == _NO_ASSOCIATION:
                run.by = run.reason = ""  # what it waits for from here on is something else
            self._announce(peer)
            target = tuple_.dst if right else self._new(tuple_.dst)
            change = Change(
                random.getrandbits(64), label, label, Hops((Hop(target),)), True, 0, owner.config.agent.name
            )
            ended = await owner.changes.request(run, change, rightward=False, wait=terms.wait)
            is_over = ended.reason in _NOT_OPEN and not self._is_anchor(info)
            if (is_over and label == asked) or (ended.reason == _UNANSWERED and owner.now() > until):
                return Outcome("over", ended.by, ended.reason)
            asked = label if is_over else 0
            passing = ended.reason.startswith((*_PASSING, *_NOT_OPEN)) and not owner.changes.has_closed(info)
            if not terms.wait or not (ended.is_good or passing):
                return ended
            if not ended.is_good:
                run.by, run.reason = ended.by, ended.reason
                await run.say("phase", phase="waiting", by=ended.by, reason=ended.reason)
            # The right anchor may hear before us that all is done; and others may change this session, too.
            await asyncio.sleep(random.uniform(wait / 2, wait))
            wait = min(2 * wait, 0.4)
            if not run.refresh(owner.core.session(key_of(run.info), owner.now())):
                return Outcome("over", reason="the session has ended")
        return Outcome("done")

    def _is_anchor(self, info: SessionInfo) -> bool:
        """Whether this host is in the middle of a change: its other anchor may have done with what we still name."""
        now = self._owner.core.session(key_of(info), self._owner.now())
        return now is not None and bool(now.changes)

    def _new(self, old: bytes) -> bytes:
        """The address that takes the place of an old one."""
        return self.addresses.get(len(old), old)
