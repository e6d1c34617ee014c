"""What the journal keeps of a session, so that it goes on after the agent was killed.

A record is JSON with a version. Reading is total: whatever does not fit gives None, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from dysco.errors import WireError
from dysco.protocol.chain import Chain, Facing, Opening, State
from dysco.protocol.settings import LocalBox
from dysco.wire.chain_header import CHAIN_ID_LEN, Egress
from dysco.wire.tuples import FiveTuple

VERSION: Final = 1


def write_record(chain: Chain) -> bytes:
    """The record of a session that is established."""
    assert chain.right is not None
    box = "null" if chain.box is None else json.dumps(chain.box.name)
    return (
        f'{{"v":{VERSION},"key":"{chain.key.hex()}","in":"{chain.session_in.hex()}","out":"{chain.session_out.hex()}",'
        f'"box":{box},"policy":{json.dumps(chain.policy)},"fins":{chain.fins},"state":"{chain.state.value}",'
        f'"left":{_write_facing(chain.left)},"right":{_write_facing(chain.right)}}}'
    ).encode()


def read_record(data: bytes, boxes: Iterable[LocalBox], now: float) -> Chain | None:
    """The session of a record; None if it is damaged, of another version, or its box is gone."""
    try:
        fields: dict[str, Any] = json.loads(data)
        if fields["v"] != VERSION:
            return None
        key = bytes.fromhex(fields["key"])
        session = FiveTuple(bytes.fromhex(fields["in"]))
        chain = Chain(key, _read_facing(fields["left"]), session, 0, str(fields["policy"]), _NONE, now)
        chain.opening = None
        chain.session_out = FiveTuple(bytes.fromhex(fields["out"]))
        if chain.session_out == session:
            chain.session_out = session
        chain.right = _read_facing(fields["right"])
        chain.fins = int(fields["fins"])
        chain.state = State(fields["state"])
        name = fields["box"]
        chain.box = next((box for box in boxes if box.name == name), None)
    except (ValueError, KeyError, TypeError, WireError):
        return None
    if len(key) != CHAIN_ID_LEN + 1 or (name is not None and chain.box is None):
        return None
    return chain


_NONE: Final = Opening((), Egress.AGENT, False)


def _write_facing(facing: Facing) -> str:
    peer = "null" if facing.peer is None else json.dumps(facing.peer)
    opened = "true" if facing.opened else "false"
    return f'[{facing.read},{facing.write},"{facing.tuple.hex()}",{peer},{opened}]'


def _read_facing(fields: Any) -> Facing:
    read, write, tuple_, peer, opened = fields
    if not isinstance(read, int) or not isinstance(write, int) or not isinstance(peer, str | None):
        raise ValueError("a facing of other types")
    return Facing(read, write, FiveTuple(bytes.fromhex(tuple_)), peer, bool(opened))
