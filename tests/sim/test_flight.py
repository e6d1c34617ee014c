"""Many changes at the same time: each ends well, and nothing of them stays. `tools/flight` flies 10,000."""

from __future__ import annotations

import pytest

from dysco.sim.flight import Flight, objects


def test_all_at_once_end_well_and_leave_nothing() -> None:
    flight = Flight(100)
    sizes = []
    for _ in range(3):
        for hops in ((), (flight.b,)):
            gone = flight.change(*hops)
            assert (gone.ends, gone.most) == ({"done": 100}, 100)
            assert gone.took_s < 2.0
            flight.rest()
        sizes.append(objects())
    assert len(set(sizes)) == 1
    assert flight.close() == []


@pytest.mark.parametrize("seed", [1, 2])
def test_lost_messages_only_make_it_longer(seed: int) -> None:
    flight = Flight(60, loss=0.01, seed=seed)
    for hops in ((), (flight.b,)):
        assert flight.change(*hops).ends == {"done": 60}
        flight.rest()
    assert flight.close() == []
