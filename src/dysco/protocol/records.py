"""What the journal keeps of a session, so that it goes on after the agent was killed.

    0   1  version (2)
    1   1  state: position in STATES
    2   1  flags: bit 0-1 FINs seen, bit 2 left opened here, bit 3 right opened here, bit 4 left has a peer,
           bit 5 right has a peer, bit 6 has a box
    3  17  key: chain id and hop index
    20  8  numbers of the ports (see `flow`): left read, left write, right read, right write
    28  .. fields, each a length of two bytes and the bytes: session in, session out, left tuple, right tuple,
           left handshake, right handshake, left peer, right peer, box, policy

Everything is big-endian. A field that equals the one it usually equals is empty: session out and left tuple
(session in), right tuple (session out), right handshake (left handshake). Reading is total: what does not fit
gives None, never a guess.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from typing import Final

from dysco.errors import WireError
from dysco.protocol.chain import BACKWARD_FIN, FORWARD_FIN, NO_HANDSHAKE, Chain, Facing
from dysco.protocol.settings import LocalBox
from dysco.protocol.states import State
from dysco.wire.chain_header import CHAIN_ID_LEN
from dysco.wire.tuples import FiveTuple

VERSION: Final = 2
STATES: Final = (State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT, State.RESET, State.PROBED)
_FIXED: Final = struct.Struct(f"!BBB{CHAIN_ID_LEN + 1}s4H")
_LENGTH: Final = struct.Struct("!H")
_FIELDS: Final = 10
_FINS: Final = FORWARD_FIN | BACKWARD_FIN
_LEFT_OPENED, _RIGHT_OPENED, _LEFT_PEER, _RIGHT_PEER, _BOX = 4, 8, 16, 32, 64
_ALL_FLAGS: Final = 127


def write_record(chain: Chain) -> bytes:
    """The record of a session whose SYN-ACK has passed."""
    left, right, box = chain.left, chain.right, chain.box
    assert right is not None
    flags = (
        chain.fins
        | _LEFT_OPENED * left.opened
        | _RIGHT_OPENED * right.opened
        | _LEFT_PEER * (left.peer is not None)
        | _RIGHT_PEER * (right.peer is not None)
        | _BOX * (box is not None)
    )
    fields = (
        chain.session_in,
        b"" if chain.session_out == chain.session_in else chain.session_out,
        b"" if left.tuple == chain.session_in else left.tuple,
        b"" if right.tuple == chain.session_out else right.tuple,
        left.handshake,
        b"" if right.handshake == left.handshake else right.handshake,
        (left.peer or "").encode(),
        (right.peer or "").encode(),
        b"" if box is None else box.name.encode(),
        chain.policy.encode(),
    )
    parts = [
        _FIXED.pack(
            VERSION,
            STATES.index(chain.state),
            flags,
            chain.key,
            left.read,
            left.write,
            right.read,
            right.write,
        )
    ]
    for field in fields:
        parts.append(_LENGTH.pack(len(field)))
        parts.append(field)
    return b"".join(parts)


def read_record(data: bytes, boxes: Iterable[LocalBox], now: float) -> Chain | None:
    """The session of a record; None if it is damaged, of another version, or its box is gone."""
    if len(data) < _FIXED.size or data[0] != VERSION:
        return None
    _, state, flags, key, left_read, left_write, right_read, right_write = _FIXED.unpack_from(data)
    fields = _split(data)
    if state >= len(STATES) or flags & ~_ALL_FLAGS or fields is None:
        return None
    tuples, handshakes, names = fields[:4], fields[4:6], fields[6:]
    try:
        session_in = FiveTuple(tuples[0])
        session_out = FiveTuple(tuples[1]) if tuples[1] else session_in
        left_tuple = FiveTuple(tuples[2]) if tuples[2] else session_in
        right_tuple = FiveTuple(tuples[3]) if tuples[3] else session_out
        left_peer, right_peer, box_name, policy = (sys.intern(name.decode()) for name in names)
    except (WireError, UnicodeDecodeError):
        return None
    box = next((box for box in boxes if box.name == box_name), None) if flags & _BOX else None
    if (flags & _BOX and box is None) or len(handshakes[0]) != len(NO_HANDSHAKE):
        return None
    if handshakes[1] and len(handshakes[1]) != len(NO_HANDSHAKE):
        return None
    left = Facing(
        left_read,
        left_write,
        left_tuple,
        left_peer if flags & _LEFT_PEER else None,
        bool(flags & _LEFT_OPENED),
    )
    right = Facing(
        right_read,
        right_write,
        right_tuple,
        right_peer if flags & _RIGHT_PEER else None,
        bool(flags & _RIGHT_OPENED),
    )
    left.handshake = handshakes[0]
    right.handshake = handshakes[1] or left.handshake
    chain = Chain(key, left, session_in, policy, None, now)
    chain.session_out, chain.right, chain.box = session_out, right, box
    chain.fins = flags & _FINS
    chain.state = STATES[state]
    return chain


def _split(data: bytes) -> list[bytes] | None:
    fields, position = [], _FIXED.size
    for _ in range(_FIELDS):
        if position + _LENGTH.size > len(data):
            return None
        length = _LENGTH.unpack_from(data, position)[0]
        position += _LENGTH.size
        if position + length > len(data):
            return None
        fields.append(data[position : position + length])
        position += length
    return fields if position == len(data) else None
