"""`python -m dysco.sim.check`: walk every state of small networks with two changes that contend, and at most one fault.

A state is: the state of each host, what is under way between each two of them, the time, how many faults are left.
From each state every next step is taken, breadth first, so that what is found is found with its shortest dialogue:

    deliver   the oldest packet or message of any link (links keep order; packets and messages go on separate ones)
    timer     only if nothing is under way: the earliest timer of all, each of those that are due at the same moment
    fault     lose, repeat or overtake the oldest of a link; restart an agent from its journal; a timer before its time;
              also that an end of the session closes

So the time at which something arrives is left open in every way that the order of arrivals can tell, and waiting costs
no states. `slack` bounds how often a run may depart from one fixed order of links (None: as often as it likes); the
tables of the report say with which slack each instance was walked.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dysco.protocol.locks import COMMIT_S, LEASE_S
from dysco.sim.endpoint import State as Socket
from dysco.sim.node import START_S, Command, Item, Nodes, View, make_nodes
from dysco.sim.relay import DROPPED
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops

LONGEST_S: Final = 400.0
EARLIEST_S: Final = LEASE_S - COMMIT_S
"""How far ahead of what is under way a timer may fire; leases rest on nothing being under way for longer."""
PROBE_S: Final = 90.0
HARSH: Final = frozenset(("restart", "early"))
"""Faults after which no change needs to be done; one lost message must not hinder any."""
SHOWN: Final = 40
FIRST, SECOND = 1, 2
DONE, OPEN = Socket.DONE.value, Socket.OPEN.value
FAULTS: Final = ("lose", "repeat", "overtake", "restart", "early", "close")


class State(NamedTuple):
    """Where the whole network stands.

    nodes: numbers of host states, by name. under_way: what waits on each link. spent: the last fault, or the
    first harsh one.
    """

    now: float
    nodes: tuple[int, ...]
    under_way: tuple[tuple[str, tuple[Item | Command, ...]], ...]
    faults: int
    slack: int
    spent: str = ""


class Step(NamedTuple):
    """One choice. link: of which the first is delivered, or the host of a timer or restart."""

    kind: str
    link: str

    def __str__(self) -> str:
        return f"{self.kind} {self.link}"


@dataclass(frozen=True)
class Ask:
    """Who asks for which change: labels of the first and last subsession, the hosts that take their place.

    splice: the proxy is taken out from between these two, counted from the client on, not from the proxy.
    """

    host: str
    first: int
    last: int
    hops: str
    rightward: bool = False
    splice: bool = False


@dataclass(frozen=True)
class Instance:
    """A network of hosts, the route of its session, and two changes. data: bytes each end has sent when they begin.

    proxy: which host of the route has a proxy. late: it lets bytes lie until nothing else is under way.
    """

    names: str
    route: str
    asks: tuple[Ask, ...]
    data: int = 0
    proxy: str = ""
    late: bool = False

    @property
    def overlapping(self) -> bool:
        """Whether the segments have a subsession in common."""
        if len(self.asks) < 2:
            return False
        (first, last), (other_first, other_last) = map(self._segment, self.asks)
        return first <= other_last and other_first <= last

    def _segment(self, ask: Ask) -> tuple[int, int]:
        """The first and last subsession, counted from the client on."""
        is_behind = (
            self.proxy and not ask.splice and self.route.index(ask.host) > self.route.index(self.proxy)
        )
        before = self.route.index(self.proxy) if is_behind else 0
        return before + ask.first, before + ask.last


INSTANCES: Final[dict[str, Instance]] = {
    "one": Instance("abc", "abc", (Ask("a", 1, 2, "c"),)),
    "insert": Instance("abx", "ab", (Ask("a", 1, 1, "xb"),)),
    "same-2": Instance("ab", "ab", (Ask("a", 1, 1, "b"), Ask("b", 1, 1, "b"))),
    "same-3": Instance("abc", "abc", (Ask("a", 1, 2, "c"), Ask("c", 1, 2, "c"))),
    "nested-3": Instance("abc", "abc", (Ask("a", 1, 2, "c"), Ask("b", 2, 2, "c"))),
    "overlapping-4": Instance("abcd", "abcd", (Ask("a", 1, 2, "c"), Ask("b", 2, 3, "d"))),
    "nested-4": Instance("abcd", "abcd", (Ask("a", 1, 3, "d"), Ask("d", 2, 2, "c"))),
    "disjoint-3": Instance("abc", "abc", (Ask("a", 1, 1, "b"), Ask("b", 2, 2, "c"))),
    "disjoint-4": Instance("abcd", "abcd", (Ask("a", 1, 2, "c"), Ask("c", 3, 3, "d"))),
    "insert-4": Instance("abcx", "abc", (Ask("a", 1, 1, "xb"), Ask("b", 2, 2, "c"))),
    "replace-4": Instance("abcx", "abc", (Ask("a", 1, 2, "xc"), Ask("c", 1, 2, "c"))),
    "proxy": Instance("apc", "apc", (Ask("p", 1, 2, "c", splice=True),), proxy="p"),
    "proxy-late": Instance("apc", "apc", (Ask("p", 1, 2, "c", splice=True),), proxy="p", late=True),
    "proxy-box": Instance("abpc", "abpc", (Ask("a", 1, 2, "p"), Ask("p", 2, 3, "c", splice=True)), proxy="p"),
    "proxy-hop": Instance("apbc", "apbc", (Ask("p", 1, 2, "b", splice=True), Ask("c", 1, 2, "c")), proxy="p"),
}


@dataclass
class Report:
    """What a walk has found. dialogue: the shortest way to the first fault; choices: the same to walk it again."""

    name: str
    states: int = 0
    edges: int = 0
    ends: int = 0
    depth: int = 0
    local_states: int = 0
    local_steps: int = 0
    complete: bool = False
    fault: str = ""
    choices: list[str] = field(default_factory=list)
    dialogue: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "all" if self.complete else "the first"
        return (
            f"{self.name}: {how} {self.states} states, {self.edges} steps, depth {self.depth}, {self.ends} ends, "
            f"{self.local_states} states of hosts by {self.local_steps} steps of real agents: "
            f"{self.fault or 'without fault'}"
        )


class Checker:
    """Walks one instance."""

    def __init__(
        self,
        name: str,
        *,
        faults: int = 0,
        slack: int | None = None,
        kinds: tuple[str, ...] = FAULTS,
        data: int | None = None,
    ) -> None:
        self.instance = INSTANCES[name]
        self.report = Report(name)
        self.kinds = kinds
        self._names = self.instance.names
        self._ends = self.instance.route[0], self.instance.route[-1]
        self._nodes = Nodes()
        self._bounded = slack is not None
        self._probed: dict[State, str] = {}
        self._data = self.instance.data if data is None else data
        self.start = self._begin(faults, slack or 0)

    def walk(self, most: int = 1_000_000) -> Report:
        """Walk until every state is known, `most` are, or a fault is found."""
        report, parents = self.report, dict[State, tuple[State, Step] | None]()
        parents[self.start] = None
        depth = {self.start: 0}
        queue = deque([self.start])
        report.complete = True
        while queue:
            state = queue.popleft()
            level = depth.pop(state)
            report.depth = level
            fault = self._judge(state)
            steps = [] if fault else list(self._steps(state))
            if not fault and not steps:
                report.ends += 1
                fault = self._judge_end(state)
            if fault:
                report.fault = fault
                report.choices = [str(step) for step in self._way(parents, state)]
                report.dialogue = self.replay(report.choices)
                break
            for step in steps:
                following = self._take(state, step)
                report.edges += 1
                if following not in parents:
                    if len(parents) >= most:
                        report.complete = False
                        continue
                    parents[following] = (state, step)
                    depth[following] = level + 1
                    queue.append(following)
        report.states = len(parents)
        report.local_states, report.local_steps = len(self._nodes), self._nodes.steps
        return report

    def replay(self, choices: list[str]) -> list[str]:
        """Walk one way again and say what happens on it."""
        state, lines = self.start, []
        for choice in choices:
            step = Step(*choice.split(" ", 1))
            what = self._what(state, step)
            following = self._take(state, step)
            lines.append(f"{following.now - START_S:8.3f} {step.kind:<8} {what}")
            state = following
        for name, view in zip(self._names, self._views(state), strict=True):
            lines.append(f"         {name}: {view}")
        fault = self._judge(state) or (self._judge_end(state) if not list(self._steps(state)) else "")
        return [*lines, f"         {fault or 'without fault'}"]

    # Steps.

    def _steps(self, state: State) -> Iterator[Step]:
        links = dict(state.under_way)
        if not links:
            if self._at_rest(state) or state.now - START_S > LONGEST_S:
                return
            dues = [view.due for view in self._views(state)]
            due = min(dues)
            yield from (Step("timer", name) for name, at in zip(self._names, dues, strict=True) if at == due)
        free = not self._bounded or state.slack > 0
        for number, link in enumerate(links):
            if number == 0 or free:
                yield Step("deliver", link)
        if state.faults:
            yield from self._faults(state, links)

    def _faults(self, state: State, links: dict[str, tuple[Item | Command, ...]]) -> Iterator[Step]:
        for link, items in links.items():
            if isinstance(items[0], Item):
                for kind in ("lose", "repeat"):
                    if kind in self.kinds:
                        yield Step(kind, link)
                if len(items) > 1 and "overtake" in self.kinds:
                    yield Step("overtake", link)
        for name, view in zip(self._names, self._views(state), strict=True):
            if "restart" in self.kinds:
                yield Step("restart", name)
            if links and "early" in self.kinds and view.due < state.now + EARLIEST_S:
                yield Step("early", name)
            if "close" in self.kinds and name in self._ends and not view.closed:
                yield Step("close", name)

    def _what(self, state: State, step: Step) -> Item | Command:
        if step.kind in ("timer", "early"):
            return Command(step.link, "timer")
        if step.kind in ("restart", "close"):
            return Command(step.link, step.kind)
        return dict(state.under_way)[step.link][1 if step.kind == "overtake" else 0]

    def _take(self, state: State, step: Step) -> State:
        links, now, slack, faults = dict(state.under_way), state.now, state.slack, state.faults
        spent = state.spent
        what = self._what(state, step)
        if step.kind in ("timer", "early"):
            now = max(now, self._views(state)[self._names.index(step.link)].due)
        if step.kind not in ("timer", "deliver"):
            faults, spent = faults - 1, spent if spent in HARSH else step.kind
        elif step.kind == "deliver" and self._bounded and step.link != next(iter(links)):
            slack -= 1
        if step.kind in ("deliver", "lose", "overtake"):
            items = links[step.link]
            del links[step.link]
            left = items[1:] if step.kind != "overtake" else items[:1] + items[2:]
            if left:
                links[step.link] = left
        nodes = state.nodes
        if step.kind != "lose":
            index = self._names.index(what.target)
            number, sent = self._nodes.step(nodes[index], what, now)
            nodes = (*nodes[:index], number, *nodes[index + 1 :])
            for item in sent:
                link = f"{item.source}>{item.target} {item.kind}"
                links[link] = (*links.get(link, ()), item)
        # With a bound the order of links is that of their turns; without one it says nothing, and is left out.
        under_way = tuple(links.items() if self._bounded else sorted(links.items()))
        return State(now, nodes, under_way, faults, slack, spent)

    def _begin(self, faults: int, slack: int) -> State:
        """An established session with both changes about to be asked for."""
        instance = self.instance
        nodes = make_nodes(instance.names, instance.route, instance.proxy, late=instance.late)
        server = nodes[instance.proxy or instance.route[-1]].host.addresses[0]
        self._addresses = {name: node.host.addresses[0] for name, node in nodes.items()}
        numbers = tuple(self._nodes.add(nodes[name]) for name in instance.names)
        state = State(START_S, numbers, (), 0, 0)
        state = self._settle(self._tell(state, Command(instance.route[0], "open", data=server)))
        for name in (instance.route[0], instance.route[-1]):
            drop = DROPPED if instance.proxy and name == instance.route[0] else 0
            state = self._settle(self._say(state, name, bytes(range(3)), drop))
        if self._data:
            for name in (instance.route[0], instance.route[-1]):
                state = self._say(state, name, bytes(range(7, 7 + self._data)))
        links = dict(state.under_way)
        for request, ask in enumerate(instance.asks, FIRST):
            hops = Hops(Hop(self._addresses[name]) for name in ask.hops)
            change = Change(request, ask.first, ask.last, hops, origin=ask.host)
            what = "splice" if ask.splice else "change"
            links[f"ask {request}"] = (Command(ask.host, what, change, ask.rightward),)
        return State(state.now, state.nodes, tuple(sorted(links.items())), faults, slack)

    def _tell(self, state: State, command: Command) -> State:
        links = {**dict(state.under_way), "told": (command,)}
        return self._take(state._replace(under_way=tuple(links.items())), Step("deliver", "told"))

    def _say(self, state: State, name: str, data: bytes, drop: int = 0) -> State:
        """Let an end send bytes. drop: how many of them a proxy takes away."""
        route, proxy = self.instance.route, self.instance.proxy
        other = route[-1] if name == route[0] else route[0]
        state = self._tell(state, Command(other, "expect", data=data[drop:]))
        if proxy:
            from_server = name == route[-1]
            state = self._tell(state, Command(proxy, "expect", rightward=from_server, data=data))
        return self._tell(state, Command(name, "write", data=data))

    def _run(self, state: State) -> State:
        """Deliver all that is under way, in one order, without letting time pass."""
        while state.under_way:
            state = self._take(state, Step("deliver", state.under_way[0][0]))
        return state

    def _settle(self, state: State) -> State:
        """Deliver all that is under way, and let a late proxy move what it has."""
        state, proxy = self._run(state), self.instance.proxy
        while proxy and not self._at_rest(state):
            state = self._run(self._take(state, Step("timer", proxy)))
        return state

    # Verdicts.

    def _views(self, state: State) -> list[View]:
        return [self._nodes.views[number] for number in state.nodes]

    def _view(self, state: State, name: str) -> View:
        return self._nodes.views[state.nodes[self._names.index(name)]]

    def _at_rest(self, state: State) -> bool:
        return all(view.rest_at <= state.now for view in self._views(state))

    def _judge(self, state: State) -> str:
        """What is wrong with a state; empty if nothing."""
        views = self._views(state)
        for name, view in zip(self._names, views, strict=True):
            if view.violations:
                return f"{name}: {view.violations[0]}"
        granted = {request for view in views for request in view.grants}
        if len(granted) > 1 and self.instance.overlapping:
            return "overlapping changes are both granted"
        return ""

    def _judge_end(self, state: State) -> str:
        """What is wrong with a state in which everything rests, or will not any more.

        An agent that has begun anew knows the numbers of a session when packets have passed: with a restart among the
        faults, what waits for them must come to rest with the session's next packets.
        """
        views = self._views(state)
        if not self._at_rest(state):
            return "does not come to rest" if "restart" not in self.kinds else self._judge_session(state)
        told = {request: (phase, why) for view in views for request, phase, why in view.outcomes}
        faulty = self.start.faults > state.faults
        for request in range(FIRST, FIRST + len(self.instance.asks)):
            if request not in told and not faulty:
                return f"nobody is told what became of change {request}"
        key = ", ".join(f"{request} {told.get(request, ('unknown', ''))[0]}" for request in (FIRST, SECOND))
        self.report.outcomes[key] = self.report.outcomes.get(key, 0) + 1
        outcomes = [one for view in views for one in view.outcomes]
        done = {request for request, phase, _ in outcomes if phase == "done"}
        if any(phase != "done" for request, phase, _ in outcomes if request in done):
            return f"one is told that a change is done, another one that it is not: {outcomes}"
        over = all(self._view(state, name).closed for name in self._ends)
        if (
            state.spent not in HARSH
            and not over
            and not any(
                phase == "done" or self._may_be_refused(request, why) for request, phase, why in outcomes
            )
        ):
            return f"no change is done: {told}"
        return self._judge_sockets(state, told) or self._judge_session(state)

    def _may_be_refused(self, request: int, why: str) -> bool:
        """Whether a proxy may stay for such a reason: it had bytes in its hands, or the end of a stream."""
        ask = self.instance.asks[request - FIRST]
        return ask.splice and (self._data > 0 or "close" in self.kinds) and why.startswith("not ready")

    def _judge_sockets(self, state: State, told: dict[int, tuple[str, str]]) -> str:
        """The sockets of a proxy that was taken out have ended ordinarily; those of another are as the session is."""
        if not self.instance.proxy:
            return ""
        sockets = set(self._view(state, self.instance.proxy).sockets)
        stays = DONE if all(self._view(state, name).closed for name in self._ends) else OPEN
        for request, ask in enumerate(self.instance.asks, FIRST):
            if ask.splice:
                found = told.get(request, ("unknown", ""))[0]
                wanted = {"done": {DONE}, "unknown": {DONE, stays}}.get(found, {stays})
                if len(sockets) != 1 or not sockets <= wanted:
                    return f"the proxy's sockets are {', '.join(sorted(sockets))}, its splice is {found}"
        return ""

    def _judge_session(self, state: State) -> str:
        """Both ends send something more, and all must arrive; if one has closed, the other one sends and closes."""
        probe = state._replace(faults=0, slack=0)
        known = self._probed.get(probe)
        if known is not None:
            return known
        now = probe
        still = [name for name in self._ends if not self._view(state, name).closed]
        for name in still:
            now = self._say(now, name, bytes(range(100, 105)))
        closes = len(still) < len(self._ends)
        for name in still if closes else ():
            now = self._tell(now, Command(name, "close"))
        end = now.now + PROBE_S
        while True:
            now = self._run(now)
            views = self._views(now)
            fault = next((view.violations[0] for view in views if view.violations), "")
            arrived = not any(self._view(now, name).missing for name in self._ends)
            if closes:
                arrived = arrived and all(one == DONE for view in views for one in view.sockets)
            due = min(view.due for view in views)
            if fault or due > end or (arrived and self._at_rest(now)):
                break
            name = next(name for name, view in zip(self._names, views, strict=True) if view.due == due)
            now = self._take(now, Step("timer", name))
        if not fault and not arrived:
            fault = "the session does not go on"
        elif not fault and not self._at_rest(now):
            fault = "does not come to rest"
        self._probed[probe] = fault
        return fault

    @staticmethod
    def _way(parents: dict[State, tuple[State, Step] | None], state: State) -> list[Step]:
        steps: list[Step] = []
        entry = parents[state]
        while entry is not None:
            state, step = entry
            steps.append(step)
            entry = parents[state]
        return steps[::-1]


def _shortened(lines: list[str]) -> list[str]:
    """A dialogue without what is repeated for minutes at its end."""
    if len(lines) <= 2 * SHOWN:
        return lines
    return [*lines[:SHOWN], f"         ... {len(lines) - 2 * SHOWN} more", *lines[-SHOWN:]]


def main() -> int:
    """Walk the instances that the command line names; 0 if no fault was found."""
    parser = argparse.ArgumentParser(prog="python -m dysco.sim.check", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(INSTANCES), help=f"of {', '.join(INSTANCES)}")
    parser.add_argument("--faults", type=int, default=0, help="how many faults may happen (default 0)")
    parser.add_argument("--kinds", default=",".join(FAULTS), help="which ones (default %(default)s)")
    parser.add_argument("--slack", type=int, help="departures from one order of links (default: any number)")
    parser.add_argument("--data", type=int, help="bytes under way from each end when the changes begin")
    parser.add_argument(
        "--most", type=int, default=1_000_000, help="states of one instance (default %(default)s)"
    )
    parser.add_argument("--first", action="store_true", help="stop after the first instance with a fault")
    parser.add_argument("--replay", help="choices, separated by commas, as a failing walk prints them")
    options = parser.parse_args()
    status = 0
    for name in options.names:
        checker = Checker(
            name,
            faults=options.faults,
            slack=options.slack,
            kinds=tuple(options.kinds.split(",")),
            data=options.data,
        )
        if options.replay is not None:
            lines = checker.replay([choice.strip() for choice in options.replay.split(",")])
        else:
            report = checker.walk(options.most)
            lines = [str(report), *(f"    {key}: {count}" for key, count in sorted(report.outcomes.items()))]
            if report.fault:
                status = 1
                lines += [*_shortened(report.dialogue), f'--replay "{",".join(report.choices)}"']
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        if status and options.first:
            break
    return status


if __name__ == "__main__":
    sys.exit(main())
