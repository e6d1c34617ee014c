"""When an agent runs ahead of others, and that it does not do so for long."""

from __future__ import annotations

import os
from collections.abc import Callable

from dysco.service.hurry import LINGER_S, MOST_S, Hurry


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self.due.append((when, callback))

    def go(self, seconds: float) -> None:
        end = self.now + seconds
        while ready := [one for one in self.due if one[0] <= end]:
            first = min(ready, key=lambda one: one[0])
            self.due.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


def made(answer: bool = True) -> tuple[Clock, Hurry, list[bool]]:
    clock, asked = Clock(), []

    def schedule(ahead: bool) -> bool:
        asked.append(ahead)
        return answer

    return clock, Hurry(clock, schedule), asked


def test_it_ends_a_little_after_the_last_message() -> None:
    clock, hurry, asked = made()
    for _ in range(3):
        hurry.begin()
        clock.go(LINGER_S / 2)
    assert asked == [True]
    clock.go(LINGER_S)
    assert asked == [True, False]
    assert not clock.due
    hurry.begin()
    assert asked == [True, False, True]


def test_many_changes_one_after_the_other_leave_half_of_the_time_to_others() -> None:
    clock, hurry, asked = made()
    ahead = 0
    for _ in range(1000):
        hurry.begin()
        ahead += hurry.runs_ahead
        clock.go(0.002)
    assert 450 <= ahead <= 550
    assert len(asked) <= 2 * (2.0 / MOST_S) + 2


def test_a_kernel_that_refuses_is_asked_once() -> None:
    clock, hurry, asked = made(answer=False)
    for _ in range(3):
        hurry.begin()
        clock.go(MOST_S)
    hurry.end()
    assert asked == [True]
    assert not clock.due


def test_whoever_stops_is_an_ordinary_process_again() -> None:
    clock, hurry, asked = made()
    hurry.begin()
    hurry.end()
    clock.go(1.0)
    assert asked == [True, False]


def test_the_kernel_is_asked_for_this_thread() -> None:
    hurry = Hurry(Clock())
    hurry.begin()
    ahead = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    hurry.end()
    assert ahead == (os.SCHED_RR if hurry_allowed() else os.SCHED_OTHER)
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER


def hurry_allowed() -> bool:
    """Whether this process may ask for it at all."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True
