"""A TCP proxy for the checker: it takes a session, connects to the server and moves bytes between both sockets.

    client ==> socket | relay | socket ==> server        two chains, which a splice makes one

All of it can be frozen (`dysco.sim.freeze`): nothing here waits in a closure for what its own host does at once. The
relay writes some bytes in front of both streams and takes the first ones of the client away, for only then do sums at
the wrong anchor, or of the wrong sign, show.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from dysco.protocol.agent import Agent
from dysco.protocol.chain import SessionInfo
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.host import Host
from dysco.sim.proxied import ENDED, Direction
from dysco.wire.packet import Packet
from dysco.wire.tuples import FiveTuple

PUT_RIGHT: Final = b"\xf0\xf1\xf2\xf3\xf4"
PUT_LEFT: Final = b"\xe0\xe1\xe2\xe3"
DROPPED: Final = 2
PAUSE_S: Final = 0.3
"""How long a late relay lets lie what it could move: longer than the first repetitions of a change."""
_OUT_PORT: Final = 20_000
_OUT_ISN: Final = 0xFFFFFFF0
_ALL: Final = 1 << 30


@dataclass
class RelayHost(Host):
    """A host whose agent may answer its endpoints at once: what they send waits until they have done their step."""

    waiting: list[Packet] = field(default_factory=list)

    def flush(self) -> bool:
        """Send what waits, and what is sent because of it; False if there was nothing."""
        had = bool(self.waiting)
        while self.waiting:
            self.from_stack(self.waiting.pop(0))
        return had

    def _from_endpoint(self, packet: Packet) -> None:
        self.waiting.append(packet)


class Relay:
    """The session of a proxy. late: it moves bytes when its timer comes, else as soon as it can."""

    def __init__(self, host: Host, left: Endpoint, right: Endpoint, *, late: bool) -> None:
        self.host = host
        self.left = left
        self.right = right
        self.late = late
        self.is_planned = False
        self.directions = (
            Direction(left, right, PUT_RIGHT, DROPPED, _ALL),
            Direction(right, left, PUT_LEFT, 0, _ALL),
        )

    @property
    def has_work(self) -> bool:
        """Whether there is something to move."""
        return any(_has_work(one) for one in self.directions)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is to be moved, and each socket has ended, or is open with no FIN under way."""
        return not self.has_work and all(
            end.state in ENDED or (end.state is State.OPEN and end.fin_sent is end.fin_acked)
            for end in (self.left, self.right)
        )

    def pump(self) -> None:
        """Move all there is."""
        self.is_planned = False
        for one in self.directions:
            one.pump(self.host.clock.now, _ALL)
        for end in (self.left, self.right):
            self.host.arm(end)

    def look(self) -> bool:
        """See whether there is something to move, and move it now or later; True if something was moved."""
        if not self.has_work or self.is_planned:
            return False
        if self.late:
            self.is_planned = True
            self.host.clock.call_at(self.host.clock.now + PAUSE_S, self.pump)
            return False
        self.pump()
        return True


class Proxy:
    """Listens, and connects each session that it takes to the server."""

    def __init__(self, host: RelayHost, server: FiveTuple, profile: Profile, *, late: bool) -> None:
        self.host = host
        self.server = server
        self.profile = replace(profile, greedy=False)
        self.late = late
        self.relay: Relay | None = None

    def __call__(self, left: Endpoint) -> None:
        """Take a session."""
        right = self.host.connect(self.server, _OUT_ISN, self.profile)
        self.relay = Relay(self.host, left, right, late=self.late)

    def go_on(self) -> None:
        """Do all that a step has given this host to do."""
        while self.host.flush() or (self.relay is not None and self.relay.look()):
            pass

    def splice(self, agent: Agent, request: int, now: float) -> bool:
        """Ask the agent to take the proxy out; False if it does not know both chains."""
        assert self.relay is not None
        keys = [_key(agent, wanted) for wanted in (self.relay.left.tuple.reversed(), self.relay.right.tuple)]
        return (
            keys[0] is not None
            and keys[1] is not None
            and agent.splice(
                keys[0], keys[1], request, now, added_right=len(PUT_RIGHT) - DROPPED, added_left=len(PUT_LEFT)
            )
        )


def out_of(source: bytes, server: bytes, port: int) -> FiveTuple:
    """The session from a proxy to the server."""
    return FiveTuple.of(source, _OUT_PORT, server, port)


def _has_work(one: Direction) -> bool:
    if one.source.state is State.FAILED:
        return one.sink.state not in ENDED
    if one.sink.state is not State.OPEN or one.closed:
        return False
    return bool(one.put) or len(one.source.received) > one.taken or one.source.fin_received


def _key(agent: Agent, wanted: FiveTuple) -> bytes | None:
    found: list[SessionInfo] = [one for one in agent.sessions() if wanted in (one.session, one.session_out)]
    return found[0].chain_id + bytes((found[0].hop_index,)) if found else None
