"""What the core is told about its host: values that the configuration makes, all immutable.

Times in seconds, sizes in bytes, addresses packed (4 or 16 bytes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from dysco.wire.chain_header import Egress, Hop
from dysco.wire.tuples import FiveTuple

Match = Literal["tuple", "tag", "fingerprint", "api"]


def nothing(_: FiveTuple) -> bool:
    """Allow no session; what a peer may have sent on natively unless the configuration says more."""
    return False


def anything(_: FiveTuple) -> bool:
    """Allow every session; what a peer may change unless the configuration says less."""
    return True


def unwatched(_: FiveTuple, __: bool) -> bool:
    """Keep the first bytes of no session; what is watched unless there are proxies that are known by them."""
    return False


@dataclass(frozen=True, slots=True)
class Peer:
    """Another agent.

    accept: whether its chains may come here. next_hops: names of peers to which they may go on from here, None for
    all. may_use: which of its sessions this host may send on without an agent at the other end. may_change: of
    which sessions it may change the chain here.
    """

    name: str
    addresses: tuple[bytes, ...]
    mtu: int | None = None
    accept: bool = True
    next_hops: frozenset[str] | None = None
    may_use: Callable[[FiveTuple], bool] = nothing
    may_change: Callable[[FiveTuple], bool] = anything


@dataclass(frozen=True, slots=True)
class LocalBox:
    """A middlebox of this host and the ports of its two sides (see `dysco.protocol.flow`).

    mandatory: it may be replaced in a live session, but not taken out. drained: it takes no further sessions.
    steady: it leaves the length of the stream alone.
    """

    name: str
    tag: int
    left_read: int
    left_write: int
    right_read: int
    right_write: int
    changes_tuple: bool = False
    match: tuple[Match, ...] = ("tuple",)
    mandatory: bool = False
    drained: bool = False
    steady: bool = True


@dataclass(frozen=True, slots=True)
class Timers:
    """How long things last, in seconds; `[timers]` of the configuration explains each.

    learn: how long a chain must be as it is before all on it are told who is on it; infinity: never.
    """

    embryonic: float = 75.0
    established: float = 8100.0
    half_closed: float = 3600.0
    time_wait: float = 60.0
    quarantine: float = 60.0
    avoid: float = 60.0
    association_wait: float = 1.0
    fingerprint: float = 2.0
    learn: float = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much there may be: sessions in all, sessions being opened, chains a peer begins per second.

    awake: sessions that are kept as objects although there is nothing to be done about them (see `resting`).
    """

    sessions: int = 200_000
    embryonic: int = 16_384
    setups_per_second: int = 20_000
    awake: int = 1_024


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. The first box is the one that a hop means which names only this host.

    left: those of the addresses that this host has left, and that may be gone; subsessions may still name them. watch:
    of which sessions, that end here or begin here, the first bytes are kept (see `beginnings`).
    """

    name: str
    addresses: tuple[bytes, ...]
    left: frozenset[bytes] = frozenset()
    port_range: tuple[int, int] = (61000, 65535)
    control_port: int = 2016
    mtu: int = 1500
    boxes: tuple[LocalBox, ...] = ()
    peers: tuple[Peer, ...] = ()
    timers: Timers = field(default_factory=Timers)
    limits: Limits = field(default_factory=Limits)
    watch: Callable[[FiveTuple, bool], bool] = unwatched


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy wants of a new session: the hops in order, the final host's agent last unless egress says.

    failure: why no chain can be made although the policy matches; on_fail says what then.
    """

    policy: str
    hops: tuple[Hop, ...]
    on_fail_open: bool = False
    egress: Egress = Egress.AGENT
    failure: str = ""


Decide = Callable[[FiveTuple, float], Decision | None]
"""Give the decision for a session that begins; the time is monotonic seconds."""
