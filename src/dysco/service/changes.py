"""Changes of live chains as the control socket offers them: which sessions, one change after the other, what happened.

    wish --trace--> places --planning.py--> change --core--> phases --> who asked
              ^                                |
              +----- busy, a little later -----+

Sessions are changed at the same time, up to a limit. A change that was asked for goes on when nobody listens any more.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dysco import policy
from dysco.errors import (
    ConfigError,
    DyscoError,
    ExitStatus,
    LocalError,
    RemoteError,
    TimedOutError,
    WireError,
)
from dysco.protocol.agent import Agent
from dysco.protocol.chain import SessionInfo, key_of
from dysco.protocol.events import ChangeMoved, Traced
from dysco.protocol.states import State
from dysco.service import planning
from dysco.service.planning import Plan, Wish
from dysco.wire.chain_header import CHAIN_ID_LEN, Hop
from dysco.wire.messages import Change, Place
from dysco.wire.tuples import FiveTuple, show_address

Tell = Callable[[dict[str, Any]], Awaitable[None]]
TIMEOUT_S: Final = 30.0  # seconds for one session, tries after "busy" among them
FORCED_S: Final = (
    1.2  # seconds for a chain to say who is on it if some agent of it may be dead: two repetitions
)
AT_ONCE: Final = (
    40  # more would only wait for each other in the agents' loops, and repeat themselves meanwhile
)
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.4
_REASON_S: Final = 1.0  # seconds that the other anchor's reason may come later than our own abort
_SHORTEST_PREFIX: Final = 4
_ORDER: Final = ("requested", "locked", "new path up", "two paths", "drained", "done", "refused", "aborted")
FINAL: Final = frozenset(("done", "refused", "aborted"))
LIVE: Final = frozenset(("established", "half-closed"))
_PASSING: Final = ("busy", "not ready", "not found", "too many sessions a second")
"""Beginnings of reasons that may be over when one asks again."""


class Owner(Protocol):
    """The agent, as far as it is needed here."""

    core: Agent

    @property
    def name(self) -> str: ...

    def now(self) -> float: ...

    def transmit(self) -> None: ...

    def hop(self, name: str, session: FiveTuple) -> Hop: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """How a change is to be done: see the fields of the same name in `dysco.wire.messages.Change`.

    timeout: seconds. dry_run: only plan. wait: tell until it has ended.
    """

    timeout: float = TIMEOUT_S
    dry_run: bool = False
    wait: bool = True
    force: bool = False
    state: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a change of one session has ended: done, refused, aborted, timed out, planned, asked, over."""

    outcome: str
    by: str = ""
    reason: str = ""

    @property
    def is_good(self) -> bool:
        return self.outcome in ("done", "planned", "asked", "over")


class ChainChanges:
    """Asks the core for changes and traces, and hears what comes of them."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._traces: dict[int, asyncio.Future[tuple[Place, ...]]] = {}
        self._runs: dict[int, asyncio.Queue[ChangeMoved]] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)

    def hear(self, event: ChangeMoved | Traced) -> None:
        """Take an event of the core."""
        if isinstance(event, Traced):
            waiting = self._traces.pop(event.number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(event.places)
        elif (queue := self._runs.get(event.request)) is not None:
            queue.put_nowait(event)

    # Which sessions.

    def select(self, text: str, *, at_least: bool = True) -> list[SessionInfo]:
        """The sessions that a chain id, its beginning, a five-tuple or a match expression means.

        LocalError if there is none and there must be at least one.
        """
        known: dict[bytes, SessionInfo] = {}
        for info in self._owner.core.sessions(self._owner.now()):
            known.setdefault(info.chain_id, info)
        digits = text.strip().lower()
        if _SHORTEST_PREFIX <= len(digits) <= 2 * CHAIN_ID_LEN and not set(digits) - set("0123456789abcdef"):
            found = [info for key, info in known.items() if key.hex().startswith(digits)]
            if len(found) > 1:
                raise LocalError(f"{len(found)} chains begin with {text}: say more of it")
            if found:
                return found
        if ">" in text:
            try:
                wanted = FiveTuple.parse(text)
            except WireError as error:
                raise ConfigError(str(error)) from None
            found = [info for info in known.values() if wanted in (info.session, info.session_out)]
        else:
            try:
                test = _predicate(text)
            except policy.MatchError as error:
                raise ConfigError(
                    f"{text!r} is no chain that this agent knows and no match expression: {error}"
                ) from None
            found = [info for info in known.values() if info.state in LIVE and test(info.session)]
        if not found and at_least:
            raise LocalError(f"no session here is {text!r}")
        return found

    def single(self, text: str, role: str) -> SessionInfo:
        """The one session that a text means and in whose chain this host has a role; LocalError if not exactly one."""
        found = [info for info in self.select(text) if info.role == role]
        if len(found) != 1:
            where = "ends" if role == "last" else "begins"
            many = f"{len(found)} sessions" if found else "no session"
            raise LocalError(f"{many} whose chain {where} at this host: {text!r}")
        return found[0]

    # Who is on a chain.

    async def trace(self, info: SessionInfo) -> tuple[Place, ...]:
        """The agents on a chain, from left to right; LocalError if it cannot be found out."""
        number = random.getrandbits(64)
        waiting = self._traces[number] = asyncio.get_running_loop().create_future()
        try:
            if not self._owner.core.trace(key_of(info), number, self._owner.now()):
                raise LocalError(f"{info.session}: the session has ended")
            self._owner.transmit()
            places: tuple[Place, ...] = await waiting
        finally:
            self._traces.pop(number, None)
        if not places:
            raise LocalError(
                f"{info.session}: its chain did not answer; --force goes on without an agent that is dead"
            )
        return places

    async def _places(self, info: SessionInfo, *, force: bool) -> tuple[Place, ...]:
        """The agents on a chain; with force, as they were before, if one of them does not answer any more."""
        if not force:
            return await self.trace(info)
        try:
            async with asyncio.timeout(FORCED_S):
                return await self.trace(info)
        except (TimeoutError, LocalError):
            known = self._owner.core.places(key_of(info))
            if known:
                return known
            raise LocalError(
                f"{info.session}: its chain does not answer, and had not yet said who is on it"
            ) from None

    async def traces(self, tell: Tell, session: str = "") -> None:
        """Tell of each session that is meant, by default of all, who is on its chain."""

        async def one(info: SessionInfo) -> None:
            said = _about(info)
            try:
                async with self._gate:
                    said["places"] = [place_record(place) for place in await self.trace(info)]
            except DyscoError as error:
                said["places"], said["error"] = [], str(error)
            await tell(said)

        async with asyncio.TaskGroup() as group:
            for info in self.select(session, at_least=bool(session)):
                group.create_task(one(info))

    # Changes.

    async def change(self, infos: list[SessionInfo], wish: Wish, terms: Terms, tell: Tell) -> dict[str, int]:
        """Change the chains of sessions; tells plans, phases and outcomes, and returns how many ended how."""
        counts: dict[str, int] = {}

        async def one(info: SessionInfo) -> None:
            ended = await self.one(info, wish, terms, tell)
            counts[ended.outcome] = counts.get(ended.outcome, 0) + 1

        async with asyncio.TaskGroup() as group:
            for info in infos:
                group.create_task(one(info))
        return counts

    async def leave(self, box: str, session: FiveTuple, other: str) -> None:
        """Take a box of this host out of a session's chain, or put `other` into its place; raises why not."""
        owner = self._owner
        found = (
            info for info in owner.core.sessions(owner.now()) if (info.box, info.session) == (box, session)
        )
        info = next(found, None)
        if info is None:
            raise LocalError(f"{session} does not pass {box}")
        name = f"{owner.name}/{box}"
        wish = Wish("replace", name, (other,)) if other else Wish("remove", name)

        async def tell(_: dict[str, Any]) -> None:
            """Only the end counts."""

        ended = await self.one(info, wish, Terms(), tell)
        if not ended.is_good:
            kinds: dict[str, type[DyscoError]] = {"timed out": TimedOutError, "impossible": LocalError}
            raise kinds.get(ended.outcome, RemoteError)(
                f"{session}: {ended.outcome} by {ended.by}: {ended.reason}"
            )

    async def splice(
        self, left: SessionInfo, right: SessionInfo, added: tuple[int, int], timeout: float, tell: Tell
    ) -> Outcome:
        """Take out the proxy of this host that stands between two sessions; tells phases and the outcome.

        added: bytes that it has written more than it has read, to the right and to the left. timeout: seconds.
        """
        return await self.run(left, tell, Terms(timeout), lambda run: self._splice(run, right, added))

    async def _splice(self, run: Run, right: SessionInfo, added: tuple[int, int]) -> Outcome:
        owner, wait = self._owner, _FIRST_WAIT_S
        while True:
            request = random.getrandbits(64)
            queue = self._runs[request] = asyncio.Queue()
            try:
                keys = key_of(run.info), key_of(right)
                if not owner.core.splice(
                    *keys, request, owner.now(), added_right=added[0], added_left=added[1]
                ):
                    raise LocalError("one of the two sessions has ended")
                owner.transmit()
                await run.say("phase", phase=_ORDER[0], by="", reason="")
                ended = await _follow(run, queue)
            finally:
                del self._runs[request]
            if ended.outcome == "done" or not ended.reason.startswith(_PASSING):
                return ended
            wait = await _busy(run, ended, wait)

    async def one(self, info: SessionInfo, wish: Wish, terms: Terms, tell: Tell) -> Outcome:
        """Change one chain and tell how it goes; trying again while somebody is busy, until the time is over."""
        return await self.run(info, tell, terms, lambda run: self._tries(run, wish, terms))

    async def run(
        self, info: SessionInfo, tell: Tell, terms: Terms, work: Callable[[Run], Awaitable[Outcome]]
    ) -> Outcome:
        """Do what is to be done to one session, in its time, and tell how it has ended."""
        began = self._owner.now()
        run = Run(info, tell, self._owner.now, began)
        try:
            async with self._gate, asyncio.timeout(terms.timeout):
                ended = await work(run)
        except TimeoutError:
            ended = Outcome("timed out", run.by, run.reason or f"after {terms.timeout:g} s")
        except DyscoError as error:
            refused = error.exit_status is ExitStatus.REFUSED
            ended = Outcome("refused" if refused else "impossible", self._owner.name, str(error))
        if not ended.is_good and self.has_closed(info):
            ended = Outcome("over", reason="both ends have closed the session")
        await run.say("end", phase=ended.outcome, by=ended.by, reason=ended.reason)
        return ended

    def has_closed(self, info: SessionInfo) -> bool:
        """Whether both FINs of a session have passed: there is nothing left for another chain to carry."""
        now = self._owner.core.session(key_of(info), self._owner.now())
        return now is not None and now.state == State.TIME_WAIT.value

    async def _tries(self, run: Run, wish: Wish, terms: Terms) -> Outcome:
        wait, told, info = _FIRST_WAIT_S, False, run.info

        def resolve(name: str) -> Hop:
            return self._owner.hop(name, info.session)

        while True:
            plan = planning.plan(await self._places(info, force=terms.force), wish, resolve)
            if not told:
                told = True
                await run.say("plan", before=list(plan.before), after=list(plan.after))
            if terms.dry_run:
                return Outcome("planned")
            if plan.is_empty:
                return Outcome("done", reason="the chain is so already")
            ended = await self._once(run, plan, terms)
            if ended.outcome == "done" or not ended.reason.startswith(_PASSING):
                return ended
            wait = await _busy(run, ended, wait)

    async def _once(self, run: Run, plan: Plan, terms: Terms) -> Outcome:
        info, owner = run.info, self._owner
        left, right = info.left.label, 0 if info.right is None else info.right.label
        change = plan.change(random.getrandbits(64), owner.name, force=terms.force, state=terms.state)
        rightward = plan.rightward(planning.here(plan.places, owner.name, left, right))
        return await self.request(run, change, rightward=rightward, wait=terms.wait)

    async def request(self, run: Run, change: Change, *, rightward: bool, wait: bool) -> Outcome:
        """Ask once for a change, and tell how it goes."""
        info, owner, request = run.info, self._owner, change.request
        queue = self._runs[request] = asyncio.Queue()
        try:
            if not owner.core.change(key_of(info), change, owner.now(), rightward=rightward):
                raise LocalError("the session has ended")
            owner.transmit()
            await run.say("phase", phase=_ORDER[0], by="", reason="")
            if not wait:
                return Outcome("asked")
            return await _follow(run, queue)
        finally:
            del self._runs[request]


class Run:
    """A change of one session: how to tell of it. by, reason: why it had to wait last."""

    def __init__(self, info: SessionInfo, tell: Tell, now: Callable[[], float], began: float) -> None:
        self.info = info
        self.by = self.reason = ""
        self._tell = tell
        self._now = now
        self._began = began

    def refresh(self, info: SessionInfo | None) -> bool:
        """See the session as it is now; False if it has ended."""
        self.info = info or self.info
        return info is not None

    async def say(self, kind: str, **fields: Any) -> None:
        after_s = round(self._now() - self._began, 6)
        await self._tell({"kind": kind, **_about(self.info), "after_s": after_s, **fields})


async def _busy(run: Run, ended: Outcome, wait: float) -> float:
    """Tell that somebody is busy and wait at most so many seconds; gives how long to wait the next time."""
    run.by, run.reason = ended.by, ended.reason
    await run.say("phase", phase="waiting", by=ended.by, reason=ended.reason)
    await asyncio.sleep(random.uniform(wait / 2, wait))
    return min(2 * wait, _LONGEST_WAIT_S)


async def _follow(run: Run, queue: asyncio.Queue[ChangeMoved]) -> Outcome:
    """Tell phases behind the first until the last. Both anchors may be here: each phase is told once."""
    seen = 0
    ended: Outcome | None = None
    while True:
        try:
            async with asyncio.timeout(None if ended is None else _REASON_S):
                event = await queue.get()
        except TimeoutError:
            assert ended is not None
            return ended
        if event.phase == "stuck":
            run.by, run.reason = event.by, event.reason  # if the time is over before this is: why
            await run.say("phase", phase=event.phase, by=event.by, reason=event.reason)
            continue
        rank = _ORDER.index(event.phase)
        if rank > seen and event.phase not in ("refused", "aborted"):
            seen = rank
            await run.say("phase", phase=event.phase, by=event.by, reason=event.reason)
        if event.phase in FINAL:
            ended = Outcome(event.phase, event.by, event.reason)
            if event.phase == "done" or event.by:
                return ended


@functools.lru_cache(maxsize=256)
def _predicate(text: str) -> Callable[[FiveTuple], bool]:
    """What an expression says of a session; who asks for a change asks for more than one."""
    return policy.predicate(policy.parse(text))


def place_record(place: Place) -> dict[str, Any]:
    """A place as plain values."""
    return {
        "agent": place.agent,
        "box": place.box or None,
        "address": show_address(place.address) if place.address else None,
        "mandatory": place.mandatory,
    }


def _about(info: SessionInfo) -> dict[str, Any]:
    return {"chain_id": info.chain_id.hex(), "session": str(info.session)}
