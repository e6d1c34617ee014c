"""Policies in order, hops picked from groups, and the explanation of each decision.

A `PolicySet` is immutable but for the memory of sticky choices that no hash can give again. What it must know
of the network (who is up, who has how many sessions) it asks of a `View` at each decision.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from dysco.policy.ast import Ast
from dysco.policy.clauses import Clause, clauses, exactly, union
from dysco.policy.explain import Explanation, Verdict
from dysco.policy.predicate import Predicate, failing, predicate
from dysco.wire.tuples import Family, FiveTuple, show_address

OnFail = Literal["closed", "open"]
Egress = Literal["agent", "native", "nat"]
Pick = Literal["hash", "least-sessions"]

MAX_HOPS: Final = 16  # DESIGN section 4: hops that a chain header holds, the final host among them
_STICKY_LIMIT: Final = 65_536  # remembered choices of all groups; the longest unused goes first
_STICKY_S: Final = 3600.0  # a choice that was not used for this long is forgotten


class View(Protocol):
    """What the agent knows of its neighbours at this moment."""

    def healthy(self, address: bytes) -> bool:
        """Tell whether the agent at an address can be reached."""
        ...

    def sessions(self, address: bytes, box: int) -> int:
        """Count the live sessions from here through a box of the agent at an address."""
        ...

    def drained(self, address: bytes, box: int) -> bool:
        """Tell whether a box shall get no new sessions."""
        ...

    def instead(self, address: bytes, box: int) -> Place | None:
        """Give the place that takes the new sessions of a drained box, if one does."""
        ...


class AllHealthy:
    """The view of someone who knows nothing: everyone is up and idle."""

    def healthy(self, address: bytes) -> bool:
        return True

    def sessions(self, address: bytes, box: int) -> int:
        return 0

    def drained(self, address: bytes, box: int) -> bool:
        return False

    def instead(self, address: bytes, box: int) -> Place | None:
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """A box of an agent: where it is reached in each family. Box 0 is the agent's default."""

    name: str  # as the configuration says it: "fw", "fw/ids", "10.9.0.12"
    addresses: tuple[bytes, ...]
    box: int = 0

    def address(self, family: Family) -> bytes | None:
        """Give the first address of a family."""
        size = 4 if family == 4 else 16
        return next((address for address in self.addresses if len(address) == size), None)


@dataclass(frozen=True, slots=True)
class Group:
    """Places of which each session takes one; drained ones get no new sessions."""

    name: str
    members: tuple[Place, ...]
    pick: Pick = "hash"
    sticky: bool = False
    drained: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy: sessions that match go through the hops. Higher priorities are asked first."""

    name: str
    match: Ast
    hops: tuple[Place | Group, ...]
    on_fail: OnFail = "closed"
    egress: Egress = "agent"
    priority: int = 0
    enabled: bool = True


class ChosenHop(NamedTuple):
    """One hop of a decision: the agent's address in the session's family, the box, and why this one."""

    address: bytes
    box: int
    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one session. With `failure` no chain can be made, and `on_fail` says what then."""

    policy: str
    hops: tuple[ChosenHop, ...]
    on_fail: OnFail
    egress: Egress
    failure: str = ""


@dataclass(slots=True)
class _Compiled:
    rule: Rule
    test: Predicate


class PolicySet:
    """All policies of a host in the order in which they are asked."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        ordered = sorted(rules, key=lambda rule: -rule.priority)  # stable: equal priorities keep their order
        self.rules: tuple[Rule, ...] = tuple(ordered)
        self._active = [_Compiled(rule, predicate(rule.match)) for rule in ordered if rule.enabled]
        self._sticky: OrderedDict[tuple[str, bytes], tuple[str, float]] = OrderedDict()

    def clauses(self, limit: int = 256) -> list[Clause]:
        """Cover the sessions of all enabled policies with at most `limit` clauses for the classifier."""
        return union((clauses(one.rule.match) for one in self._active), limit)

    def in_order(self) -> list[tuple[Clause, Rule | None]]:
        """Give clauses in the order in which policies are asked: of the first that a session lies in, this is the rule.

        None: only asking tells which rule it is.
        """
        found: list[tuple[Clause, Rule | None]] = []
        for one in self._active:
            exact = exactly(one.rule.match)
            if exact is None:
                found += ((clause, None) for clause in clauses(one.rule.match))
            else:
                found += ((clause, one.rule) for clause in exact)
        return found

    def match(self, session: FiveTuple) -> Rule | None:
        """Find the first enabled policy that matches."""
        return next((one.rule for one in self._active if one.test(session)), None)

    def decide(self, session: FiveTuple, now: float, view: View | None = None) -> Choice | None:
        """Choose the chain of a new session; None: it is not chained. `now` is monotonic, in seconds."""
        rule = self.match(session)
        return None if rule is None else self._choose(rule, session, now, view or AllHealthy(), remember=True)

    def explain(self, session: FiveTuple, view: View | None = None, now: float = 0.0) -> Explanation:
        """Say which policy takes a session, by which hops, and why not the others; remembers nothing."""
        verdicts = []
        winner: Rule | None = None
        for rule in self.rules:
            missing = failing(rule.match.root, session)
            if missing is not None:
                verdict, detail = "no match", rule.match.quote(missing)
            elif not rule.enabled:
                verdict, detail = "disabled", ""
            elif winner is not None:
                verdict, detail = "shadowed", winner.name
            else:
                verdict, detail, winner = "taken", "", rule
            verdicts.append(Verdict(rule.name, rule.priority, rule.match.text, verdict, detail))
        if winner is None:
            return Explanation(session, tuple(verdicts))
        choice = self._choose(winner, session, now, view or AllHealthy(), remember=False)
        return Explanation(
            session,
            tuple(verdicts),
            policy=winner.name,
            hops=tuple((hop.name, hop.address, hop.reason) for hop in choice.hops),
            on_fail=choice.on_fail,
            egress=choice.egress,
            failure=choice.failure,
        )

    def _choose(self, rule: Rule, session: FiveTuple, now: float, view: View, *, remember: bool) -> Choice:
        family = session.family
        hops = []
        for hop in rule.hops:
            reason = ""
            place: Place | None = hop if isinstance(hop, Place) else None
            if isinstance(hop, Group):
                place, reason = self._member(hop, session, now, view, remember)
            address = place.address(family) if place is not None else None
            if place is None or address is None:
                failure = f"{hop.name!r} has no IPv{family} address"
                if isinstance(hop, Group):
                    failure = (
                        f"group {hop.name!r} has no member with an IPv{family} address that is not drained"
                    )
                return Choice(rule.name, (), rule.on_fail, rule.egress, failure)
            if view.drained(address, place.box):
                other = view.instead(address, place.box)
                at = None if other is None else other.address(family)
                if other is None or at is None:
                    return Choice(rule.name, (), rule.on_fail, rule.egress, f"{place.name} is drained")
                reason = f"in the place of {place.name}, which is drained"
                place, address = other, at
            hops.append(ChosenHop(address, place.box, place.name, reason))
        if rule.egress == "agent":
            hops.append(ChosenHop(session.dst, 0, show_address(session.dst), "final host"))
        return Choice(rule.name, tuple(hops), rule.on_fail, rule.egress)

    def _member(
        self, group: Group, session: FiveTuple, now: float, view: View, remember: bool
    ) -> tuple[Place | None, str]:
        """Pick a member; if none is healthy one all the same: set-up fails then, as on_fail says."""
        reachable = [(one, at) for one in group.members if (at := one.address(session.family)) is not None]
        fresh = [(one, at) for one, at in reachable if one.name not in group.drained]
        healthy = [(one, at) for one, at in fresh if view.healthy(at)]
        candidates = [(one, at) for one, at in healthy if not view.drained(at, one.box)] or healthy or fresh
        if not candidates:
            return None, ""
        state = "" if healthy else ", none is healthy"
        source = session.src if group.sticky else bytes(session)
        if group.pick == "hash":
            winner = max(candidates, key=lambda one: _weight(one[0].name, source))[0]
            by = "hash of the source address" if group.sticky else "hash of the session"
            return winner, f"group {group.name}, {by}{state}"
        key = (group.name, session.src)
        if group.sticky and (kept := self._kept(key, now, candidates)) is not None:
            if remember:
                self._keep(key, kept.name, now)
            return kept, f"group {group.name}, as earlier sessions of this source{state}"
        # Equal counts are settled by hash, so that a start with no sessions does not put all on the first.
        winner = min(
            candidates, key=lambda one: (view.sessions(one[1], one[0].box), -_weight(one[0].name, source))
        )[0]
        if group.sticky and remember:
            self._keep(key, winner.name, now)
        return winner, f"group {group.name}, fewest sessions{state}"

    def _kept(
        self, key: tuple[str, bytes], now: float, candidates: Sequence[tuple[Place, bytes]]
    ) -> Place | None:
        name, used_at = self._sticky.get(key, ("", 0.0))
        if not name or now - used_at > _STICKY_S:
            return None
        return next((place for place, _ in candidates if place.name == name), None)

    def _keep(self, key: tuple[str, bytes], name: str, now: float) -> None:
        self._sticky[key] = (name, now)
        self._sticky.move_to_end(key)
        if len(self._sticky) > _STICKY_LIMIT:
            self._sticky.popitem(last=False)


def _weight(member: str, session: bytes) -> int:
    """Weigh a member for a session: rendezvous hashing (Thaler and Ravishankar 1998), the heaviest wins.

    A member that goes moves its own sessions only, and one that comes takes its share evenly from the others.
    """
    return int.from_bytes(hashlib.blake2b(member.encode() + b"\0" + session, digest_size=8).digest(), "big")
