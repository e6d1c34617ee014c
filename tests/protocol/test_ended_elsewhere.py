"""Sessions that end by the old path while a change is under way: hosts of the new path see nothing of that.

They would keep the session, and a tracker its entry, until it had been idle for hours.
"""

from __future__ import annotations

import pytest

from dysco.sim.box import Firewall
from protocol.living import Living

TIME_WAIT_S = 60.0


def end(live: Living, after_ms: int) -> None:
    """Both ends close, so many milliseconds from now."""

    def close() -> None:
        assert live.server is not None
        for endpoint, name in ((live.client, "a"), (live.server, "d")):
            endpoint.close(live.clock.now)
            live.hosts[name].arm(endpoint)

    live.clock.call_at(live.clock.now + after_ms / 1000, close)


@pytest.mark.parametrize("after_ms", range(0, 24))
def test_nobody_keeps_a_session_that_has_ended_during_a_change(after_ms: int) -> None:
    live = Living(boxes={"e": Firewall()})
    live.talk(1000)
    request = live.change("a", "a", "d", "e")
    end(live, after_ms)
    live.wait(4 * TIME_WAIT_S)
    assert live.outcome("a", request)[0] in ("done", "aborted", "refused")
    for name, host in live.hosts.items():
        assert list(live.agent(name).sessions()) == [], name
        assert not host.table.flows
        assert live.agent(name).leftovers() == []


def test_who_hears_more_of_a_session_that_has_ended_elsewhere_waits_as_usual() -> None:
    """An end says its FIN again if it has not heard that it came."""
    live = Living(boxes={"e": Firewall()})
    live.talk(1000)
    live.change("a", "a", "d", "e")
    end(live, 0)
    live.wait(5.0)
    assert [info.state for info in live.agent("e").sessions()] == ["time-wait"]
    next(iter(live.hosts["e"].table.flows.values())).packets += 1
    live.wait(TIME_WAIT_S / 2)
    assert [info.state for info in live.agent("e").sessions()] == ["time-wait"]
    live.wait(2 * TIME_WAIT_S)
    assert live.closed("e") == ["closed"]
