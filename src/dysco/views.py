"""What an agent tells, as typed values: the one schema of the control socket, of `dysco.client` and of `--json`.

The agent fills these and sends `plain()` as JSON; the client makes them again with `of()`. They only look: to change
a session, take its handle (`Dysco.session`). Nothing here asks, waits or knows the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from dysco.errors import LocalError


@dataclass(frozen=True, slots=True)
class View:
    """What all views can do: become plain values, and come back from them."""

    def plain(self) -> dict[str, Any]:
        """Give the value as dictionaries, lists, text and numbers, in the order that `--json` shows."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read a plain value; keys of a newer agent are passed over. Raises LocalError if one is missing."""
        try:
            known = cls.__dataclass_fields__
            return cls(**{name: value for name, value in cls._read(record).items() if name in known})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise LocalError(
                f"the agent speaks of a {cls.__name__.lower()} in another way: {error}"
            ) from None

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Give the fields' values; views with parts make these here."""
        return {name: tuple(part) if isinstance(part, list) else part for name, part in record.items()}


@dataclass(frozen=True, slots=True)
class Status(View):
    """An agent: uptime and the loop's lag in seconds, mtu in bytes, counters by name; what is drained.

    opening: who opens chains where nothing has to be decided, the kernel or the agent, and why the kernel does not.
    """

    name: str
    pid: int
    uptime_s: float
    mode: str
    why_no_ebpf: str | None
    opening: str
    why_no_offload: str | None
    addresses: tuple[str, ...]
    mtu: int
    sessions: int
    flows: int
    policies: int
    boxes: tuple[str, ...]
    loop_lag_s: float
    counters: Mapping[str, int]
    drops: Mapping[str, int]
    steering: Mapping[str, int]
    drained: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facing(View):
    """One side of a session at an agent: which peer, and the subsession from left to right.

    chain_id: by what id the peer knows the chain, if not by this agent's: once a proxy has left, two chains are one.
    """

    side: str
    peer: str
    subsession: str
    chain_id: str | None = None


@dataclass(frozen=True, slots=True)
class Running(View):
    """A change of a chain at the anchor on its `left` or `right`, as it runs.

    since: for each phase so far how many seconds ago it began. old, new: subsessions of both paths at this agent (new
    is None before it is known), with the bytes sent on each.
    """

    side: str
    phase: str
    since: Mapping[str, float]
    old: str
    new: str | None
    bytes_old: int
    bytes_new: int


@dataclass(frozen=True, slots=True)
class Session(View):
    """A session at one agent. `session_out` is its five-tuple behind the box; age in seconds; changes that run."""

    chain_id: str
    hop_index: int
    role: str
    state: str
    session: str
    session_out: str
    policy: str
    box: str | None
    facings: tuple[Facing, ...]
    age_s: float
    packets: int
    bytes: int
    changes: tuple[Running, ...] = ()

    @property
    def left(self) -> Facing | None:
        """The facing towards the client; None where the session itself arrives."""
        return next((one for one in self.facings if one.side == "left"), None)

    @property
    def right(self) -> Facing | None:
        """The facing towards the server; None where the session itself goes on."""
        return next((one for one in self.facings if one.side == "right"), None)

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        changes = tuple(Running.of(one) for one in record.get("changes", ()))
        return {**record, "facings": tuple(Facing.of(one) for one in record["facings"]), "changes": changes}


@dataclass(frozen=True, slots=True)
class Hop(View):
    """One agent's part in a chain."""

    agent: str
    session: Session

    def plain(self) -> dict[str, Any]:
        """Give one flat record: the agent's name, then the session."""
        return {"agent": self.agent, **self.session.plain()}

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"agent": record["agent"], "session": Session.of(record)}


@dataclass(frozen=True, slots=True)
class Place(View):
    """An agent on a chain, with its box and the address by which its left neighbour knows it."""

    agent: str
    box: str | None
    address: str | None
    mandatory: bool

    def __str__(self) -> str:
        return f"{self.agent}/{self.box}" if self.box else self.agent


@dataclass(frozen=True, slots=True)
class Chain(View):
    """A chain, as far as the agents that were asked know it; in the order in which they were asked.

    places: all agents from left to right, if they were asked who they are.
    """

    chain_id: str
    agents: tuple[Hop, ...]
    places: tuple[Place, ...] = ()

    @property
    def session(self) -> str:
        """The five-tuple of the session at the first agent that was asked."""
        return self.agents[0].session.session

    @property
    def state(self) -> str:
        """The state at the first agent that was asked."""
        return self.agents[0].session.state

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        places = tuple(Place.of(one) for one in record.get("places", ()))
        return {**record, "agents": tuple(Hop.of(one) for one in record["agents"]), "places": places}


@dataclass(frozen=True, slots=True)
class Peer(View):
    """A neighbour: `up` or `down`, times in seconds (None while down), mtu in bytes of IP packet."""

    name: str
    state: str
    address: str | None
    addresses: tuple[str, ...]
    since_s: float | None
    heard_s: float | None
    mtu: int | None
    sessions: int
    attempts: int
    last_failure: str | None

    @property
    def up(self) -> bool:
        """Whether an association with it is there."""
        return self.state == "up"


@dataclass(frozen=True, slots=True)
class ProxiedPair(View):
    """Two sessions that a proxy joins: the client's and the one to the server.

    added_right, added_left: bytes that the proxy has written more than it has read, by direction. safe: whether it may
    leave now; why, or why not. rule: what host.toml says of the session.
    """

    left: str
    right: str
    added_right: int
    added_left: int
    safe: bool
    why: str
    rule: str


@dataclass(frozen=True, slots=True)
class ProxyState(View):
    """A proxy of the agent's host, and its pairs.

    removed: sessions that it has left since the agent began. trouble: why it cannot be asked.
    """

    name: str
    adapter: str
    remove: str
    drained: bool
    removed: int
    trouble: str
    pairs: tuple[ProxiedPair, ...]

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        return {**record, "pairs": tuple(ProxiedPair.of(one) for one in record["pairs"])}


@dataclass(frozen=True, slots=True)
class ProxyRule(View):
    """What one `[[proxy]]` says of a session: `no match`, `stays`, `when asked`, `chosen`, `after`; and a sentence."""

    proxy: str
    verdict: str
    text: str


@dataclass(frozen=True, slots=True)
class Event(View):
    """Something that happened: its constant name, when (ISO 8601, UTC; for people), and its own fields."""

    name: str
    time: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Give one flat record: time, name, then the fields."""
        return {**({"time": self.time} if self.time else {}), "event": self.name, **self.fields}

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in record.items() if name not in ("time", "event")}
        return {"name": record["event"], "time": record.get("time", ""), "fields": own}


@dataclass(frozen=True, slots=True)
class Change(View):
    """A difference that a reload found; `restart`: it waits for the agent's next start."""

    text: str
    key: str
    restart: bool


@dataclass(frozen=True, slots=True)
class Reload(View):
    """What a reload changed, or would change."""

    changes: tuple[Change, ...]

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"changes": tuple(Change.of(one) for one in record["changes"])}


@dataclass(frozen=True, slots=True)
class Choice(View):
    """A hop that a policy chose, and why this one of its group."""

    name: str
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict(View):
    """What one policy says of a session: `taken`, `no match`, `disabled`, `shadowed`; detail: why."""

    name: str
    priority: int
    match: str
    verdict: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class Explanation(View):
    """Where a session would go: the policy that takes it (None: it is not chained), its hops, all verdicts."""

    session: str
    policy: str | None
    hops: tuple[Choice, ...]
    on_fail: str | None
    egress: str | None
    failure: str | None
    policies: tuple[Verdict, ...]
    text: str
    proxies: tuple[ProxyRule, ...] = ()

    @classmethod
    def _read(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **record,
            "hops": tuple(Choice.of(one) for one in record["hops"]),
            "policies": tuple(Verdict.of(one) for one in record["policies"]),
            "proxies": tuple(ProxyRule.of(one) for one in record.get("proxies", ())),
        }


def chains(said: Iterable[tuple[str, Iterable[Session]]]) -> list[Chain]:
    """Join what several agents (name, sessions) say of the same chains, whatever id each of them knows."""
    hops = [Hop(agent, session) for agent, sessions in said for session in sessions]
    same: dict[str, str] = {}

    def root(name: str) -> str:
        while (other := same.get(name, name)) != name:
            name = other
        return name

    for hop in hops:
        for facing in hop.session.facings:
            if facing.chain_id:
                same[root(facing.chain_id)] = root(hop.session.chain_id)
    found: dict[str, list[Hop]] = {}
    for hop in hops:
        found.setdefault(root(hop.session.chain_id), []).append(hop)
    return [Chain(group[0].session.chain_id, tuple(group)) for group in found.values()]


def _plain(value: Any) -> Any:
    if isinstance(value, View):
        return value.plain()
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return dict(value) if isinstance(value, Mapping) else value
