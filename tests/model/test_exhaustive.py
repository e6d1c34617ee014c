"""Every state of small networks of real agents: two changes that contend, a proxy that leaves, one fault anywhere.

`python -m dysco.sim.check` walks larger ones; a walk that fails prints its shortest dialogue and how to replay it.
"""

from __future__ import annotations

import pytest

from dysco.protocol.joints import Joints
from dysco.sim.check import INSTANCES, Checker
from dysco.sim.relay import PUT_LEFT

MESSAGES = ("lose", "repeat", "overtake")
PROXIES = [name for name, one in INSTANCES.items() if one.proxy]


def walk(name: str, **options: object) -> None:
    checker = Checker(name, **options)  # type: ignore[arg-type]
    report = checker.walk(200_000)
    print(report)  # noqa: T201 - what CI shall show
    assert not report.fault, "\n".join([*report.dialogue, ",".join(report.choices)])
    assert report.complete
    assert report.ends


@pytest.mark.slow
def test_two_ends_that_want_the_same_in_every_order() -> None:
    walk("same-2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proxy", "proxy-late"])
def test_a_proxy_leaves_in_every_order(name: str) -> None:
    walk(name)


@pytest.mark.parametrize("name", INSTANCES)
def test_contention_with_one_departure_from_the_order_of_sending(name: str) -> None:
    walk(name, slack=1)


@pytest.mark.parametrize("name", ["one", "insert", "same-2", "nested-3", "overlapping-4", *PROXIES])
def test_one_message_or_packet_lost_repeated_or_overtaken_or_a_timer_before_its_time(name: str) -> None:
    walk(name, slack=0, faults=1, kinds=(*MESSAGES, "early"))


@pytest.mark.parametrize("name", ["same-2", "nested-3", *PROXIES])
def test_one_restart_of_any_agent_at_any_moment(name: str) -> None:
    walk(name, slack=0, faults=1, kinds=("restart",))


@pytest.mark.parametrize("name", ["one", "nested-3", *PROXIES])
def test_data_under_way(name: str) -> None:
    walk(name, slack=1, data=3)


@pytest.mark.parametrize("data", [0, 3])
@pytest.mark.parametrize("name", ["one", "nested-3", *PROXIES])
def test_one_end_closes_at_any_moment(name: str, data: int) -> None:
    walk(name, slack=0, data=data, faults=1, kinds=("close",))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_leaves_while_data_are_under_way_and_there_is_one_fault(name: str) -> None:
    walk(name, slack=0, data=3, faults=1)


def test_a_proxy_whose_sockets_hear_no_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Joints, "_let_go", lambda *_: None)
    assert Checker("proxy", slack=0).walk().fault == "does not come to rest"


def test_a_sum_that_leaves_out_what_the_proxy_adds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Joints.sums
    monkeypatch.setattr(Joints, "_disagreement", lambda *_: None)
    monkeypatch.setattr(
        Joints, "sums", lambda self, joint: (sums(self, joint)[0], sums(self, joint)[1] - len(PUT_LEFT))
    )
    assert Checker("proxy", slack=0).walk().fault == "other bytes were received than were sent"


def test_a_fault_is_found_and_walked_again_by_its_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker that finds nothing proves little: without its rule for what is over, this one must object."""
    monkeypatch.setattr("dysco.sim.check.LONGEST_S", 0.1)
    checker = Checker("one", slack=0, faults=1, kinds=("lose",))
    report = checker.walk()
    assert report.fault == "does not come to rest"
    assert checker.replay(report.choices) == report.dialogue
    assert report.dialogue[-1].strip() == report.fault
