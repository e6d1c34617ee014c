"""A proxy with a large window leaves a session whose server has a small one: nothing is sent that is not taken."""

from __future__ import annotations

from functools import partial

import pytest

from dysco.protocol.windows import Windows
from dysco.sim.endpoint import Endpoint, Profile
from dysco.sim.host import Listener
from dysco.sim.link import Fault
from dysco.sim.proxied import RELAY_PORT, Edits, Proxied
from dysco.sim.scenario import SERVER_PORT, Pair

SIZE = 500_000
SEEDS = (0, 1)  # with an agent beside each end: what was offered on the way to it cannot be taken back
PROBES = 16  # bytes with which closed windows are probed


class Uneven(Proxied):
    """Both ends have small windows, and each sends much through a relay that takes a lot."""

    def __init__(self, seed: int, *, timestamps: bool) -> None:
        self.timestamps = timestamps
        super().__init__(seed)

    def _plan_changes(self) -> None:
        pass

    def _profile(self, *, greedy: bool = True) -> Profile:
        buffer = 6000 if greedy else 200_000  # the relay reads by itself
        return Profile(536, 3, self.timestamps, True, buffer, paws=True, greedy=greedy)

    def _make_sessions(self) -> None:
        self.network.fault = Fault(0.004)
        self.network.control_fault = Fault(0.004)
        edits = Edits(self.rng)
        edits.put_right = edits.put_left = b""
        edits.drop_left = 0
        self.edits.append(edits)
        pair = Pair(self.rng.randbytes(SIZE), self.rng.randbytes(SIZE))
        self.pairs.append(pair)
        self.server.listeners[SERVER_PORT] = Listener(
            self._profile(), partial(self._serve, pair, pair.download)
        )
        self.relay_host.listeners[RELAY_PORT] = Listener(self._profile(greedy=False), partial(self._join, 0))
        self.clock.call_at(self.clock.now, partial(self._begin_at, pair))
        self.clock.call_at(self.clock.now + 0.12, partial(self._splice, 0))

    def _begin_at(self, pair: Pair) -> None:
        self._call(0, pair.upload)
        pair.aborted = False

    def _join(self, number: int, left: Endpoint) -> None:
        super()._join(number, left)
        relay = self.relays[number]
        relay.pause_s, relay.most = 0.005, 10_000
        for one in relay.directions:
            one.room = 100_000

    def _abort(self, endpoint: Endpoint) -> None:
        pass


def _overrun(seed: int, *, timestamps: bool) -> int:
    scenario = Uneven(seed, timestamps=timestamps)
    verdict = scenario.run()
    [pair] = scenario.pairs
    assert verdict.faults == [], seed
    assert verdict.outcomes["done"] == 1, verdict.outcomes
    assert pair.client is not None
    assert pair.server is not None
    return pair.client.overrun + pair.server.overrun


@pytest.mark.parametrize("timestamps", [True, False])
def test_nothing_is_sent_beyond_the_window_of_the_other_end(timestamps: bool) -> None:
    for seed in SEEDS:
        assert _overrun(seed, timestamps=timestamps) < PROBES, seed


def test_without_the_limit_the_relays_window_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Windows, "clamp", lambda *_: False)
    assert any(_overrun(seed, timestamps=True) > 1_000 for seed in SEEDS)
