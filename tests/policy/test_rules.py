"""Which policy takes a session, which member of a group it gets, and how that is explained."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dysco.policy import Group, Place, PolicySet, Rule, parse
from dysco.policy.rules import Egress, Pick
from dysco.wire.tuples import FiveTuple

FW = Place("fw", (bytes([10, 0, 0, 2]), bytes(15) + b"\x02"))
IDS = [Place(f"ids{n}", (bytes([10, 0, 1, n]),), box=7) for n in range(1, 6)]
SESSION = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
SESSION6 = FiveTuple.parse("[2001:db8::1]:1234 > [2001:db8::9]:80")


class Network:
    """A view that the test sets."""

    def __init__(self) -> None:
        self.down: set[bytes] = set()
        self.counts: Counter[bytes] = Counter()
        self.no_more: dict[bytes, Place | None] = {}

    def healthy(self, address: bytes) -> bool:
        return address not in self.down

    def sessions(self, address: bytes, box: int) -> int:
        return self.counts[address]

    def drained(self, address: bytes, box: int) -> bool:
        return address in self.no_more

    def instead(self, address: bytes, box: int) -> Place | None:
        return self.no_more.get(address)


def rule(name: str, match: str = "", *hops: Place | Group, priority: int = 0, enabled: bool = True) -> Rule:
    return Rule(name, parse(match), hops or (FW,), priority=priority, enabled=enabled)


def grouped(
    members: list[Place], pick: Pick = "hash", sticky: bool = False, drained: tuple[str, ...] = ()
) -> PolicySet:
    return PolicySet([rule("web", "", Group("ids", tuple(members), pick, sticky, frozenset(drained)))])


def sessions(count: int, sources: int = 1000) -> list[FiveTuple]:
    return [
        FiveTuple.of(bytes([10, 9, n % sources >> 8, n % sources & 255]), 1000 + n, bytes([10, 0, 0, 9]), 80)
        for n in range(count)
    ]


def picks(
    policies: PolicySet, given: list[FiveTuple], view: Network | None = None, now: float = 0.0
) -> list[str]:
    chosen = []
    for session in given:
        choice = policies.decide(session, now, view)
        assert choice is not None
        chosen.append(choice.hops[0].name)
    return chosen


def test_the_first_that_matches_by_priority_then_order() -> None:
    policies = PolicySet(
        [
            rule("off", "port 80", priority=99, enabled=False),
            rule("low", "port 80"),
            rule("other", "port 81", priority=9),
            rule("high", "port 80", priority=5),
            rule("as high, but later", "port 80", priority=5),
        ]
    )
    choice = policies.decide(SESSION, 0.0)
    assert choice is not None
    assert choice.policy == "high"
    assert policies.decide(FiveTuple.parse("10.0.0.1:1 > 10.0.0.9:22"), 0.0) is None


@pytest.mark.parametrize(("egress", "last"), [("agent", "10.0.0.9"), ("native", "fw"), ("nat", "fw")])
def test_the_final_host_is_added_unless_egress_is_native(egress: Egress, last: str) -> None:
    choice = PolicySet([Rule("p", parse(""), (FW,), egress=egress)]).decide(SESSION, 0.0)
    assert choice is not None
    assert choice.hops[-1].name == last


def test_hops_have_the_family_of_the_session() -> None:
    policies = PolicySet([rule("p", "", FW, IDS[0])])
    v4, v6 = policies.decide(SESSION, 0.0), policies.decide(SESSION6, 0.0)
    assert v4 is not None
    assert v6 is not None
    assert [(hop.address, hop.box) for hop in v4.hops] == [
        (bytes([10, 0, 0, 2]), 0),
        (bytes([10, 0, 1, 1]), 7),
        (bytes([10, 0, 0, 9]), 0),
    ]
    assert v6.hops == ()
    assert v6.failure == "'ids1' has no IPv6 address"


def test_a_hash_spreads_sessions() -> None:
    counts = Counter(picks(grouped(IDS), sessions(2000)))
    assert all(300 <= counts[place.name] <= 500 for place in IDS)


def test_a_member_that_goes_moves_its_own_sessions_only() -> None:
    given = sessions(1000)
    before, after = picks(grouped(IDS), given), picks(grouped(IDS[:-1]), given)
    assert all(old == new for old, new in zip(before, after, strict=True) if old != IDS[-1].name)


@pytest.mark.parametrize("pick", ["hash", "least-sessions"])
def test_drained_and_dead_members_get_nothing_new(pick: Pick) -> None:
    view = Network()
    view.down.add(IDS[1].addresses[0])
    chosen = set(picks(grouped(IDS[:3], pick, drained=("ids1",)), sessions(50), view))
    assert chosen == {"ids3"}


def test_if_none_is_healthy_one_is_tried_all_the_same() -> None:
    view = Network()
    view.down |= {place.addresses[0] for place in IDS}
    assert set(picks(grouped(IDS, drained=("ids1",)), sessions(200), view)) == {
        "ids2",
        "ids3",
        "ids4",
        "ids5",
    }


def test_a_group_with_all_drained_fails() -> None:
    choice = grouped(IDS[:1], drained=("ids1",)).decide(SESSION, 0.0)
    assert choice is not None
    assert choice.failure == "group 'ids' has no member with an IPv4 address that is not drained"


def test_the_fewest_sessions() -> None:
    view = Network()
    policies = grouped(IDS, "least-sessions")
    for session in sessions(500):
        name = picks(policies, [session], view)[0]
        view.counts[next(place.addresses[0] for place in IDS if place.name == name)] += 1
    assert set(view.counts.values()) == {100}


@pytest.mark.parametrize("pick", ["hash", "least-sessions"])
def test_sticky_sources_stay(pick: Pick) -> None:
    view = Network()
    policies = grouped(IDS, pick, sticky=True)
    given = sessions(400, sources=20)
    chosen: dict[bytes, str] = {}
    for session in given:
        name = picks(policies, [session], view)[0]
        view.counts[next(place.addresses[0] for place in IDS if place.name == name)] += 1
        assert chosen.setdefault(session.src, name) == name
    assert len(set(chosen.values())) > 1


def test_a_sticky_choice_is_left_when_its_member_dies_or_after_an_hour() -> None:
    view = Network()
    policies = grouped(IDS[:2], "least-sessions", sticky=True)
    view.counts[IDS[1].addresses[0]] = 5
    assert picks(policies, [SESSION], view) == ["ids1"]
    view.counts[IDS[0].addresses[0]] = 9
    assert picks(policies, [SESSION], view, now=3000.0) == ["ids1"]
    assert picks(policies, [SESSION], view, now=7000.0) == ["ids2"]
    view.down.add(IDS[1].addresses[0])
    assert picks(policies, [SESSION], view, now=7001.0) == ["ids1"]


def test_an_explanation_remembers_nothing() -> None:
    view = Network()
    policies = grouped(IDS[:2], "least-sessions", sticky=True)
    view.counts[IDS[1].addresses[0]] = 5
    policies.explain(SESSION, view)
    view.counts[IDS[0].addresses[0]] = 9
    assert picks(policies, [SESSION], view) == ["ids2"]


EXPLAINED = """\
session  tcp 10.0.0.1:1234 > 10.0.0.9:80
policy   web
chain    1. fw 10.0.0.2
         2. ids1 10.0.1.1  (group ids, hash of the session)
         3. 10.0.0.9  (final host)
on_fail  closed
egress   agent
why      tls: no match, not true: dst port 443
         v6: no match, not true: ip6
         off: matches, but is not enabled
         web: taken, matches tcp dst port 80 or 8080 and dst net 10.0.0.0/8
         all: matches too, but web comes first"""


def test_explanations() -> None:
    policies = PolicySet(
        [
            rule("tls", "ip and dst port 443 and src net 10.0.0.0/8"),
            rule("v6", "ip6"),
            rule("off", "port 80", enabled=False),
            rule("web", "tcp dst port 80 or 8080 and dst net 10.0.0.0/8", FW, Group("ids", (IDS[0],))),
            rule("all"),
        ]
    )
    explanation = policies.explain(SESSION)
    assert explanation.as_text() == EXPLAINED
    values = json.loads(json.dumps(explanation.as_json()))
    assert values["policy"] == "web"
    assert [hop["address"] for hop in values["hops"]] == ["10.0.0.2", "10.0.1.1", "10.0.0.9"]
    assert [one["verdict"] for one in values["policies"]] == [
        "no match",
        "no match",
        "disabled",
        "taken",
        "shadowed",
    ]


def test_no_policy_explains_itself_too() -> None:
    assert PolicySet([rule("v6", "ip6")]).explain(SESSION).as_text() == (
        "session  tcp 10.0.0.1:1234 > 10.0.0.9:80\n"
        "policy   none: the session is not chained\n"
        "why      v6: no match, not true: ip6"
    )


def test_a_failure_says_what_becomes_of_the_session() -> None:
    text = PolicySet([rule("p", "", IDS[0])]).explain(SESSION6).as_text()
    assert "chain    none: 'ids1' has no IPv6 address; the session is refused (on_fail = closed)" in text


def test_clauses_of_all_enabled_policies() -> None:
    policies = PolicySet(
        [rule("a", "ip and dst port 80"), rule("b", "ip and dst port 80"), rule("c", "", enabled=False)]
    )
    assert [(one.family, one.dport) for one in policies.clauses()] == [(4, (80, 80))]
    many = PolicySet([rule(f"p{n}", f"host 10.0.{n}.1") for n in range(200)])
    found = many.clauses(limit=40)
    assert len(found) <= 40
    for n in range(200):
        session = FiveTuple.parse(f"10.0.{n}.1:5 > 192.0.2.1:80")
        assert any(clause.matches(session) for clause in found)


def test_drained_places_are_not_picked_and_something_stands_in_for_them() -> None:
    other = Place("other", (bytes([10, 0, 0, 77]),), 5)
    view = Network()
    address = FW.address(4)
    assert address is not None
    view.no_more[address] = None
    choice = PolicySet([rule("web")]).decide(sessions(1)[0], 0.0, view)
    assert choice is not None
    assert (choice.hops, choice.failure) == ((), f"{FW.name} is drained")
    view.no_more[address] = other
    choice = PolicySet([rule("web")]).decide(sessions(1)[0], 0.0, view)
    assert choice is not None
    assert (choice.hops[0].name, choice.hops[0].address, choice.hops[0].box) == (
        "other",
        other.addresses[0],
        5,
    )
    assert choice.hops[0].reason == f"in the place of {FW.name}, which is drained"
    assert set(picks(grouped([FW, other]), sessions(50), view)) == {"other"}
