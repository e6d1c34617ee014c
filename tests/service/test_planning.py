"""From wishes to segments: what is replaced, by which hops, where the left anchor lies, and why not."""

from __future__ import annotations

import pytest

from dysco.errors import ConfigError, DyscoError, ExitStatus, LocalError, RemoteError
from dysco.service import planning
from dysco.service.planning import Plan, Wish
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Place

ADDRESSES = {name: bytes((10, 0, number, number)) for number, name in enumerate("abcdxy", 1)}
PLACES = (
    Place("a", "", ADDRESSES["a"], 0, 1),
    Place("b", "firewall", ADDRESSES["b"], 1, 700),
    Place("c", "ids", ADDRESSES["c"], 700, 3, mandatory=True),
    Place("d", "", ADDRESSES["d"], 3, 0),
)


def resolve(name: str) -> Hop:
    agent, _, box = name.partition("/")
    if agent not in ADDRESSES:
        raise ConfigError(f"{name!r} is no peer")
    return Hop(ADDRESSES[agent], len(box))


def plan(wish: Wish) -> Plan:
    return planning.plan(PLACES, wish, resolve)


@pytest.mark.parametrize(
    ("wish", "first", "last", "hops", "after"),
    [
        (Wish("insert", hops=("x",)), 1, 1, "xb", "a x b/firewall c/ids d"),
        (Wish("insert", hops=("x",), after="a"), 1, 1, "xb", "a x b/firewall c/ids d"),
        (Wish("insert", hops=("x",), after="firewall"), 700, 700, "xc", "a b/firewall x c/ids d"),
        (Wish("insert", hops=("x",), after="10.0.3.3"), 3, 3, "xd", "a b/firewall c/ids x d"),
        (Wish("remove", box="b"), 1, 700, "c", "a c/ids d"),
        (Wish("remove", box="b/firewall"), 1, 700, "c", "a c/ids d"),
        (Wish("replace", box="ids", hops=("y",)), 700, 3, "yd", "a b/firewall y d"),
        (Wish("set", hops=("x", "y")), 1, 3, "xyd", "a x y d"),
        (Wish("set", hops=("b", "x", "c")), 700, 700, "xc", "a b/firewall x c/ids d"),
        (Wish("set", hops=("x", "c")), 1, 700, "xc", "a x c/ids d"),
        (Wish("set", hops=("b", "y")), 700, 3, "yd", "a b/firewall y d"),
    ],
)
def test_a_wish_becomes_a_segment(wish: Wish, first: int, last: int, hops: str, after: str) -> None:
    made = plan(wish)
    change = made.change(5, "a", force=True, state=1)
    assert (change.first, change.last) == (first, last)
    assert tuple(hop.address for hop in change.hops) == tuple(ADDRESSES[name] for name in hops)
    assert change.hops[-1].box == 0
    assert (change.request, change.origin, change.force, change.state) == (5, "a", True, 1)
    assert made.before == ("a", "b/firewall", "c/ids", "d")
    assert " ".join(made.after) == after
    assert not made.is_empty


def test_hops_name_their_boxes() -> None:
    assert plan(Wish("insert", hops=("x/box",))).hops == (Hop(ADDRESSES["x"], 3),)


@pytest.mark.parametrize("hops", [("b", "c"), ("b/firewall", "c/ids")])
def test_what_stands_already_is_left_alone(hops: tuple[str, ...]) -> None:
    assert plan(Wish("set", hops=hops)).is_empty


def test_the_left_anchor_may_lie_on_either_side() -> None:
    made = plan(Wish("replace", box="c", hops=("x",)))
    assert [made.rightward(here) for here in range(4)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("wish", "kind", "words"),
    [
        (Wish("remove", box="x"), LocalError, "x is not on this chain (a == b/firewall == c/ids == d)"),
        (Wish("remove", box="d"), LocalError, "d is an end of this chain"),
        (Wish("remove", box="a"), LocalError, "a is an end"),
        (Wish("insert", hops=("x",), after="d"), LocalError, "d is the chain's last agent"),
        (Wish("insert", hops=("nobody",)), ConfigError, "'nobody' is no peer"),
        (Wish("remove", box="c"), RemoteError, "c/ids is mandatory"),
        (Wish("set"), RemoteError, "c/ids is mandatory"),
    ],
)
def test_what_cannot_be_says_why(wish: Wish, kind: type[DyscoError], words: str) -> None:
    with pytest.raises(kind) as caught:
        plan(wish)
    assert words in str(caught.value)


def test_what_is_mandatory_is_refused_and_not_a_mistake() -> None:
    with pytest.raises(RemoteError) as caught:
        plan(Wish("remove", box="ids"))
    assert caught.value.exit_status is ExitStatus.REFUSED


def test_a_hop_of_another_family_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="another address family"):
        planning.plan(PLACES, Wish("insert", hops=("x",)), lambda _: Hop(bytes(16)))


def test_a_host_that_is_passed_twice_is_named_with_its_box() -> None:
    twice = (*PLACES[:3], Place("b", "two", ADDRESSES["b"], 3, 9), Place("d", "", ADDRESSES["d"], 9, 0))
    with pytest.raises(LocalError, match="b stands several times"):
        planning.find(twice, "b")
    assert planning.find(twice, "b/two") == planning.find(twice, "two") == 3


def test_who_asks_is_known_by_its_labels() -> None:
    assert planning.here(PLACES, "b", 1, 700) == 1
    with pytest.raises(LocalError, match="has changed"):
        planning.here(PLACES, "b", 1, 3)
