"""Views survive JSON, keep the keys that programs read, and pass over what a newer agent adds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cli import fakes
from dysco.errors import LocalError
from dysco.views import Chain, Event, Facing, Hop, Peer, Session, Status, View, chains

VIEWS: list[View] = [
    fakes.STATUS,
    fakes.AT_A,
    fakes.AT_B,
    *fakes.PEERS,
    *fakes.EVENTS,
    *chains([("A", [fakes.AT_A]), ("B", [fakes.AT_B])]),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_json_and_back(view: View) -> None:
    record = json.loads(json.dumps(view.plain()))
    assert type(view).of(record) == view
    if not isinstance(view, Event):
        assert type(view).of(record | {"of_a_newer_agent": [1]}) == view


@pytest.mark.parametrize("kind", [Status, Session, Peer, Chain, Hop, Event])
def test_what_lacks_its_keys_is_refused_by_name(kind: type[View]) -> None:
    with pytest.raises(LocalError, match=kind.__name__.lower()):
        kind.of({})


def test_a_record_that_is_none_is_refused() -> None:
    records: list[Any] = [None, 3, [], "text", {"facings": [None]}, {"facings": 3}]
    for record in records:
        with pytest.raises(LocalError):
            Session.of(record)


def test_keys_that_programs_read() -> None:
    """The order and the names of `--json`; a change here breaks scripts."""
    assert " ".join(fakes.AT_A.plain()) == (
        "chain_id hop_index role state session session_out policy box facings age_s packets bytes changes"
    )
    assert fakes.AT_A.plain()["facings"] == [
        {"side": "right", "peer": "B", "subsession": fakes.A_B, "chain_id": None}
    ]
    assert " ".join(fakes.PEERS[0].plain()) == (
        "name state address addresses since_s heard_s mtu sessions attempts last_failure"
    )
    assert " ".join(fakes.STATUS.plain()) == (
        "name pid uptime_s mode why_no_ebpf opening why_no_offload addresses mtu sessions flows policies boxes"
        " loop_lag_s counters drops steering drained"
    )
    [chain] = chains([("A", [fakes.AT_A])])
    assert chain.plain() == {
        "chain_id": fakes.CHAIN_ID,
        "agents": [{"agent": "A", **fakes.AT_A.plain()}],
        "places": [],
    }
    lost = Event.of({"event": "events_lost", "count": 3})
    assert lost.plain() == {"event": "events_lost", "count": 3}
    assert (lost.name, lost.time, lost.fields) == ("events_lost", "", {"count": 3})


def test_sides_of_a_session() -> None:
    assert fakes.AT_A.left is None
    assert fakes.AT_A.right == Facing("right", "B", fakes.A_B)
    assert fakes.AT_B.left == Facing("left", "A", fakes.A_B)


def test_chains_join_by_their_id_in_the_order_of_asking() -> None:
    [chain] = chains([("B", [fakes.AT_B]), ("A", [fakes.AT_A])])
    assert [hop.agent for hop in chain.agents] == ["B", "A"]
    assert (chain.session, chain.state) == (fakes.SESSION, "established")


def test_chains_that_were_joined_are_one_whatever_id_an_agent_knows() -> None:
    client = fakes.session(Facing("right", "D", fakes.A_B))
    server = replace(fakes.session(Facing("left", "A", fakes.A_B, fakes.CHAIN_ID)), chain_id="b" * 32)
    other = replace(fakes.AT_A, chain_id="c" * 32)
    found = chains([("A", [client, other]), ("D", [server])])
    assert [[hop.agent for hop in chain.agents] for chain in found] == [["A", "D"], ["A"]]
    assert [chain.chain_id for chain in found] == [fakes.CHAIN_ID, "c" * 32]
    [joined, _] = chains([("D", [server]), ("A", [client, other])])
    assert [hop.agent for hop in joined.agents] == ["D", "A"]
