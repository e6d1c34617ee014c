"""The dashboard's frame from snapshots, at the size of a small terminal and of a large one."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from cli import fakes
from cli.show_text import text_of
from dysco.cli import top
from dysco.cli.dashboard import Dashboard, Snapshot
from dysco.views import Event, Running


def look(at: float, sent: int = 0, pid: int = fakes.PID, sessions: int = 2, drops: int = 0) -> Snapshot:
    shown = [
        replace(
            fakes.AT_B, chain_id=f"{i:032x}", session=f"10.0.1.1:{40000 + i} > 10.0.4.4:80", bytes=sent * i
        )
        for i in range(1, sessions + 1)
    ]
    status = replace(fakes.STATUS, pid=pid, drops={"malformed": drops, "no_policy": 0})
    return Snapshot(at, status, shown, fakes.PEERS)


def drawn(board: Dashboard, width: int = 80, height: int = 24) -> list[str]:
    lines = text_of(board.frame(width, height), width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    return lines


def test_before_the_first_answer_it_says_so() -> None:
    assert "no agent, waiting" in "\n".join(drawn(Dashboard()))


def test_a_frame_fits_a_small_terminal_and_has_everything() -> None:
    board = Dashboard()
    board.see(look(10.0))
    board.see(look(12.0, sent=1_000_000, drops=6))
    board.add_event(Event("session-up", "12:00:01", {"session": fakes.SESSION}))
    shown = drawn(board)
    assert shown[0] == "dysco top  A  up 3m07s  tun with offload"
    assert shown[1].split() == ["12.0Mbit/s", "█", "2", "sessions", "2", "peers"]
    assert shown[2].startswith("sessions by rate ──")
    assert shown[4].split()[:3] == ["▶", "00000000", "10.0.1.1:40002"]
    assert "8.00Mbit/s" in shown[4]
    assert "4.00Mbit/s" in shown[5]
    text = "\n".join(shown)
    assert "A ══ A (fw) ══ C" in text
    assert fakes.A_B in text
    assert "malformed" in text
    assert "3/s" in text
    assert "no_policy" not in text
    assert "session-up" in text
    assert shown[-1].startswith("q quit")


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (200, 60)])
def test_any_size(width: int, height: int) -> None:
    board = Dashboard()
    board.see(look(1.0, sessions=100))
    text_of(board.frame(width, height), width, height)


def test_the_selected_session_stays_in_sight() -> None:
    board = Dashboard()
    board.see(look(1.0, sessions=100))
    for _ in range(60):
        assert board.press("down")
    chosen = board.selected
    assert sum("▶" in line for line in drawn(board)) == 1
    board.see(look(2.0, sessions=100))
    assert board.selected == chosen
    for _ in range(200):
        board.press("up")
    assert "▶" in drawn(board)[4]


def test_ipv6_addresses_are_no_markup() -> None:
    session = "[2001:db8:1::1]:43210 > [2001:db8:4::4]:80"
    board = Dashboard()
    board.see(Snapshot(1.0, fakes.STATUS, [fakes.session(name=session)]))
    console = Console(file=io.StringIO(), width=120, height=24)  # one that would believe in markup
    console.print(board.frame(120, 24))
    assert isinstance(console.file, io.StringIO)
    assert session in console.file.getvalue()


def test_keys() -> None:
    board = Dashboard()
    board.see(look(1.0))
    orders = []
    for _ in range(4):
        orders.append(board.sort)
        assert board.press("s")
    assert orders == ["rate", "bytes", "age", "session"]
    assert board.sort == "rate"
    assert board.press("x")
    assert not board.press("q")
    assert list(top.split_keys("\x1b[Aq\x1bOBjs")) == ["up", "q", "down", "down", "s"]


def test_a_restarted_agent_gives_no_negative_and_no_wild_rates() -> None:
    board = Dashboard()
    board.see(look(1.0, sent=5_000_000))
    board.lose("")
    assert "no agent, waiting" in drawn(board)[0]
    board.see(look(5.0, sent=7_000_000, pid=99))
    assert all(row.rate == 0 for row in board.rows)
    assert "no agent" not in drawn(board)[0]
    board.see(look(6.0, sent=7_000_001, pid=99))
    assert max(row.rate for row in board.rows) == 2


def test_a_change_is_drawn_while_it_runs_and_its_times_afterwards() -> None:
    board = Dashboard()
    since = {"requested": 0.045, "locked": 0.02, "two paths": 0.01}
    running = Running("left", "two paths", since, fakes.A_B, fakes.C_D, 1500, 2_000_000)
    board.see(Snapshot(1.0, fakes.STATUS, [replace(fakes.AT_A, changes=(running,))]))
    frame = text_of(board.frame(100, 24))
    assert f"old   {fakes.A_B}  1.50kB" in frame
    assert f"new   {fakes.C_D}  2.00MB" in frame
    assert "requested 45ms ago, locked 20ms ago, two paths 10ms ago" in frame
    for phase, after_ms in (("requested", 0), ("locked", 9), ("done", 31)):
        fields = {"chain_id": fakes.CHAIN_ID, "phase": phase}
        board.add_event(Event("change_moved", f"2026-01-02T12:00:01.{after_ms:03d}+00:00", fields))
    board.see(Snapshot(2.0, fakes.STATUS, [fakes.AT_A]))
    assert "changed: requested 0ms, locked 9ms, done 31ms" in text_of(board.frame(100, 24))
