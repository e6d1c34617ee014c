"""Draining: a box of this host, or of a peer, gets no new sessions, and those that it has leave it.

A box of this host then takes part in nothing new, whoever asks. Of a peer's box only this agent's policies know, and
only the sessions that pass here leave it. A peer whose box has refused a session because it is drained there counts as
drained here for a while. Marks last until `undrain`, or until the agent ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dysco.config.models import HostConfig, box_tag
from dysco.errors import LocalError
from dysco.policy import Place
from dysco.protocol.chain import SessionInfo
from dysco.protocol.events import SetupRefused
from dysco.service import planning
from dysco.service.changes import AT_ONCE, LIVE, ChainChanges, Outcome, Tell, Terms
from dysco.service.planning import Wish

TIMEOUT_S: Final = 60.0
HEARD_S: Final = 10.0  # that a refusal of a drained box is remembered
_TELL_S: Final = 0.1  # between two reports of progress
_LOOK_S: Final = 0.05  # between two looks for sessions that were being opened


@dataclass(frozen=True, slots=True)
class Target:
    """What is drained: an agent, or one box of it. addresses: the agent's."""

    agent: str
    box: str
    addresses: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"{self.agent}/{self.box}" if self.box else self.agent

    def is_hop(self, address: bytes, box: int) -> bool:
        """Whether a hop of a policy means it."""
        return address in self.addresses and (not self.box or box == box_tag(self.box))


class Owner(Protocol):
    """The agent, as far as it is needed here."""

    config: HostConfig
    changes: ChainChanges

    @property
    def name(self) -> str: ...

    def now(self) -> float: ...

    def own_addresses(self) -> tuple[bytes, ...]: ...

    def place(self, name: str) -> Place: ...

    def live_sessions(self) -> Iterable[SessionInfo]: ...

    def redraw(self) -> None: ...


class Draining:
    """What is drained, and the work of emptying it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._marks: dict[Target, Place | None] = {}
        self._heard: dict[tuple[bytes, ...], float] = {}

    # What policies and the core want to know.

    def names(self) -> list[str]:
        """What is drained, for people."""
        return sorted(map(str, self._marks))

    def own_boxes(self) -> frozenset[str]:
        """The boxes of this host that take nothing new."""
        mine = [target.box for target in self._marks if target.agent == self._owner.name]
        return frozenset(mine if "" not in mine else (box.name for box in self._owner.config.box))

    def drained(self, address: bytes, box: int) -> bool:
        """Whether a hop shall get no new sessions."""
        if not self._marks and not self._heard:
            return False
        now = self._owner.now()
        heard = any(address in known and now < until for known, until in self._heard.items())
        return heard or self._mark(address, box) is not None

    def instead(self, address: bytes, box: int) -> Place | None:
        """Where new sessions of a drained hop go."""
        mark = self._mark(address, box)
        return None if mark is None else self._marks[mark]

    def hear(self, event: SetupRefused) -> None:
        """A session was refused: perhaps because a box is drained where it stands."""
        if event.reason.endswith(" is drained") and event.by != self._owner.name:
            peer = next((one for one in self._owner.config.peer if one.name == event.by), None)
            if peer is not None:
                self._heard[tuple(address.packed for address in peer.addresses)] = self._owner.now() + HEARD_S

    def _mark(self, address: bytes, box: int) -> Target | None:
        if not box and address in self._owner.own_addresses() and self._owner.config.default_box is not None:
            box = self._owner.config.default_box.tag
        return next((one for one in self._marks if one.is_hop(address, box)), None)

    # Commands.

    async def drain(
        self, tell: Tell, box: str, to: str = "", timeout: float = TIMEOUT_S, state: int = 0
    ) -> dict[str, Any]:
        """Keep new sessions away from a box and free it of those that it has; tells progress."""
        target = self.target(box)
        self._marks[target] = self._owner.place(to) if to else None
        self._owner.redraw()
        work = _Work(self._owner, target, to, Terms(timeout, state=state), tell)
        return await work.run()

    async def undrain(self, box: str) -> bool:
        """Let a box have new sessions again; False if it was not drained."""
        was = self._marks.pop(self.target(box), self) is not self
        self._heard.clear()
        self._owner.redraw()
        return was

    def target(self, name: str) -> Target:
        """What a name means: a box of this host, this host, a peer, or a peer's box; LocalError if nothing."""
        config, owner = self._owner.config, self._owner
        own = {box.name for box in config.box}
        if name in own:
            return Target(owner.name, name, owner.own_addresses())
        agent, _, box = name.partition("/")
        if agent == owner.name and (not box or box in own):
            return Target(owner.name, box, owner.own_addresses())
        for peer in config.peer:
            if peer.name == agent:
                return Target(agent, box, tuple(address.packed for address in peer.addresses))
        raise LocalError(f"{name!r} is no box of this host, no peer and no peer's box")


class _Work:
    """One run of `drain`: sessions are looked for until none is left that could still leave."""

    def __init__(self, owner: Owner, target: Target, to: str, terms: Terms, tell: Tell) -> None:
        self._owner = owner
        self._target = target
        self._to = to
        self._terms = terms
        self._tell = tell
        self._done: set[bytes] = set()
        self._failed: dict[bytes, str] = {}
        self._left: set[bytes] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> dict[str, Any]:
        """Free the box, as far as it can be; gives what came of it."""
        began = self._owner.now()
        try:
            async with asyncio.timeout(self._terms.timeout), asyncio.TaskGroup() as group:
                teller = group.create_task(self._report())
                while found := self._sessions():
                    self._left |= {_key(info) for info in found}
                    ready = [info for info in found if info.state in LIVE]
                    async with asyncio.TaskGroup() as inner:
                        for info in ready:
                            inner.create_task(self._one(info))
                    if len(ready) < len(found):
                        await asyncio.sleep(_LOOK_S)
                teller.cancel()
        except TimeoutError:
            pass
        reasons = Counter(self._failed.values())
        return {
            **self._progress(),
            "after_s": round(self._owner.now() - began, 6),
            "empty": not self._left and not self._failed,
            "reasons": dict(reasons),
        }

    def _sessions(self) -> list[SessionInfo]:
        """Sessions that may pass the target and were not looked at."""
        target = self._target
        local = target.agent == self._owner.name
        found = []
        for info in self._owner.live_sessions():
            key = _key(info)
            if key in self._done or key in self._failed:
                continue
            if local and (info.box is None or target.box not in ("", info.box)):
                continue
            found.append(info)
        return found

    async def _one(self, info: SessionInfo) -> None:
        key = _key(info)
        async with self._gate:
            ended = await self._leave(info)
        self._left.discard(key)
        if ended is None or ended.is_good:
            self._done.add(key)
        else:
            self._failed[key] = f"{ended.by}: {ended.reason}" if ended.by else ended.reason

    async def _leave(self, info: SessionInfo) -> Outcome | None:
        """Let a session leave the target, by as many changes as there are boxes of it; None: it never passed it."""
        ended: Outcome | None = None
        local = self._target.agent == self._owner.name
        while True:
            if local:
                name = f"{self._owner.name}/{info.box}"
            else:
                try:
                    places = await self._owner.changes.trace(info)
                except LocalError:
                    return ended
                target = self._target
                there = [
                    one for one in places[1:-1] if one.agent == target.agent and target.box in ("", one.box)
                ]
                if not there:
                    return ended
                name = planning.label(there[0])
            wish = Wish("replace", name, (self._to,)) if self._to else Wish("remove", name)
            ended = await self._owner.changes.one(info, wish, self._terms, _nobody)
            if local or not ended.is_good:
                return ended

    def _progress(self) -> dict[str, Any]:
        return {
            "kind": "progress",
            "box": str(self._target),
            "moved": len(self._done),
            "failed": len(self._failed),
            "left": len(self._left),
        }

    async def _report(self) -> None:
        while True:
            await self._tell(self._progress())
            await asyncio.sleep(_TELL_S)


async def _nobody(_: dict[str, Any]) -> None:
    """Hear of single sessions in the place of who only wants to know how many."""


def _key(info: SessionInfo) -> bytes:
    return info.chain_id + bytes((info.hop_index,))
