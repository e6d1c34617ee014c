"""From a wish and the places of a chain to the segment that is replaced; pure.

    a ── b/fw ── c/ids ── d        remove b:  the segment from a to c gets no new hop
    0     1        2      3        insert x after b:  the segment from b to c gets x
                                   set to [x, c]:  from a to c gets x, for c stays where it is

Knows places as `trace` gives them and hops as the core wants them; who asks whom is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dysco.errors import ConfigError, LocalError, RemoteError
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Change, Hops, Place
from dysco.wire.tuples import show_address

Kind = Literal["insert", "remove", "replace", "set"]
Resolve = Callable[[str], Hop]
"""Give the hop that a name means; raises ConfigError."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of a chain, in names: `agent`, `agent/box`, a box's name or an address.

    box: what is removed or replaced. hops: what comes in. after: behind whom it is inserted, "" for the chain's
    first agent.
    """

    kind: Kind
    box: str = ""
    hops: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The places `left` and `right` become neighbours but for `hops` between them; before and after for people."""

    places: tuple[Place, ...]
    left: int
    right: int
    hops: tuple[Hop, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the chain is as it is wanted already."""
        return not self.hops and self.right == self.left + 1

    def change(self, request: int, origin: str, *, force: bool = False, state: int = 0) -> Change:
        """Write the change as the core takes it."""
        anchor = self.places[self.right]
        hops = Hops((*self.hops, Hop(anchor.address)))
        return Change(request, self.places[self.left].right, anchor.left, hops, force, state, origin)

    def rightward(self, here: int) -> bool:
        """Whether the left anchor lies to the right of the place with this index."""
        return self.left > here


def label(place: Place) -> str:
    """Name a place for people."""
    return f"{place.agent}/{place.box}" if place.box else place.agent


def plan(places: Sequence[Place], wish: Wish, resolve: Resolve) -> Plan:
    """Find the segment and its new hops; LocalError, ConfigError, RemoteError say why there is none."""
    hops = tuple(resolve(name) for name in wish.hops)
    match wish.kind:
        case "insert":
            left = find(places, wish.after) if wish.after else 0
            if left == len(places) - 1:
                raise LocalError(f"{wish.after} is the chain's last agent: nothing can stand behind it")
            right = left + 1
        case "remove" | "replace":
            at = find(places, wish.box)
            if at in (0, len(places) - 1):
                raise LocalError(f"{wish.box} is an end of this chain ({drawn(places)})")
            left, right = at - 1, at + 1
        case "set":
            return _set(places, wish, hops)
    return _made(places, left, right, hops, wish.hops)


def find(places: Sequence[Place], name: str) -> int:
    """Which place a name means: agent, agent/box, address, or a box's name; LocalError if none or several."""
    for test in (_is_agent, _is_box):
        found = [index for index, place in enumerate(places) if test(place, name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise LocalError(
                f"{name} stands several times on this chain ({drawn(places)}): say AGENT/BOX, or set the hops"
            )
    raise LocalError(f"{name} is not on this chain ({drawn(places)})")


def drawn(places: Sequence[Place]) -> str:
    """Draw a chain in one line."""
    return " == ".join(map(label, places))


def here(places: Sequence[Place], agent: str, left: int, right: int) -> int:
    """Which place an agent is whose subsessions have these labels."""
    for index, place in enumerate(places):
        if place.agent == agent and (place.left, place.right) == (left, right):
            return index
    raise LocalError("the chain has changed in the meantime")


def _set(places: Sequence[Place], wish: Wish, hops: tuple[Hop, ...]) -> Plan:
    """Hops that stay where they are at both ends of the list are left alone."""
    names, inner = wish.hops, places[1:-1]
    head = 0
    while head < min(len(names), len(inner)) and _is_agent(inner[head], names[head]):
        head += 1
    tail, most = 0, min(len(names), len(inner)) - head
    while tail < most and _is_agent(inner[-1 - tail], names[-1 - tail]):
        tail += 1
    end = len(names) - tail
    return _made(places, head, len(places) - 1 - tail, hops[head:end], names[head:end])


def _made(
    places: Sequence[Place], left: int, right: int, hops: tuple[Hop, ...], names: tuple[str, ...]
) -> Plan:
    for place in places[left + 1 : right]:
        if place.mandatory and not hops:
            raise RemoteError(f"{label(place)} is mandatory: it can be replaced, but not removed")
    family = len(places[left].address)
    for hop, name in zip(hops, names, strict=True):
        if len(hop.address) != family:
            raise ConfigError(f"{name} is of another address family than the session")
    labels = tuple(map(label, places))
    after = (*labels[: left + 1], *names, *labels[right:])
    return Plan(tuple(places), left, right, hops, labels, after)


def _is_agent(place: Place, name: str) -> bool:
    return name in (place.agent, label(place), show_address(place.address))


def _is_box(place: Place, name: str) -> bool:
    return bool(place.box) and place.box == name
