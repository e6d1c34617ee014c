"""`dysco move`: what is wrong is said before an agent is asked."""

from __future__ import annotations

import pytest

from cli.conftest import FakeAgent, Run
from dysco.errors import ExitStatus


@pytest.mark.parametrize("address", ["zzz", "10.0.0.300", "10.0.0.1/24", ""])
def test_what_is_no_address_is_not_asked_for(agent: FakeAgent, dysco: Run, address: str) -> None:
    status, _, err = dysco("move", "--address", "10.0.0.2", "--address", address)
    assert (status, err) == (ExitStatus.USAGE, f"dysco: --address {address}: not an IPv4 or IPv6 address\n")
    assert agent.asked == []
