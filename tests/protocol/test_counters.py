"""The list of counters and the sources say the same."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dysco.protocol.agent
from dysco.protocol.changing import Phase
from dysco.protocol.counters import COUNTERS
from dysco.wire.packet import Reason
from protocol.rig import Rig

SOURCES = sorted(Path(dysco.protocol.agent.__file__).parent.glob("*.py"))
COUNTING = {"_native", "_pass"}


def names(tree: ast.AST) -> Iterator[str]:
    """Names of counters: what stands in `counters[...]`, and what is given to functions that count."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("counters"):
            found = [node.slice]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in COUNTING:
            found = [node.args[-1]]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("close"):
            found = [
                ast.Constant(f"closed_{one.value!s}") for one in node.args if isinstance(one, ast.Constant)
            ]
        for expression in found:
            values = [one.value for one in ast.walk(expression) if isinstance(one, ast.Constant)]
            yield from (
                value for value in values if isinstance(value, str) and value not in ("closed_", "change_")
            )


def test_every_name_is_in_the_list_and_the_list_has_no_other() -> None:
    used = {name for source in SOURCES for name in names(ast.parse(source.read_text()))}
    used |= {reason.value for reason in Reason}
    used |= {
        f"closed_{reason}"
        for reason in ("closed", "reset", "denied", "idle", "embryonic", "bypassed", "abandoned")
    }
    used |= {f"change_{phase.name.lower()}" for phase in Phase}
    assert used == set(COUNTERS)


def test_all_counters_are_there_from_the_beginning() -> None:
    assert dict(Rig(up="").agent.counters) == dict.fromkeys(COUNTERS, 0)
