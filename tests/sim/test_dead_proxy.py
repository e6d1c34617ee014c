"""A proxy dies while it is being taken out, or its whole host: no byte is wrong, and what is lost is said."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from dysco.protocol.events import ChangeMoved, Event
from dysco.sim.deaths import run
from dysco.sim.endpoint import Endpoint, Profile, State
from dysco.sim.host import Listener
from dysco.sim.link import Fault
from dysco.sim.proxied import RELAY_PORT, Edits, Proxied
from dysco.sim.scenario import SERVER_PORT, Pair

SIZE = 200_000


class Dying(Proxied):
    """An upload through a relay that holds much of it, and dies when both anchors have two paths.

    gently: its kernel closes its sockets where nothing was left to be read, as Linux does.
    """

    gently = False

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
            self.relays[0].die(gently=self.gently)
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
    said = {one for one in reasons if "the proxy is dead" in one}
    assert any(int(one.split("; ")[1].split()[0]) > 1000 for one in said), (said, reasons)


class Surviving(Dying):
    """The relay holds nothing when it dies: what the client has sent since was lost on its way to it."""

    def _join(self, number: int, left: Endpoint) -> None:
        super()._join(number, left)
        relay = self.relays[number]
        relay.pause_s, relay.most = 0.001, 100_000
        self.clock.call_at(self.clock.now + 0.015, self._cut)

    def _cut(self) -> None:
        self.network.link("data", self.client.name, self.relay_host.name).up = False


@pytest.mark.parametrize("gently", [False, True])
def test_a_session_is_saved_if_the_proxy_held_nothing(*, gently: bool) -> None:
    scenario = Surviving(1)
    scenario.gently = gently
    verdict = scenario.run()
    assert verdict.faults == []
    assert scenario.relays[0].died
    [pair] = scenario.pairs
    for end in (pair.client, pair.server):
        assert end is not None
        assert end.state is State.DONE
    for host in (scenario.client, scenario.server):
        assert host.agent is not None
        assert host.agent.counters["proxy_dead"] == host.agent.counters["proxy_survived"] == 1


@pytest.mark.parametrize(
    "seed", [*range(12), 194, 47106249761120, 245741054479834, 245741054477782, 37400393628344]
)
def test_the_host_of_a_proxy_dies(seed: int) -> None:
    # 194: an anchor did not count what its end was given as acknowledged between the lock and the switch.
    # 47106249761120: an anchor followed the other one when its end had been reset.
    # 245741054479834: one gave up what the other one had gone on with, whose answers were lost.
    # 245741054477782: what an agent asked an end was taken for that of the other end by anchors with two paths.
    # 37400393628344: one went on, and the other one, which had heard nothing, gave up.
    # `python -m dysco.sim --dead-proxy` takes as many as one likes.
    assert run(seed).faults == []
