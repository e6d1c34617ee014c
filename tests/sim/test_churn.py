"""Ten thousand sessions open and close through three agents under a hundred that stay; nothing of them is left.

    a (clients) ── b (a firewall) ── d (servers)        a hundred a second, in turn by each way in which one can end

Memory is what the interpreter has allocated: each object, each table of a dict or a set, each buffer is a block.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest

from dysco.sim.box import Firewall
from dysco.sim.endpoint import Endpoint, Profile
from dysco.sim.flight import Flight, objects
from dysco.sim.host import Listener
from dysco.wire.frames import encode_places
from dysco.wire.tuples import FiveTuple

SESSIONS: Final = 10_000
WARM_UP: Final = 480  # tables that grow once, and code that is loaded late
STAYING: Final = 100
EVERY_S: Final = 0.01
OPEN_S: Final = 1.0  # from its SYN to its end
REST_S: Final = 200.0  # longer than a SYN is waited for, TIME_WAIT, quarantine, and a FIN is sent again
PORT, DEAF_PORT = 80, 7
PROFILE: Final = Profile(mss=1460, wscale=7, timestamps=True, sack=True, buffer=65535, burst=4)
LEFT_BLOCKS: Final = 500  # of SESSIONS: free lists, tables of another size; a leak has one for each session


class Churn(Flight):
    """Sessions that come and go."""

    def __init__(self) -> None:
        super().__init__(STAYING)
        self.hosts = (self.a, self.b, self.d)
        self.staying = set(self.a.endpoints)
        self.answered = 0
        self._opened = 0
        self._ends: tuple[Callable[[Endpoint, Endpoint], None], ...] = (
            lambda client, server: self._close(client, server),
            lambda client, server: self._close(client),
            lambda client, server: self._close(server),
            lambda client, server: client.abort(self.clock.now),
            lambda client, server: server.abort(self.clock.now),
        )
        self.d.listeners[PORT] = Listener(PROFILE, lambda endpoint: None)

    def run(self, number: int) -> None:
        """Let so many sessions come and go, and every timer of theirs run out; ports leave quarantine with the last."""
        for some in (number - 1, 1):
            for one in range(some):
                self.clock.call_at(self.clock.now + one * EVERY_S, self._open)
            self.clock.run_until(self.clock.now + some * EVERY_S + REST_S)
        for host in self.hosts:
            host.events.clear()
            for tuple_ in host.endpoints.keys() - self.staying - {one.reversed() for one in self.staying}:
                del host.endpoints[tuple_]
        assert isinstance(self.b.box, Firewall)
        self.b.box.known &= self.staying

    def held(self) -> list[tuple[int, ...]]:
        """By host: sessions, flows, pairs of ports, records, tuples on which SYNs are waited for; none rests."""
        for host in self.hosts:
            if host.agent is not None:
                for key in host.agent.session_keys():
                    host.agent._life.chains.get(key)
        return [
            (
                len(host.agent or ()),
                len(host.table.flows),
                0 if host.agent is None else host.agent.ports_held(),
                len(host.journal),
                len(host.table.captured),
            )
            for host in self.hosts
        ]

    def _open(self) -> None:
        number, self._opened = self._opened, self._opened + 1
        end = number % (len(self._ends) + 1)
        answers = end < len(self._ends)
        tuple_ = FiveTuple.of(
            self.a.addresses[0], 30_000 + number % 20_000, self.d.addresses[0], PORT if answers else DEAF_PORT
        )
        client = self.a.connect(tuple_, self._rng.randrange(1 << 32), PROFILE)
        client.write(b"a question", self.clock.now)
        self.clock.call_at(self.clock.now + OPEN_S, partial(self._end, client, end))

    def _end(self, client: Endpoint, end: int) -> None:
        server = self.d.endpoints.get(client.tuple.reversed())
        if server is None:
            client.abort(self.clock.now)
            return
        self.answered += bytes(server.received) == b"a question"
        self._ends[end](client, server)
        if end in (1, 2):
            other = server if end == 1 else client
            self.clock.call_at(self.clock.now + OPEN_S, partial(self._close, other))

    def _close(self, *endpoints: Endpoint) -> None:
        for endpoint in endpoints:
            endpoint.close(self.clock.now)


def allocated() -> int:
    """Blocks of memory; what chains say of who is on them is kept for the next of the same kind, up to a limit."""
    encode_places.cache_clear()
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.slow
def test_ten_thousand_sessions_leave_nothing() -> None:
    churn = Churn()
    churn.run(WARM_UP)
    before, objects_before, answered, blocks = churn.held(), objects(), churn.answered, allocated()
    churn.run(SESSIONS)
    more = allocated() - blocks
    assert churn.answered - answered == SESSIONS - SESSIONS // 6
    assert churn.held() == before
    assert objects() == objects_before
    assert more < LEFT_BLOCKS, f"{more} blocks of memory"
    for host in churn.hosts:
        assert host.agent is not None
        assert len(host.agent) == STAYING
        assert host.agent.leftovers() == []
        assert host.agent.counters["bug"] == 0
    assert churn.close() == []
