"""A middlebox in the middle of something delays the lock of a change that would take it out, and not for long."""

from __future__ import annotations

from protocol.living import Living


def asked(live: Living, name: str, ready: list[bool]) -> list[float]:
    """Let the box of a host say for each look whether it is ready (the last word holds); gives when it was asked."""
    times: list[float] = []

    def settle(_: object) -> tuple[int, int] | None:
        times.append(live.clock.now)
        return (0, 0) if ready[min(len(times), len(ready)) - 1] else None

    live.agent(name).boxes_settle(settle, lambda _: None)
    return times


def test_a_box_is_asked_until_it_is_ready() -> None:
    live = Living()
    times = asked(live, "b", [False] * 20 + [True])
    request = live.change("a", "a", "c")
    live.wait(0.6)
    assert live.outcome("a", request)[0] == "done"
    assert times[20] - times[0] < 0.5
    live.talk()


def test_a_box_that_is_never_ready_costs_a_refusal_and_no_more() -> None:
    live = Living()
    asked(live, "b", [False])
    for _ in range(2):
        request = live.change("a", "a", "c")
        live.wait(1.9)
        assert live.outcome("a", request)[0] == "requested"
        live.wait(0.3)
        assert live.outcome("a", request) == (
            "refused",
            "b",
            "not ready: its middlebox is in the middle of something",
        )
    live.talk()


def test_a_box_is_not_asked_for_a_change_that_was_given_up() -> None:
    live = Living()
    times = asked(live, "b", [False])
    live.change("a", "a", "c")
    live.wait(0.1)
    live.kill("a")
    live.wait(5.0)
    assert len(times) < 150
    assert live.clock.now - times[-1] > 2.0
