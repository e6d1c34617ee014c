"""`dysco splice`: a proxy that cannot leave is refused with a reason, and with a status of its own."""

from __future__ import annotations

import pytest

from cli import fakes
from cli.conftest import FakeAgent, Run
from dysco.errors import ExitStatus

FAMILIES = "both sides are of different address families"


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_an_ipv6_client_and_an_ipv4_server_keep_their_proxy(
    agent: FakeAgent, dysco: Run, json: tuple[str, ...]
) -> None:
    about = {"chain_id": fakes.CHAIN_ID, "session": fakes.SESSION, "after_s": 0.01}
    agent.items = [{"kind": "end", **about, "phase": "refused", "by": "p", "reason": FAMILIES}]
    status, out, err = dysco("splice", "3f2a", "77aa", *json)
    assert status == ExitStatus.REFUSED
    assert FAMILIES in out
    assert f"refused by p: {FAMILIES}" in err
    [(name, fields)] = agent.asked
    assert name == "splice"
    assert (fields["left"], fields["right"]) == ("3f2a", "77aa")
