"""The process of a proxy dies while it is being taken out: the event says what was lost, and no byte is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dysco.protocol.events import ChangeMoved, Event
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.host import Listener
from dysco.sim.link import Fault
from dysco.sim.proxied import RELAY_PORT, Edits, Proxied
from dysco.sim.scenario import SERVER_PORT, Pair

SIZE = 200_000


class Dying(Proxied):
    """An upload through a relay that holds much of it, and dies when both anchors have two paths."""

    def _plan_changes(self) -> None:
        pass

    def _profile(self, *, greedy: bool = True) -> Profile:
        return Profile(1460, 3, True, True, 60_000, paws=True, greedy=greedy)

    def _make_sessions(self) -> None:
        self.network.fault = self.network.control_fault = Fault(0.004)
        edits = Edits(self.rng)
        edits.put_right = edits.put_left = b""
        edits.drop_left = 0
        self.edits.append(edits)
        pair = Pair(self.rng.randbytes(SIZE), b"")
        self.pairs.append(pair)
        self.server.listeners[SERVER_PORT] = Listener(self._profile(), partial(self._serve, pair, b""))
        self.relay_host.listeners[RELAY_PORT] = Listener(self._profile(greedy=False), partial(self._join, 0))
        self.clock.call_at(self.clock.now, partial(self._call, 0, pair.upload))
        self.clock.call_at(self.clock.now + 0.1, partial(self._splice, 0))
        self.clock.call_at(self.clock.now + 0.1, self._wait)

    def _wait(self) -> None:
        phases = [phase for wish in self.changer.wishes.values() for phase in wish.phases]
        if "two paths" in phases:
            self.relays[0].die()
        elif self.clock.now < 1010:
            self.clock.call_at(self.clock.now + 0.001, self._wait)

    def _join(self, number: int, left: Endpoint) -> None:
        super()._join(number, left)
        relay = self.relays[number]
        relay.pause_s, relay.most = 0.02, 2_000

    def _abort(self, endpoint: Endpoint) -> None:
        """No session is given up here."""


def test_the_event_says_how_much_was_lost() -> None:
    scenario = Dying(1)
    reasons: list[str] = []

    def hear(before: Callable[[Event], None], event: Event) -> None:
        if isinstance(event, ChangeMoved):
            reasons.append(event.reason)
        before(event)

    for host in scenario.hosts:
        host.hear = partial(hear, host.hear)
    verdict = scenario.run()
    assert verdict.faults == []
    [pair] = scenario.pairs
    for end in (pair.client, pair.server):
        assert end is not None
        assert end.state is State.FAILED
        assert end.why_failed == "reset by the other side"
    said = {one for one in reasons if "the proxy has reset the session" in one}
    assert any(int(one.split("; ")[1].split()[0]) > 1000 for one in said), (said, reasons)
