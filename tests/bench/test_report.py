"""The page with the figures of the bench: what was not measured stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.main import _measured
from benchmarks.report import BEGIN, END, Figures, Turns, page, table

ABOUT = ["- Command: this one"]


def test_parts_that_were_not_measured_stay(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\n\n{END}\nafter\n")
    page(path, {"chain": {"forwarding": {"gbit_s": 20.0}, "ebpf": {"gbit_s": 10.0}}}, ABOUT)
    once = path.read_text()
    assert "| ebpf | 10 (×0.50) |" in once
    page(path, {"setups": {"three agents": {"sessions": 5.0}}}, ["- Command: another"])
    twice = path.read_text()
    assert once.partition(END)[0].rstrip() in twice
    assert "### Chain set-ups\n\n- Command: another" in twice
    page(path, {"chain": {"forwarding": {"gbit_s": 20.0}, "ebpf": {"gbit_s": 10.0}}}, ABOUT)
    assert path.read_text() == twice
    assert twice.startswith("before\n")
    assert twice.endswith("after\n")


def test_rows_with_nothing_in_common_get_tables_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"{BEGIN}{END}")
    rows = {
        "idle": {"cpu_ms": 4.0, "load": 1.0},
        "idle, 2": {"cpu_ms": 2.0, "load": 1.0},
        "bulk": {"load": 2.0, "gbit_s": 9.0},
    }
    page(path, {"reconfigure": rows}, ABOUT)
    text = path.read_text()
    assert text.count("| --- |") == 2
    assert "| idle, 2 | 2 | 1 |" in text
    assert "×" not in text


def test_ratios_are_those_of_each_turn(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"{BEGIN}{END}")
    forwarding = {"gbit_s": [10.0, 40.0, 20.0], "errors": [0.0, 0.0, 0.0]}
    ebpf = {"gbit_s": [9.0, 12.0, 18.0], "errors": [1.0, 0.0, 0.0]}
    rows: dict[str, Figures] = {"forwarding": Turns(forwarding, forwarding), "ebpf": Turns(ebpf, forwarding)}
    page(path, {"chain": rows}, ABOUT)
    assert "| forwarding | 20 | 0 |" in path.read_text()
    assert "| ebpf | 12 (×0.90) | 0 |" in path.read_text()
    assert "| ebpf | 12 (0.90) | 0 |" in table("chain", rows)


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        page(path, {}, ABOUT)


def test_the_command_is_shown_without_the_files_that_it_writes() -> None:
    assert _measured(["chain", "--page", "p.md", "--rounds", "3", "--json", "x"]) == [
        "chain",
        "--rounds",
        "3",
    ]
