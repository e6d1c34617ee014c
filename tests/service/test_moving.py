"""What a host that has moved tells its peers."""

from __future__ import annotations

from typing import Any, cast

from dysco.service.moving import Moving
from dysco.wire.chain_header import Hop
from dysco.wire.messages import Hops, Moved


def test_where_a_host_is_goes_with_each_keepalive_once_it_has_moved() -> None:
    moving = Moving(cast(Any, None))
    assert moving.standing() == []
    moving.addresses = {4: bytes((10, 77, 1, 2)), 16: bytes(15) + b"\1"}
    assert moving.standing() == [Moved(0, Hops((Hop(bytes((10, 77, 1, 2))), Hop(bytes(15) + b"\1"))))]
