"""Chains that the kernel opens by itself: keeps it told what it needs for that, and takes up what it has opened.

Only in the mode `ebpf`. What the kernel may decide is what would be decided alike for every session: policies whose
hops are named (no group), with on_fail = "closed" and the final host's agent; SYNs of neighbours that may go anywhere;
this host's default box, if it lies in the agent's namespace and is known by its tuple. All else comes to the core, and
so does whatever the programs do not understand.

Reports lie in a ring until the agent takes them, at most DELAY_S; whoever is about to act on packets, messages or
commands takes them first. Their room is given back when the journal knows of them, so that nothing is lost with the
agent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import zlib
from functools import partial
from typing import TYPE_CHECKING, Final

from dysco.dataplane.opening import MAX_HOPS, KernelWindow, Openings, OpenNeighbour, OpenRule
from dysco.dataplane.steer import MAX_NEIGHBOURS, MAX_SLOTS, TICKETS
from dysco.errors import HostError
from dysco.policy import Place
from dysco.protocol.adoption import Association, plain_box
from dysco.service.kernel import TRIAL
from dysco.service.logs import log
from dysco.wire.chain_header import CHAIN_ID_LEN, Hop
from dysco.wire.tuples import Family

if TYPE_CHECKING:
    from dysco.policy import PolicySet
    from dysco.policy.clauses import Clause
    from dysco.policy.rules import Rule
    from dysco.service.agent import AgentService

DELAY_S: Final = 0.02  # ours: how long a report may wait, so that many are taken at a wake-up
LOOK_S: Final = 1.0  # ours: between two looks while chains are opened; the agent looks now and then by itself
_LEAST: Final = (
    512  # tickets that lie ready for an address; twice as many whenever half of them were used at once
)
# At most half of their places: a program may still be reading a ticket that it has taken when another is laid there.
_MOST: Final = TICKETS // 2


class KernelOpening:
    """What stands between the agent and the programs that open chains."""

    def __init__(self, agent: AgentService, openings: Openings) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self.openings = openings
        self._numbers: dict[str, int] = {}
        self._slots: dict[tuple[bytes, bytes], _Slot] = {}
        self._by_number: dict[tuple[int, Family], _Slot] = {}
        self._peers: dict[bytes, int] = {}
        self._told: dict[int, OpenNeighbour] = {}
        self._rules: list[OpenRule] = []
        self._names = {_number(rule): rule.name for rule in agent.policies.rules}
        self._policies: tuple[PolicySet, list[tuple[Clause, Rule | None]]] | None = None
        self._box: tuple[int, int | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_on = False
        self._listening = False
        self._looked_at = 0.0
        self.refused = ""

    async def start(self) -> None:
        """Begin; if the kernel refuses the programs, chains are opened by the agent, and the log says why."""
        try:
            await asyncio.to_thread(self.openings.load, TRIAL)
        except HostError as error:
            self.refused = str(error)
            log("kernel_opens_no_chains", logging.WARNING, reason=self.refused)
            return
        self.refresh()
        self.openings.enable()
        self._listen()
        self._is_on = True

    def stop(self) -> None:
        """Have every SYN come to the agent again, and take what was opened until then."""
        self._is_on = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._listening:
            self._loop.remove_reader(self.openings.fd)
            self._listening = False
        self.openings.disable()
        self._agent.take_reports()

    @property
    def state(self) -> str:
        """Who opens chains where nothing has to be decided, for people."""
        return f"agent ({self.refused})" if self.refused else "kernel"

    @property
    def laid(self) -> int:
        """How many pairs of ports lie ready for chains to come."""
        return sum(slot.laid for slot in self._slots.values())

    # Reports.

    def take(self, *, settle: bool) -> bool:
        """Give the core what the kernel has done since; True if there was anything. settle: as in `brief`."""
        briefs = self._agent.core.adoption.briefs
        if not self.openings.has_reports() and not briefs.has_young:
            return False
        now = self._agent.now()
        try:
            reports = self.openings.reports(self._names)
            self._agent.core.take_reports(reports, now, self.openings.position, settle=settle)
        except Exception:
            self._agent.fault("report")
        for place, ticket in self.openings.tickets.items():
            if place in self._by_number:
                self._by_number[place].use(ticket)
        self.openings.tickets.clear()
        for name, number in self._numbers.items() if self.openings.begun else ():
            if begun := self.openings.begun[number]:
                self._agent.core.adoption.charge(name, begun, now)
        self.openings.begun.clear()
        if now >= self._looked_at + LOOK_S:
            self.look()
        else:
            for slot in self._slots.values():
                slot.fill(now)
        return True

    def done(self) -> None:
        """What was taken stands in the journal now, but for what is still young."""
        mark = self._agent.core.adoption.briefs.mark
        self.openings.done(self.openings.position if mark is None else mark)

    def _listen(self) -> None:
        if not self._listening:
            self._loop.add_reader(self.openings.fd, self._ready)
            self._listening = True

    def _ready(self) -> None:
        """There is something: take it soon, with what comes until then."""
        self._loop.remove_reader(self.openings.fd)
        self._listening = False
        self._timer = self._loop.call_later(DELAY_S, self._take)

    def _take(self) -> None:
        self._timer = None
        self._agent.take_reports(settle=False)
        self._listen()

    # What the kernel must know.

    def look(self) -> None:
        """Bring up to date what changes by itself: MTUs, keys that expire, full tables, tickets taken in vain."""
        if not self._is_on:
            return
        self._looked_at = now = self._agent.now()
        self.refresh()
        for slot in self._slots.values():
            slot.taken = max(slot.taken, self.openings.taken(slot.number))
            slot.fill(now)

    def refresh(self) -> None:
        """Bring up to date what the programs know; cheap if nothing has changed."""
        agent, now = self._agent, self._agent.now()
        associations = list(agent.core.adoption.associations(now))
        self._tell_neighbours(associations, now)
        box = plain_box(agent.core_settings)
        wanted = (agent.core_settings.mtu, None if box is None else box.tag)
        if wanted != self._box:
            self._box = wanted
            self.openings.configure(*wanted)
        policies = agent.policies
        if self._policies is None or self._policies[0] is not policies:
            self._policies = policies, policies.in_order()
            self._names.update((_number(rule), rule.name) for rule in policies.rules)
        rules = [self._rule(clause, rule) for clause, rule in self._policies[1]]
        if rules != self._rules:
            self._rules = rules
            self.openings.set_rules(rules)

    def _tell_neighbours(self, associations: list[Association], now: float) -> None:
        peers: dict[bytes, int] = {}
        used: set[int] = set()
        for one in associations:
            number = self._numbers.get(one.name)
            if number is None:
                if len(self._numbers) == MAX_NEIGHBOURS:
                    continue
                self._numbers[one.name] = number = len(self._numbers)
                counter = self._agent.core.draw_counters(one.name, partial(self.openings.draw, number))
                self.openings.set_counter(number, counter)
            windows = [
                (entry.key, entry.until, entry.window.number)
                for entry in one.accepted
                if isinstance(entry.window, KernelWindow)
            ]
            used.update(number for _, _, number in windows)
            ways: dict[Family, tuple[bytes, bytes]] = {
                4 if len(own) == 4 else 6: (own, at) for own, at in one.ways
            }
            slots = {}
            for family, way in ways.items():
                peers[way[1]] = number
                slot = self._slot(way, now) if one.send_key else None
                if slot is not None:
                    slots[family] = slot.number
                    self._by_number[number, family] = slot
            for address in one.aliases:
                peers.setdefault(address, number)
            told = OpenNeighbour(ways, slots, one.mtu, one.rate, one.send_key, tuple(windows))
            if self._told.get(number) != told:
                self._told[number] = told
                self.openings.set_neighbour(number, told)
        for address in self._peers.keys() - peers.keys():
            self.openings.set_peer(address, None)
        for address, number in peers.items():
            if self._peers.get(address) != number:
                self.openings.set_peer(address, number)
        self._peers = peers
        self.openings.keep_windows(used)

    def _rule(self, clause: Clause, rule: Rule | None) -> OpenRule:
        """What the kernel does with the sessions of a clause; nothing where the agent must decide."""
        if rule is None or rule.on_fail != "closed" or rule.egress != "agent" or not rule.hops:
            return OpenRule(clause)
        hops = []
        for hop in rule.hops:
            address = hop.address(clause.family) if isinstance(hop, Place) else None
            if address is None or not isinstance(hop, Place) or self._agent.drained(address, hop.box):
                return OpenRule(clause)
            hops.append(Hop(address, hop.box))
        neighbour = self._peers.get(hops[0].address)
        if neighbour is None or len(hops) >= MAX_HOPS:
            return OpenRule(clause)
        return OpenRule(clause, neighbour, tuple(hops), _number(rule))

    def _slot(self, way: tuple[bytes, bytes], now: float) -> _Slot | None:
        slot = self._slots.get(way)
        if slot is None and len(self._slots) < MAX_SLOTS:
            self._slots[way] = slot = _Slot(self._agent, self.openings, len(self._slots), way)
            slot.fill(now)
        return slot


class _Slot:
    """The tickets toward one address of a neighbour. laid and taken: how many ever were."""

    def __init__(
        self, agent: AgentService, openings: Openings, number: int, way: tuple[bytes, bytes]
    ) -> None:
        self.number = number
        self.taken = self._laid = openings.taken(number)
        self._agent = agent
        self._openings = openings
        self._way = way
        self._ready = _LEAST
        openings.clear_tickets(number)

    @property
    def laid(self) -> int:
        """How many lie ready."""
        return max(0, self._laid - self.taken)

    def use(self, ticket: int) -> None:
        """One was taken, unless it was of the slot that the neighbour had before."""
        if self.taken < ticket <= self._laid:
            self.taken = ticket

    def fill(self, now: float) -> None:
        """Lay tickets ready in place of those that were taken."""
        left = self._laid - self.taken
        if left * 4 > self._ready * 3:
            return
        if left * 2 < self._ready and self._laid > self._ready:
            self._ready = min(2 * self._ready, _MOST)
        pairs = self._agent.core.adoption.allocate(*self._way, min(self._ready - left, self._ready), now)
        ids = os.urandom(CHAIN_ID_LEN * len(pairs))
        tickets = [
            (ids[at : at + CHAIN_ID_LEN], *pair)
            for at, pair in zip(range(0, len(ids), CHAIN_ID_LEN), pairs, strict=True)
        ]
        first = max(self._laid, self.taken) + 1
        self._openings.put_tickets(self.number, first, tickets)
        self._laid = first + len(tickets) - 1


def clear_stale(agent: AgentService) -> asyncio.TimerHandle:
    """Take away what an agent before this one has left in the kernel's maps and nobody knows of any more.

    What the kernel carries by itself goes on for a while: brief sessions are not in the journal (`protocol.brief`).
    """
    steering, table = agent.kernel.steering, agent.table
    table.divert_only(steering.diverted() if agent.kernel.in_kernel else steering.entries())
    for match in steering.boxed():
        if not table.expects(match):
            steering.take_out(match)
    rest = agent.config.timers.time_wait
    return asyncio.get_running_loop().call_later(rest, lambda: table.divert_only(steering.entries()))


def _number(rule: Rule) -> int:
    """By what reports name a rule; the same after a restart."""
    return zlib.crc32(rule.name.encode())
