"""The flow table keeps the kernel's steering in step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.devices import Steer
from dysco.dataplane.steer import IN, OUT
from dysco.dataplane.table import PythonFlowTable
from dysco.protocol.flow import HOST, UNDERLAY, Flow
from dysco.wire.tuples import FiveTuple

OWN = bytes((10, 0, 0, 1))
SESSIONS = [FiveTuple.parse(f"10.0.0.1:{port} > 10.0.0.9:80") for port in (1000, 1001)]
SUB = FiveTuple.parse("10.0.0.2:61000 > 10.0.0.1:61001")
NATIVE = [FiveTuple.parse("10.0.0.9:80 > 10.0.0.1:61001").reversed(), SESSIONS[0].reversed()]
KEYS = [(HOST, match) for match in SESSIONS] + [(UNDERLAY, match) for match in (SUB, *NATIVE)]


@given(
    st.lists(
        st.tuples(st.sampled_from(("insert", "delete", "capture", "release")), st.sampled_from(KEYS)),
        max_size=30,
    )
)
def test_steering_is_what_table_and_captures_say(steps: list[tuple[str, tuple[int, FiveTuple]]]) -> None:
    steer = Steer()
    table = PythonFlowTable(steer, (OWN,), (61000, 65535))
    flows: set[tuple[int, FiveTuple]] = set()
    captured: set[FiveTuple] = set()
    for what, (port, match) in steps:
        match what:
            case "insert":
                table.insert(Flow(port, match, UNDERLAY, match))
                flows.add((port, match))
            case "delete":
                table.delete(port, match)
                flows.discard((port, match))
            case "capture":
                table.capture(match)
                captured.add(match)
            case "release":
                table.release(match)
                captured.discard(match)
    expected = {(match, OUT) for port, match in flows if port == HOST} | {(match, OUT) for match in captured}
    expected |= {(match, IN) for port, match in flows if port == UNDERLAY and match != SUB}
    assert steer.diverted == expected
    assert len(table) == len(flows)
    for port, match in KEYS:
        assert (table.get(port, match) is not None) == ((port, match) in flows)


def test_what_a_dead_agent_diverted_is_removed_unless_it_was_restored() -> None:
    steer = Steer()
    table = PythonFlowTable(steer, (OWN,), (61000, 65535))
    table.insert(Flow(HOST, SESSIONS[0], UNDERLAY, SUB))
    table.capture(SESSIONS[1])
    table.insert(Flow(UNDERLAY, NATIVE[0], HOST, SUB))
    wanted = set(steer.diverted)
    for match in (SUB, NATIVE[1]):
        steer.add(match, OUT)
        steer.add(match, IN)
    assert table.divert_only(list(steer.diverted)) == 4
    assert steer.diverted == wanted
