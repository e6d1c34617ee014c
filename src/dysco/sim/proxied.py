"""Scenarios with a proxy that ends TCP on both sides, and is taken out of its sessions at random times.

    client A --- box ... --- relay P --- box ... --- server Z        two chains for each session

Everything that other scenarios draw is drawn here too: faults, changes on both sides of the relay, agents that are
killed. The relay reads late and in pieces, and stops reading while much of what it has written is not acknowledged; it
may add bytes at the beginning of either direction or take some away. Clients and servers may read slowly, too. The
process of the relay may die: then both of its sockets send a reset. Beside what every scenario judges: a relay that
lives must see an ordinary end on both of its sockets.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from dysco.protocol.chain import SessionInfo
from dysco.sim.changer import Wish
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.host import Host, Listener
from dysco.sim.scenario import SERVER_PORT, TIME_LIMIT_S, Pair, Scenario, Verdict
from dysco.wire.chain_header import Hop
from dysco.wire.tuples import FiveTuple

RELAY_PORT = 8000
OUT_PORT = 20_000
ENDED = (State.DONE, State.FAILED)


class Direction:
    """One direction of a relay: what it takes from one endpoint, and gives to the other one.

    room: how many bytes it lets wait for the sink's acknowledgement before it stops reading.
    """

    def __init__(self, source: Endpoint, sink: Endpoint, put: bytes, drop: int, room: int) -> None:
        self.source = source
        self.room = room
        self.sink = sink
        self.put = put
        self.taken = drop
        self.closed = False

    def pump(self, now: float, most: int) -> None:
        """Give at most so many bytes, and pass the end of the stream on when all is given."""
        if self.source.state is State.FAILED and self.sink.state not in ENDED:
            self.sink.abort(now)
            return
        if self.sink.state is not State.OPEN or self.closed:
            return
        if self.put:
            self.sink.write(self.put, now)
            self.put = b""
        most = max(0, min(most, self.room - self.sink.backlog))
        piece = bytes(self.source.received[self.taken : self.taken + most])
        self.taken += len(piece)
        self.source.read_to(self.taken, now)
        if piece:
            self.sink.write(piece, now)
        if self.source.fin_received and self.taken >= len(self.source.received):
            self.closed = True
            self.sink.close(now)


class Relay:
    """One session of a proxy. died: its process was killed. misread: its agent has taken down other first bytes."""

    def __init__(self, host: Host, rng: random.Random, left: Endpoint, right: Endpoint, edits: Edits) -> None:
        self.host = host
        self.left = left
        self.right = right
        self.died = False
        self.misread = False
        self.until = host.clock.now + TIME_LIMIT_S
        self.pause_s = rng.choice((0.002, 0.01, 0.05))
        self.most = rng.choice((500, 4000, 100_000))
        room = rng.choice((3000, 30_000, 1_000_000))
        self.directions = (
            Direction(left, right, edits.put_right, edits.drop_left, room),
            Direction(right, left, edits.put_left, 0, room),
        )
        self.pump()

    def pump(self) -> None:
        """Move bytes, and come again until both sides have ended."""
        now = self.host.clock.now
        if self.died:
            return
        for one in self.directions:
            one.pump(now, self.most)
        for end in (self.left, self.right):
            self.host.arm(end)
        if any(end.state not in ENDED for end in (self.left, self.right)) and now < self.until:
            self.host.clock.call_at(now + self.pause_s, self.pump)

    def die(self, *, gently: bool = False) -> None:
        """The process is killed: the kernel resets what it had open, as with data that nobody has read.

        gently: it closes what was read to its end.
        """
        for end in (self.left, self.right):
            if end.state not in ENDED:
                self.died = True
                (end.orphan if gently else end.abort)(self.host.clock.now)
                self.host.arm(end)


class Edits:
    """What a relay does to the beginnings of streams: a line before them, a request that it answers itself."""

    def __init__(self, rng: random.Random) -> None:
        self.put_right = rng.randbytes(rng.choice((0, 0, 0, 28)))
        self.put_left = rng.randbytes(rng.choice((0, 0, 0, 39)))
        self.drop_left = rng.choice((0, 0, 0, 61))


class Proxied(Scenario):
    """A scenario with a relay between client and server."""

    def __init__(self, seed: int, *, record: bool = False) -> None:
        self.relays: dict[int, Relay] = {}
        self.splices: set[int] = set()
        self.edits: list[Edits] = []
        self.at: Host | None = None
        super().__init__(seed, record=record, restless=False)

    @property
    def relay_host(self) -> Host:
        """The host of the relay; the third one is added if there are only two."""
        if self.at is None:
            if len(self.hosts) == 2:
                self.hosts.insert(1, self.network.add("p", self.address(10)))
            self.at = self.hosts[self.rng.randrange(1, len(self.hosts) - 1)]
            self.at.queues = True
        return self.at

    def _route(self, host: Host) -> tuple[Hop, ...]:
        middle = self.hosts.index(self.relay_host)
        hops = [Hop(one.addresses[0], 0) for one in self.hosts]
        if host is self.client:
            return tuple(hops[1 : middle + 1])
        return tuple(hops[middle + 1 :]) if host is self.relay_host else ()

    def _has_box(self, host: Host) -> bool:
        return super()._has_box(host) and host is not self.relay_host

    def _watch(self, host: Host) -> Callable[[FiveTuple, bool], bool]:
        return (lambda *_: True) if host is self.relay_host else super()._watch(host)

    def _make_agents(self) -> None:
        _ = self.relay_host
        super()._make_agents()

    def _profile(self, *, greedy: bool = True) -> Profile:
        drawn = self._common
        return Profile(
            mss=drawn.mss,
            wscale=self.rng.choice((None, 0, 3, 7)),
            timestamps=drawn.timestamps,
            sack=self.rng.random() < 0.7,
            buffer=self.rng.choice((2000, 20000, 65535, 300_000)),
            burst=self.rng.choice((1, 1, 4)),
            paws=True,
            greedy=greedy,
        )

    def _make_sessions(self) -> None:
        self._common = super()._profile()
        for number in range(self.rng.randint(1, 3)):
            sizes = (0, 1, 3000, 8000, 25000, 60000)
            self.edits.append(Edits(self.rng))
            up, down = (self.rng.randbytes(self.rng.choice(sizes)) for _ in range(2))
            edits = self.edits[number]
            pair = Pair(edits.put_right + up, edits.put_left + down)
            self.pairs.append(pair)
            self.server.listeners[SERVER_PORT + number] = Listener(
                self._profile(greedy=self.rng.random() < 0.7), partial(self._serve, pair, down)
            )
            self.relay_host.listeners[RELAY_PORT + number] = Listener(
                self._profile(greedy=False), partial(self._join, number)
            )
            begins = self.clock.now + self.rng.random() * 0.2
            self.clock.call_at(begins, partial(self._call, number, up))
            for _ in range(self.rng.choice((1, 2, 3))):
                at = begins + 0.01 + self.rng.random() * self.rng.choice((0.1, 0.3, 1.0))
                self.clock.call_at(at, partial(self._splice, number))

    def _isn(self) -> int:
        rng = self.rng
        return rng.choice((rng.randrange(1 << 32), (1 << 32) - rng.randrange(1, 30000)))

    def _serve(self, pair: Pair, down: bytes, endpoint: Endpoint) -> None:
        if pair.server is not None:
            pair.incarnations += 1
        pair.server = endpoint
        self._read(self.server, endpoint)
        self._talk(self.server, endpoint, down)

    def _read(self, host: Host, endpoint: Endpoint) -> None:
        """Let an application read in pieces, unless it reads at once."""
        if endpoint.profile.greedy:
            return
        pause_s, most = self.rng.choice((0.005, 0.05)), self.rng.choice((1000, 6000, 50_000))
        # Nobody is told that a session has ended whose other end was killed.
        until = self.clock.now + TIME_LIMIT_S
        taken = 0

        def look() -> None:
            nonlocal taken
            taken = min(taken + most, len(endpoint.received))
            endpoint.read_to(taken, self.clock.now)
            host.arm(endpoint)
            if endpoint.state not in ENDED and self.clock.now < until:
                self.clock.call_at(self.clock.now + pause_s, look)

        look()

    def _call(self, number: int, up: bytes) -> None:
        """The client connects to the relay; what the relay takes away comes first."""
        pair = self.pairs[number]
        wanted = FiveTuple.of(
            self.client.addresses[0], 30000 + number, self.relay_host.addresses[0], RELAY_PORT + number
        )
        profile = self._profile(greedy=self.rng.random() < 0.7)
        pair.client = client = self.client.connect(wanted, self._isn(), profile)
        self._read(self.client, client)
        self._talk(self.client, client, bytes(self.edits[number].drop_left) + up)
        if self.rng.random() < 0.05:
            pair.aborted = True
            self.clock.call_at(self.clock.now + self.rng.random(), partial(self._abort, client))

    def _join(self, number: int, left: Endpoint) -> None:
        """The relay accepts a session and connects to the server."""
        host = self.relay_host
        wanted = FiveTuple.of(
            host.addresses[0], OUT_PORT + number, self.server.addresses[0], SERVER_PORT + number
        )
        right = host.connect(wanted, self._isn(), self._profile(greedy=False))
        relay = self.relays[number] = Relay(host, self.rng, left, right, self.edits[number])
        if self.rng.random() < 0.1:
            host.clock.call_at(host.clock.now + self.rng.random(), relay.die)

    def _splice(self, number: int) -> None:
        relay, agent, edits = self.relays.get(number), self.relay_host.agent, self.edits[number]
        if relay is None or agent is None:
            return
        if len(relay.left.received) < edits.drop_left:
            return  # nobody says that a proxy has taken off what has not come to it
        keys = [
            next(
                (one.chain_id + bytes((one.hop_index,)) for one in agent.sessions() if wanted in _ends(one)),
                None,
            )
            for wanted in (relay.left.tuple.reversed(), relay.right.tuple)
        ]
        for end, mine in ((relay.left, relay.left.tuple.reversed()), (relay.right, relay.right.tuple)):
            heads = agent.first_bytes(mine)
            if heads is not None and not _agree(heads[end is relay.right], bytes(end.received)):
                relay.misread = True
        if keys[0] is None or keys[1] is None:
            return
        request = self.rng.randrange(1, 1 << 62)
        self.splices.add(request)
        self.changer.wishes[request] = Wish(self.relay_host.name, self.clock.now)
        added = len(edits.put_right) - edits.drop_left, len(edits.put_left)
        done = agent.splice(
            keys[0], keys[1], request, self.clock.now, added_right=added[0], added_left=added[1]
        )
        if not done:
            del self.changer.wishes[request]
        self.relay_host.drain()

    def _restart(self, host: Host) -> None:
        for number, pair in enumerate(self.pairs):
            relay = self.relays.get(number)
            if relay is None or any(
                end.state in (State.SYN_SENT, State.SYN_RECEIVED) for end in (relay.left, relay.right)
            ):
                pair.excused = True
        super()._restart(host)

    def _settled(self, pair: Pair) -> bool:
        relay = self.relays.get(self.pairs.index(pair))
        ends = () if relay is None or pair.aborted or pair.excused else (relay.left, relay.right)
        return super()._settled(pair) and all(end.state in ENDED for end in ends)

    def _has_failed(self, number: int, pair: Pair) -> bool:
        relay = self.relays.get(number)
        ends = () if relay is None else (relay.left, relay.right)
        return super()._has_failed(number, pair) or any(end.state is State.FAILED for end in ends)

    def _judge(self, number: int, pair: Pair, verdict: Verdict) -> None:
        relay = self.relays.get(number)
        if relay is not None and relay.died:
            # Whether the session is over depends on how far it was; its bytes must be right.
            pair.excused = True
        super()._judge(number, pair, verdict)
        if relay is not None and relay.misread:
            verdict.faults.append(f"session {number}: the agent has seen other first bytes than the relay")
        if relay is None or relay.died:
            return
        for end, who in ((relay.left, "left"), (relay.right, "right")):
            verdict.faults += [f"session {number}: the relay, {who}: {text}" for text in end.violations]
            if end.state is not State.DONE and not pair.aborted and not pair.excused:
                verdict.faults.append(
                    f"session {number}: the relay, {who}: {end.state.value} {end.why_failed}"
                )


def _agree(one: bytes, other: bytes) -> bool:
    """Whether one of them is the beginning of the other."""
    return one.startswith(other[: len(one)]) and other.startswith(one[: len(other)])


def _ends(info: SessionInfo) -> tuple[FiveTuple, FiveTuple]:
    return info.session, info.session_out


def run(seed: int, *, record: bool = False) -> Verdict:
    """Make the scenario of a seed and run it; the same seed gives the same run."""
    return Proxied(seed, record=record).run()
