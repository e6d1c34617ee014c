"""Takes proxies of this host out of live sessions: by the rules of host.toml, and when one is drained.

Adapters say which two sessions belong together and whether the proxy may leave; the core is asked to splice them, and
looks at the numbers itself. Between, nobody changes anything: a pair that is not safe keeps its proxy.

    [[proxy]] --> adapter --pairs--> the sessions of this agent --> rule, or drained --> ChainChanges.splice

A drained proxy leaves the sessions that it has, and each one that comes later as soon as it may, until `undrain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol

from dysco.adapters import Adapter, Heads, Pair, make
from dysco.config import HostConfig, Proxy
from dysco.config.proxies import ProxyRule, due, proxy_rule
from dysco.errors import DyscoError, LocalError
from dysco.protocol.chain import SessionInfo
from dysco.service.changes import LIVE, TIMEOUT_S, ChainChanges, Tell
from dysco.service.logs import log
from dysco.views import ProxiedPair, ProxyState
from dysco.wire.tuples import FiveTuple

DRAIN_S: Final = 60.0
_LOOK_S: Final = 0.2  # between two looks at a proxy that is being drained
_UNCHANGED_S: Final = (
    5.0  # a drain gives up on sessions that are not safe when nothing has changed for so long
)
_SURE: Final = (
    2  # looks without any session: what its client has not been accepted for yet is seen by the next
)
_UNPLACED: Final = "the session with the server is not known yet"
_AGAIN_S: Final = 5.0  # until a session is tried again whose splice was refused

Key = tuple[FiveTuple, FiveTuple]


class Owner(Protocol):
    """The agent, as far as it is needed here."""

    config: HostConfig
    changes: ChainChanges

    def now(self) -> float: ...

    def live_sessions(self) -> Iterable[SessionInfo]: ...

    def counted(self) -> AbstractContextManager[None]: ...

    def first_bytes(self, session: FiveTuple) -> tuple[bytes, bytes] | None: ...


class _Heads:
    """First bytes of the sessions of an agent, as adapters ask for them; also in their threads, which only read."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def get(self, session: FiveTuple, /) -> Heads | None:
        found = self._owner.first_bytes(session)
        return None if found is None else Heads(*found)


class Seen(NamedTuple):
    """A pair, the sessions of this agent that it is made of (None: not chained here), and what host.toml says of it."""

    pair: Pair
    left: SessionInfo | None
    right: SessionInfo | None
    rule: ProxyRule

    @property
    def key(self) -> Key:
        return self.pair.left, self.pair.right

    @property
    def obstacle(self) -> str:
        """Why the proxy cannot leave now; empty if it can."""
        if self.rule.verdict == "stays" or not self.rule.may_leave:
            return self.rule.text
        if not self.pair.safe:
            return self.pair.why
        for side, info in (("client", self.left), ("server", self.right)):
            if info is None:
                return f"the session with the {side} is not chained here"
            if info.state not in LIVE:
                return f"the session with the {side} is {info.state}"
        return ""


class _Watched:
    """One proxy. refused: why a pair's splice was refused, and when it is tried again.

    unplaced: its clients' sessions that were in no pair at the latest look.
    """

    def __init__(self, section: Proxy, adapter: Adapter) -> None:
        self.section = section
        self.adapter = adapter
        self.drained = False
        self.trouble = ""
        self.under_way: set[Key] = set()
        self.unplaced: frozenset[FiveTuple] = frozenset()
        self.refused: dict[Key, tuple[str, float]] = {}
        self.removed = 0
        self.turn = asyncio.Lock()


class Proxies:
    """The proxies of this host."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._watched: dict[str, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()

    def prepare(self, config: HostConfig) -> dict[str, Adapter]:
        """Make the adapters of sections that are new or have changed; raises ConfigError and changes nothing."""
        known = {name: one.section for name, one in self._watched.items()}
        heads = _Heads(self._owner)
        return {one.name: make(one, heads) for one in config.proxy if known.get(one.name) != one}

    def configure(self, config: HostConfig, adapters: Mapping[str, Adapter]) -> None:
        """Watch the proxies of a configuration from now on, with what `prepare` has made."""
        before, self._watched = self._watched, {}
        for section in config.proxy:
            was = before.get(section.name)
            if was is None or section.name in adapters:
                fresh = _Watched(section, adapters[section.name])
                fresh.drained = was is not None and was.drained
                was = fresh
            self._watched[section.name] = was
        self._wake.set()

    def start(self) -> None:
        """Begin to watch."""
        self._spawn(self._watch())

    async def close(self) -> None:
        """Stop watching, and give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What people ask.

    async def states(self) -> list[dict[str, Any]]:
        """Tell of all proxies and their pairs."""
        return [(await self._state(one)).plain() for one in list(self._watched.values())]

    async def drain(self, tell: Tell, proxy: str, timeout: float = DRAIN_S) -> dict[str, Any]:
        """Take a proxy out of all its sessions that allow it, and out of later ones; tells progress."""
        watched = self._named(proxy)
        watched.drained = True
        watched.refused.clear()
        self._wake.set()
        log("proxy_drained", proxy=proxy)
        began, before = self._owner.now(), watched.removed
        seen: list[Seen] = []
        last: tuple[object, ...] = ()
        changed_at = began

        def progress(now: list[Seen]) -> dict[str, Any]:
            stuck = [one for one in now if one.key in watched.refused]
            left = len(now) - len(stuck) + len(watched.unplaced)
            return {
                "kind": "progress",
                "box": proxy,
                "moved": watched.removed - before,
                "failed": len(stuck),
                "left": left,
            }

        looks = 0  # one after the other that have found nothing
        while True:
            seen = await self.look(watched)
            looks = 0 if seen or watched.unplaced else looks + 1
            self._remove(watched, [one for one in seen if not one.obstacle])
            await tell(progress(seen))
            now, state = self._owner.now(), (watched.removed, {one.key for one in seen}, watched.unplaced)
            if state != last:
                last, changed_at = state, now
            patient = now - changed_at < _UNCHANGED_S or watched.under_way
            if looks == _SURE or now - began >= timeout or not patient:
                break
            await asyncio.sleep(_LOOK_S)
        reasons = Counter(self._reason(watched, one) for one in seen)
        if watched.unplaced:
            reasons[_UNPLACED] = len(watched.unplaced)
        return {
            **progress(seen),
            "after_s": round(self._owner.now() - began, 6),
            "empty": not seen and not watched.unplaced,
            "reasons": dict(reasons),
        }

    async def undrain(self, proxy: str) -> bool:
        """Let a proxy stay in the sessions to come, as its section says; False if it was not drained."""
        watched = self._named(proxy)
        was, watched.drained = watched.drained, False
        log("proxy_undrained", proxy=proxy)
        return was

    # How it is done.

    async def look(self, watched: _Watched) -> list[Seen]:
        """Ask an adapter for its pairs, and find the sessions of this agent; raises HostError."""
        async with watched.turn:
            try:
                pairs = await watched.adapter.pairs()
            except DyscoError as error:
                if watched.trouble != str(error):
                    log("proxy_not_asked", logging.WARNING, proxy=watched.section.name, reason=str(error))
                watched.trouble = str(error)
                raise
        watched.trouble = ""
        unplaced = (one for one in watched.adapter.unplaced if _concerns(watched.section, one))
        watched.unplaced = frozenset(unplaced)
        lefts: dict[FiveTuple, SessionInfo] = {}
        rights: dict[FiveTuple, SessionInfo] = {}
        with self._owner.counted():
            for info in self._owner.live_sessions():
                if info.role == "last":
                    lefts[info.session_out] = info
                elif info.role == "first":
                    rights[info.session] = info
        seen = [
            Seen(pair, lefts.get(pair.left), rights.get(pair.right), proxy_rule(watched.section, pair.left))
            for pair in pairs
        ]
        seen = [one for one in seen if one.rule.verdict != "no match"]
        there = {one.key for one in seen}
        watched.refused = {key: value for key, value in watched.refused.items() if key in there}
        return seen

    async def _watch(self) -> None:
        next_at: dict[str, float] = {}
        while True:
            now = self._owner.now()
            active = [one for one in self._watched.values() if one.drained or one.section.remove != "never"]
            for one in active:
                if next_at.get(one.section.name, 0.0) <= now:
                    next_at[one.section.name] = now + one.section.every
                    await self._act(one)
            wait = min((next_at[one.section.name] for one in active), default=None)
            self._wake.clear()
            try:
                async with asyncio.timeout(None if wait is None else max(wait - self._owner.now(), 0.0)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _act(self, watched: _Watched) -> None:
        try:
            seen = await self.look(watched)
        except DyscoError:
            return  # said once by `look`, and by `dysco proxy list`
        except Exception as error:  # an own class may raise anything; the others go on
            log("proxy_adapter_failed", logging.ERROR, proxy=watched.section.name, reason=repr(error))
            watched.trouble = repr(error)
            return
        self._remove(watched, self._due(watched, seen))

    def _due(self, watched: _Watched, seen: list[Seen]) -> Iterator[Seen]:
        for one in seen:
            if one.obstacle or one.left is None:
                continue
            if watched.drained or due(watched.section, one.pair.left, one.left.bytes, one.left.age_s):
                yield one

    def _remove(self, watched: _Watched, pairs: Iterable[Seen]) -> None:
        now = self._owner.now()
        for one in pairs:
            again_at = watched.refused.get(one.key, ("", now))[1]
            if one.key not in watched.under_way and again_at <= now:
                watched.under_way.add(one.key)
                self._spawn(self._splice(watched, one))

    async def _splice(self, watched: _Watched, one: Seen) -> None:
        pair, name = one.pair, watched.section.name
        assert one.left is not None
        assert one.right is not None
        try:
            added = pair.added_right, pair.added_left
            ended = await self._owner.changes.splice(one.left, one.right, added, TIMEOUT_S, _nobody)
        finally:
            watched.under_way.discard(one.key)
        if ended.is_good:
            watched.removed += 1
            watched.refused.pop(one.key, None)
            log("proxy_removed", proxy=name, left=str(pair.left), right=str(pair.right))
        else:
            reason = f"{ended.by}: {ended.reason}" if ended.by else ended.reason
            watched.refused[one.key] = reason, self._owner.now() + _AGAIN_S
            log("proxy_stays", proxy=name, left=str(pair.left), right=str(pair.right), reason=reason)

    async def _state(self, watched: _Watched) -> ProxyState:
        seen: list[Seen] = []
        with contextlib.suppress(DyscoError):  # it stands in `trouble`
            seen = await self.look(watched)
        section = watched.section
        pairs = (self._pair(watched, one) for one in seen)
        return ProxyState(
            section.name,
            section.adapter,
            section.remove,
            watched.drained,
            watched.removed,
            watched.trouble,
            tuple(pairs),
        )

    def _pair(self, watched: _Watched, one: Seen) -> ProxiedPair:
        pair = one.pair
        reason = self._reason(watched, one)
        return ProxiedPair(
            left=str(pair.left),
            right=str(pair.right),
            added_right=pair.added_right,
            added_left=pair.added_left,
            safe=not one.obstacle,
            why=reason,
            rule=one.rule.text,
        )

    def _reason(self, watched: _Watched, one: Seen) -> str:
        """Why a pair still has its proxy, or why it may leave."""
        refused = watched.refused.get(one.key)
        return one.obstacle or (refused[0] if refused is not None else one.pair.why)

    def _named(self, name: str) -> _Watched:
        found = self._watched.get(name)
        if found is None:
            known = ", ".join(self._watched) or "none"
            raise LocalError(f"{name!r} is no [[proxy]] of this host's configuration (there are: {known})")
        return found

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _concerns(section: Proxy, client: FiveTuple) -> bool:
    return proxy_rule(section, client).verdict != "no match"


async def _nobody(_: dict[str, Any]) -> None:
    """Hear of the phases of one splice, of which only the end counts here."""
