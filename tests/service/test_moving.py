"""What a host that has moved tells its peers, and where none can move to."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dysco.errors import ConfigError
from dysco.service.changes import Terms
from dysco.service.moving import Moving
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hops, Moved


def test_where_a_host_is_goes_with_each_keepalive_once_it_has_moved() -> None:
    moving = Moving(cast(Any, None))
    assert moving.standing() == []
    moving.addresses = {4: bytes((10, 77, 1, 2)), 16: bytes(15) + b"\1"}
    assert moving.standing() == [Moved(0, Hops((Hop(bytes((10, 77, 1, 2))), Hop(bytes(15) + b"\1"))))]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1", "::ffff:10.77.1.2"]
)
def test_no_host_moves_to_where_others_cannot_reach_it(address: str) -> None:
    async def tell(_: dict[str, Any]) -> None:
        """There is nothing to be told."""

    with pytest.raises(ConfigError, match="cannot reach"):
        asyncio.run(Moving(cast(Any, None)).move(tell, [address], Terms()))
