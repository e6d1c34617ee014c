"""What the agent tells the world: sessions, peers, status and events, as `dysco.views` lays them down."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from dysco.protocol.chain import FacingInfo, SessionInfo
from dysco.protocol.changing import ChangeInfo
from dysco.protocol.events import (
    ChangeMoved,
    Event,
    SessionClosed,
    SessionEstablished,
    SessionOpened,
    SetupRefused,
)
from dysco.transport.settings import PeerStatus
from dysco.views import Event as EventView
from dysco.views import Facing, Peer, Running, Session, Status
from dysco.wire.tuples import FiveTuple, show_address

if TYPE_CHECKING:
    from dysco.service.agent import AgentService
    from dysco.service.kernel import KernelSide

DROPS: Final = (
    "malformed",
    "header_not_authentic",
    "header_replayed",
    "unknown_subsession",
    "refused",
    "table_full",
    "embryonic_evicted",
    "message_of_unknown_peer",
    "no_association",
)
"""Counters of the core that mean that something was dropped."""


def status(agent: AgentService) -> Status:
    """The agent itself."""
    side, core = agent.kernel, agent.core
    counters = dict(core.counters)
    return Status(
        name=agent.config.agent.name,
        pid=os.getpid(),
        uptime_s=round(time.monotonic() - agent.began_at, 3),
        mode=mode(side),
        why_no_ebpf=side.kernel_refused or None,
        opening="agent" if agent.opening is None else agent.opening.state,
        why_no_offload=side.offload_refused or None,
        addresses=addresses(side.underlay.addresses),
        mtu=side.underlay.mtu,
        sessions=len(core),
        flows=len(agent.table),
        policies=len(agent.policies.rules),
        boxes=tuple(box.name for box in agent.config.box),
        loop_lag_s=round(agent.lag_s, 6),
        counters=counters,
        drops={name: counters[name] for name in DROPS if counters.get(name)} | dict(agent.forwarder.counters),
        steering=side.steering.counters(),
        drained=tuple(agent.draining.names()),
    )


def mode(side: KernelSide) -> str:
    """Who moves packets of established sessions, and how those that come to the agent come."""
    tun = "tun with offload" if side.has_offload else "tun, plain packets"
    return f"ebpf, {tun}" if side.in_kernel else tun


def addresses(packed: Iterable[bytes]) -> tuple[str, ...]:
    """Addresses as text."""
    return tuple(show_address(one) for one in packed)


_OF_EVERY_SESSION = (SessionOpened, SessionEstablished, SessionClosed)


def level(happened: Event) -> int:
    """How loud an event is logged: what every session does is for debugging."""
    if isinstance(happened, _OF_EVERY_SESSION):
        return logging.DEBUG
    if isinstance(happened, ChangeMoved):
        return logging.WARNING if happened.phase in ("refused", "aborted", "stuck") else logging.DEBUG
    return logging.WARNING if isinstance(happened, SetupRefused) else logging.INFO


def session(info: SessionInfo) -> Session:
    """One session. A subsession is named from left to right."""
    sides = (("left", info.left), ("right", info.right))
    return Session(
        chain_id=info.chain_id.hex(),
        hop_index=info.hop_index,
        role=info.role,
        state=info.state,
        session=str(info.session),
        session_out=str(info.session_out),
        policy=info.policy,
        box=info.box,
        facings=tuple(
            _facing(side, facing) for side, facing in sides if facing is not None and facing.peer is not None
        ),
        age_s=round(info.age_s, 3),
        packets=info.packets,
        bytes=info.bytes,
        changes=tuple(_running(one) for one in info.changes),
    )


def _running(change: ChangeInfo) -> Running:
    return Running(
        side=change.side,
        phase=change.phase,
        since={phase: round(ago, 6) for phase, ago in change.since},
        old=str(change.old),
        new=None if change.new is None else str(change.new),
        bytes_old=change.bytes_old,
        bytes_new=change.bytes_new,
    )


def peer(status: PeerStatus, sessions: int, addresses: tuple[str, ...]) -> Peer:
    """One peer."""
    return Peer(
        name=status.name,
        state="up" if status.up else "down",
        address=status.address,
        addresses=addresses,
        since_s=status.up_for_s,
        heard_s=status.heard_s,
        mtu=status.mtu,
        sessions=sessions,
        attempts=status.attempts,
        last_failure=status.last_failure,
    )


def wall_clock() -> float:
    """Seconds since 1970, for people only; three are asked for in the life of each session."""
    return time.clock_gettime(time.CLOCK_REALTIME)


def fields(happened: Event) -> dict[str, Any]:
    """The fields of an event as plain values."""
    return {one.name: _plain(getattr(happened, one.name)) for one in dataclasses.fields(happened)}


def event(happened: Event, at: float) -> EventView:
    """One event: its name, the wall-clock time for people, and its fields."""
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return EventView(name(happened), when, fields(happened))


def name(happened: Event) -> str:
    """The constant name of an event: session_opened for SessionOpened."""
    words = type(happened).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")


def _facing(side: str, facing: FacingInfo) -> Facing:
    return Facing(
        side,
        facing.peer or "(this host)",
        str(facing.tuple),
        facing.chain_id.hex() if facing.chain_id else None,
    )


def _plain(value: object) -> object:
    if isinstance(value, FiveTuple):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value
