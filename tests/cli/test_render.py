"""Tables and texts read as expected, at a fixed width, and nothing from outside can steer the terminal."""

from __future__ import annotations

import pytest

from cli import fakes
from cli.show_text import text_of
from dysco.cli import render


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (999, "999"), (999.6, "1.00k"), (1234, "1.23k"), (45_600_000, "45.6M"), (2e15, "2000T")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert render.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (-3, "0s"), (59.9, "59s"), (187, "3m07s"), (7500, "2h05m"), (360_000, "4d04h")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert render.duration(seconds) == shown


def test_a_sparkline_is_as_wide_as_asked_and_full_at_its_highest() -> None:
    assert render.sparkline([], 4) == "    "
    assert render.sparkline([0, 0.4, 0], 3) == "   "
    assert render.sparkline([1, 4, 8], 5) == "  ▁▄█"
    assert render.sparkline([100] * 10, 3) == "███"


def test_control_characters_are_not_passed_on() -> None:
    evil = "fw\x1b[2J\r\nbad"
    assert "\x1b" not in render.clean(evil)
    assert "\x1b" not in text_of(render.peers([{"name": evil, "state": evil, "address": evil}]))
    assert "\x1b" not in text_of(render.event({"event": evil, "reason": evil}))
    assert "\x1b" not in text_of(render.sessions([fakes.session(session=evil, box=evil)]))


def test_sessions() -> None:
    head, rule, at_a, at_b = text_of(render.sessions([fakes.AT_A, fakes.AT_B])).splitlines()
    assert " ".join(head.split()) == "chain session state box left right packets bytes age idle"
    assert set(rule) == {"─"}
    assert at_a == f"3f2a91c0  {fakes.SESSION}  established  -    -     B        1.50k  2.00M  12s    0s"
    assert at_b == f"3f2a91c0  {fakes.SESSION}  established  fw   A     C        1.50k  2.00M  12s    0s"
    assert text_of(render.sessions([])) == "no sessions"


def test_peers() -> None:
    shown = text_of(render.peers(fakes.PEERS)).splitlines()
    assert shown[0].split() == ["peer", "state", "address", "since", "heard", "rtt", "mtu", "sessions"]
    assert shown[2].split() == ["B", "up", "10.0.2.2", "-", "-", "0.4ms", "1500", "3"]
    assert shown[3].split() == ["C", "down", "10.0.3.3,", "2001:db8:3::3", "-", "-", "-", "-", "-"]


def test_status_shows_spans_and_modes() -> None:
    shown = text_of(render.status(fakes.STATUS | {"addresses": ["10.0.1.1"], "socket": None}))
    assert "uptime" in shown
    assert "3m07s" in shown
    assert "offload=True  loop=uvloop" in shown


def test_an_event_is_one_line() -> None:
    line = text_of(render.event({"time": "12:00:01", "at": 3.5, "event": "chain-up", "hops": 3, "why": None}))
    assert line == "12:00:01  chain-up  hops=3"


def test_chains_of_four_agents_make_one_drawing() -> None:
    said = [("C", fakes.AT_C), ("A", fakes.AT_A), ("D", fakes.AT_D), ("B", fakes.AT_B)]
    assert text_of(render.chains({fakes.CHAIN_ID: said})) == "\n".join(
        [
            "chain 3f2a91c0  tcp 10.0.1.1:43210 > 10.0.4.4:80  established",
            "  A ══ B (fw) ══ C (tap) ══ D",
            "  A",
            f"  │    {fakes.A_B}",
            "  B (fw)",
            f"  │    {fakes.B_C}",
            "  C (tap)",
            f"  │    {fakes.C_D}",
            "  D",
        ]
    )
    assert text_of(render.chains({})) == "no chains"
