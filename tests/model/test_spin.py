"""The Promela model: its tables are those of the code, and Spin finds nothing in it but what was broken on purpose."""

from __future__ import annotations

import re
import subprocess
from enum import Enum
from pathlib import Path

import pytest

from dysco.protocol import anchors, locks

SPIN = Path(__file__).parents[2] / "tools/spin"
LINE = re.compile(r":: \(state == (\w+) && input == (\w+)\) -> action = (\w+); state = (\w+)")
Table = dict[tuple[str, str], tuple[str, str]]


def in_model(name: str) -> Table:
    """The transitions of one table of the model, as it is without anything broken."""
    text = (SPIN / "tables.pml").read_text()
    body = text.split(f"inline {name}()")[1].split("\n}\n")[0]
    body = re.sub(r"#ifdef BROKEN_\w+\n.*?#else\n(.*?)#endif\n", r"\1", body, flags=re.DOTALL)
    found = LINE.findall(body)
    assert body.count("::") == len(found) + 1  # and `else`
    table = {(state, what): (action, new) for state, what, action, new in found}
    assert len(table) == len(found)
    return table


@pytest.mark.parametrize(
    ("name", "table"),
    [("lock_table", locks.TABLE), ("left_table", anchors.LEFT), ("right_table", anchors.RIGHT)],
)
def test_the_model_has_the_tables_of_the_code(
    name: str, table: dict[tuple[Enum, Enum], tuple[Enum, Enum]]
) -> None:
    code = {(old.name, what.name): (action.name, new.name) for (old, what), (action, new) in table.items()}
    assert in_model(name) == code


def test_spin_finds_what_was_broken_and_nothing_else() -> None:
    done = subprocess.run((SPIN / "run",), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = re.search(r"^overlapping: holds; (\d+) states", done.stdout, re.MULTILINE)
    assert stored is not None
    assert int(stored[1]) > 50_000  # a model in which nothing happens would hold, too
    assert "a-lock-granted-twice: broken" in done.stdout
    stored = re.search(r"^bytes: holds; (\d+) states", done.stdout, re.MULTILINE)
    assert stored is not None
    assert int(stored[1]) > 500_000
    for name, found in (
        ("bytes-with-sums-at-the-wrong-anchors", "broken"),
        ("what-equal-sums-do-not-show", "holds"),
        ("bytes-acknowledged-to-a-box-that-has-not-sent-them", "broken"),
        ("bytes-taken-back-from-who-has-switched", "broken"),
    ):
        assert f"{name}: {found}" in done.stdout
