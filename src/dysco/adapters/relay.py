"""Any relay that copies byte by byte, by what the kernel says of its sockets: socat, nginx stream, a CONNECT proxy.

Knows the process and nothing of the program; that it copies byte by byte is what a user says by choosing this adapter.
Counting finds a program that does not: one that ends TLS on one side, or puts a header into each request, adds bytes
with each message. It would not find one that ends TLS on both sides and begins it anew with records of the same length;
first bytes, where the agent has seen them, do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dysco.adapters.base import Adapter, Pair
from dysco.adapters.counting import REST_S, Both, Tally
from dysco.adapters.matching import Matching
from dysco.adapters.preambles import Fingerprints, Heads, Unclear, compare, v1_length, v2_length
from dysco.adapters.sockets import Socket, Sockets, holders, inodes, with_children
from dysco.errors import HostError
from dysco.wire.tuples import FiveTuple

_ROUNDS: Final = 40  # ours: how often sessions in motion are looked at again
_BUSY: Final = 32  # ours: at most so many of them at a time

NOTHING_SEEN: Final[dict[FiveTuple, Heads]] = {}


class Counts:
    """What went through pairs of sockets; for any adapter that knows which belong together."""

    def __init__(self, heads: Fingerprints) -> None:
        self._heads = heads
        self._tallies: dict[tuple[int, int], Tally] = {}

    def observe(self, seen: list[tuple[Both, Both]]) -> None:
        """Take all pairs as they were at two moments with REST_S between; others are forgotten."""
        self._tallies = {_key(after): self._tallies.get(_key(after), Tally()) for _, after in seen}
        for before, after in seen:
            self._tallies[_key(after)].observe(before, after, spaced=True)

    def look_again(self, seen: list[tuple[Both, Both]]) -> None:
        """Look at pairs in motion for exact moments, until it is known what was added or all rounds are over."""
        with Sockets() as kernel:
            waiting = [after for _, after in seen if self._is_restless(after)][:_BUSY]
            for _ in range(_ROUNDS):
                if not waiting:
                    return
                for both in list(waiting):
                    looks = [_look(kernel, both), _look(kernel, both)]
                    if looks[0] is None or looks[1] is None:
                        waiting.remove(both)
                        continue
                    self._tallies[_key(both)].observe(looks[0], looks[1], spaced=False)
                    if not self._is_restless(both):
                        waiting.remove(both)

    def _is_restless(self, both: Both) -> bool:
        return self._tallies[_key(both)].restless and not self.pair(both, "").safe

    def pair(self, both: Both, ground: str) -> Pair:
        """Say what is known of a pair. ground: why the two belong together."""
        left, right = both.left.session, both.right.session
        tally = self._tallies[_key(both)]
        explained = {0, v1_length(left), v2_length(left)}
        back = {0}
        one, other = self._heads.get(left), self._heads.get(right)
        told = "counts agree, first bytes were not seen"
        if one is not None and other is not None:
            try:
                added = compare(one, other)
            except Unclear as unclear:
                return Pair(left, right, 0, 0, False, f"{ground}; {unclear}")
            if added is None:
                return Pair(
                    left,
                    right,
                    0,
                    0,
                    False,
                    f"{ground}; but their first bytes differ (TLS, or another change)",
                )
            explained, back = {added.right}, {added.left}
            told = added.what or "counts agree" + ", as do first bytes" * bool(added.compared)
        if not tally.moved:
            return Pair(left, right, 0, 0, False, f"{ground}; no data have passed yet")
        forward, backward = tally.right.sum(explained), tally.left.sum(back)
        for one_way in (forward, backward):
            if one_way.added is None:
                return Pair(left, right, 0, 0, False, f"{ground}; {one_way.why}")
        assert forward.added is not None
        assert backward.added is not None
        if one is not None and other is not None and (forward.added, backward.added) != (*explained, *back):
            return Pair(left, right, 0, 0, False, f"{ground}; counts and first bytes contradict each other")
        return Pair(left, right, forward.added, backward.added, True, f"{ground}; {told}")


class Relay(Adapter):
    """Find the pairs of one program, by its process or by the port on which it listens.

    port: sessions to this port only. pid: this process (its number, or a file with it) and its children; without it,
    who listens on the port, and their children. heads: who has seen the first bytes of sessions.
    """

    def __init__(
        self, *, port: int | None = None, pid: int | Path | None = None, heads: Fingerprints = NOTHING_SEEN
    ) -> None:
        if port is None and pid is None:
            raise ValueError("a relay is found by its port or its process")
        super().__init__()
        self._port = port
        self._pid = pid
        self._heads = heads
        self._matchings: dict[int, Matching] = {}
        self._counts = Counts(heads)

    async def pairs(self) -> list[Pair]:
        """Give the pairs that are known; raises HostError if there is no such process."""
        before = await asyncio.to_thread(self._look)
        await asyncio.sleep(REST_S)
        after = await asyncio.to_thread(self._look)
        return await asyncio.to_thread(self._judge, before, after)

    def _look(self) -> dict[int, dict[int, Socket]]:
        """The sockets of each process that may be one end of a pair."""
        with Sockets() as kernel:
            sockets = kernel.connected()
            found: dict[int, dict[int, Socket]] = {}
            for pid in self._processes(kernel):
                held = {inode: sockets[inode] for inode in inodes(pid).values() if inode in sockets}
                found[pid] = {inode: one for inode, one in held.items() if self._is_ours(one)}
        return _apart(found)

    def _is_ours(self, one: Socket) -> bool:
        return one.opened is not False or self._port is None or one.tuple.sport == self._port

    def _processes(self, kernel: Sockets) -> list[int]:
        if self._pid is not None:
            roots = [_number(self._pid)]
            missing = f"there is no process {roots[0]}"
        else:
            listening = {inode for _, port, inode in kernel.listening() if port == self._port}
            roots = holders(listening) or list(
                self._matchings
            )  # the listener may be closed, its sessions live
            missing = f"nobody listens on port {self._port}"
        found = {pid for root in roots for pid in with_children(root)}
        alive = [pid for pid in sorted(found) if inodes(pid)]
        if not alive:
            raise HostError(missing)
        return alive

    def _judge(self, before: dict[int, dict[int, Socket]], after: dict[int, dict[int, Socket]]) -> list[Pair]:
        self._matchings = {pid: self._matchings.get(pid, Matching()) for pid in after}
        seen: list[tuple[Both, Both]] = []
        grounds: list[str] = []
        for pid, sockets in after.items():
            earlier = before.get(pid, {})
            for left, right, ground in self._partners(pid, earlier, sockets):
                seen.append((Both(earlier[left], earlier[right]), Both(sockets[left], sockets[right])))
                grounds.append(ground)
        self._counts.observe(seen)
        self._counts.look_again(seen)
        placed = {one.left.inode for _, one in seen}
        self.unplaced = [
            one.session
            for sockets in after.values()
            for inode, one in sockets.items()
            if inode not in placed and one.opened is False
        ]
        return [self._counts.pair(after, ground) for (_, after), ground in zip(seen, grounds, strict=True)]

    def _partners(
        self, pid: int, before: dict[int, Socket], after: dict[int, Socket]
    ) -> Iterator[tuple[int, int, str]]:
        """Give the inodes of each pair of a process, and why they belong together."""
        partners = self._matchings[pid].observe(before, after, self._heads)
        alone = len(partners) == 1 and len(after) == 2
        ground = f"the only two of process {pid}" if alone else "no others of the process agree"
        for left, right in partners.items():
            yield left, right, ground


def _number(pid: int | Path) -> int:
    if isinstance(pid, int):
        return pid
    try:
        return int(pid.read_text())
    except OSError as error:
        raise HostError(f"{pid}: {error.strerror}") from None
    except ValueError:
        raise HostError(f"{pid}: this is no number of a process") from None


def _apart(found: dict[int, dict[int, Socket]]) -> dict[int, dict[int, Socket]]:
    """A socket that several processes hold belongs to the one with the fewest: a child that serves one session."""
    owner: dict[int, int] = {}
    for pid in sorted(found, key=lambda pid: (len(found[pid]), -pid)):
        for inode in found[pid]:
            owner.setdefault(inode, pid)
    return {
        pid: {inode: one for inode, one in held.items() if owner[inode] == pid} for pid, held in found.items()
    }


def _look(kernel: Sockets, both: Both) -> Both | None:
    left, right = kernel.again(both.left), kernel.again(both.right)
    return None if left is None or right is None else Both(left, right)


def _key(both: Both) -> tuple[int, int]:
    return both.left.inode, both.right.inode
