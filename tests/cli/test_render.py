"""Tables and texts read as expected, at a fixed width, and nothing from outside can steer the terminal."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from cli import fakes
from cli.show_text import text_of
from dysco.cli import output, render
from dysco.views import Event, chains


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
    assert "\x1b" not in text_of(render.peers([replace(fakes.PEERS[0], name=evil, state=evil, address=evil)]))
    assert "\x1b" not in text_of(render.event(Event(evil, "", {"reason": evil})))
    assert "\x1b" not in text_of(render.sessions([fakes.session(name=evil, box=evil)]))


def test_sessions() -> None:
    head, rule, at_a, at_b = text_of(render.sessions([fakes.AT_A, fakes.AT_B])).splitlines()
    assert " ".join(head.split()) == "chain session state box left right packets bytes age"
    assert set(rule) == {"─"}
    assert at_a == f"3f2a91c0  {fakes.SESSION}  established  -    -     B        1.50k  2.00M  12s"
    assert at_b == f"3f2a91c0  {fakes.SESSION}  established  fw   A     C        1.50k  2.00M  12s"
    assert text_of(render.sessions([])) == "no sessions"


def test_peers() -> None:
    head, _, up, down = text_of(render.peers(fakes.PEERS)).splitlines()
    assert " ".join(head.split()) == "peer state address since heard mtu sessions why not"
    assert up.split() == ["B", "up", "10.0.2.2", "45s", "590ms", "1500", "3", "-"]
    assert " ".join(down.split()) == "C down 10.0.3.3, 2001:db8:3::3 - - - 0 no answer"


def test_status() -> None:
    assert text_of(render.status(fakes.STATUS)) == "\n".join(
        [
            "name            A",
            f"pid             {fakes.PID}",
            "uptime          3m07s",
            "mode            tun with offload",
            "why_no_ebpf     -",
            "opening         agent",
            "why_no_offload  -",
            "addresses       10.0.1.1, 2001:db8:1::1",
            "mtu             1500",
            "sessions        1",
            "flows           2",
            "policies        1",
            "boxes           -",
            "loop_lag        1ms",
            "counters        opened=3  syn=4",
            "drops           -",
            "steering        diverted=5",
            "drained         -",
        ]
    )


def test_events_are_one_line_each() -> None:
    first, second = (text_of(render.event(one)) for one in fakes.EVENTS)
    assert first == "12:00:01.250  peer_up  peer=B"
    assert second == f"12:00:02.000  session_opened  chain_id=3f2a91c0  session={fakes.SESSION}"
    assert text_of(render.event(Event("x", "yesterday"))) == "yesterday  x"


def test_a_box_that_changes_the_session_is_seen_in_the_drawing() -> None:
    behind = "10.0.2.2:55555 > 10.0.4.4:80"
    shown = text_of(render.chains(chains([("B", [replace(fakes.AT_B, session_out=behind)])])))
    assert f"  B (fw)   the session goes on as {behind}" in shown.splitlines()


def test_chains_of_four_agents_make_one_drawing() -> None:
    said = [("C", [fakes.AT_C]), ("A", [fakes.AT_A]), ("D", [fakes.AT_D]), ("B", [fakes.AT_B])]
    assert text_of(render.chains(chains(said))) == "\n".join(
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
    assert text_of(render.chains([])) == "no chains"


@pytest.mark.parametrize(
    ("rows", "terminal"), [(1, False), (output._LONG + 1, False), (output._LONG + 1, True)]
)
def test_what_is_long_or_goes_into_a_pipe_is_as_on_the_screen_but_for_its_colours(
    rows: int, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = render.table("chain", "session", "bytes", right=("bytes",))
    for number in range(rows):
        made.add_row(f"{number:04}", Text("宽 narrow", style="green"), render.number(number))
    picture = Group(made, Text("a line"), "another")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    output.emit(None, False, lambda _: picture)
    shown = capsys.readouterr().out
    assert [line.rstrip() for line in shown.splitlines()] == text_of(picture, 200).splitlines()


def test_of_something_else_only_a_console_makes_a_text() -> None:
    assert output.as_text(Group(Text("a"), Panel("b"))) is None
