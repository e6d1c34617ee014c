"""What the journal keeps of a session, so that it goes on after the agent was killed.

    0   1  version (7)
    1   1  state: position in STATES
    2   1  flags: bit 0-1 FINs seen, bit 2 left opened here, bit 3 right opened here, bit 4 left has a peer,
           bit 5 right has a peer, bit 6 has a box
    3  17  key: chain id and hop index
    20  8  numbers of the ports (see `flow`): left read, left write, right read, right write
    28  8  labels of the left and the right subsession
    36  .. fields, each a length of two bytes and the bytes: session in, session out, left tuple, right tuple,
           left handshake, right handshake, left peer, right peer, box, policy, sums (left facing: 4 forward,
           4 backward), left anchor, right anchor, new hop (1 whether `ack` has passed, 8 request, 4 last),
           who is on the chain (see `dysco.wire.messages.Places`), seams of both sides (see `Seam`), joint,
           changes that are done here: 8 request, 4 cutoff each

A joint is there at a proxy's host from the lock on: 1 bits (0: this is the left chain, 1: locked, 2 and 3: the left and
the right anchor are done, 4: left for good, 5: this socket has ended, 6: `ends` are known), 17 key of the other chain,
8 request, 4 last, 8 and 8 bytes that the proxy had added to the right and to the left, and four numbers (see `Joined`).

An anchor is there while its session has two paths (see `paths`), the right one from its synAck on: 1 bits (0: the
peer's cutoff is known, 1: the other half is empty, 2: forced, 3: the new subsession was opened here, 4: waiting),
8 request, 4 first, 4 last, 4 cutoff, 4 the peer's, 4 top, 4 old_rcvd, 4 rcvd, 4 acked, 4 answered, 4 sums forward,
4 backward, 4 label, 2 where the new path is written, 4 own and 4 other number in its path handshake (bit 5: the other
one is known; bit 6: chains are joined; bit 7: this half is empty), then with a length of one byte each the new path's
peer, its tuple, its handshake, its seam, and timestamps (nothing, or 4 each: the latest that the inner side was given,
that the old path has brought, and the new one).

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
from dysco.protocol.anchors import LeftState, RightState
from dysco.protocol.chain import BACKWARD_FIN, FORWARD_FIN, NO_HANDSHAKE, Chain, Facing, Seam, Terms
from dysco.protocol.changing import MOST_DONE, Changing, Inside, Joined, LeftAnchor, Phase, RightAnchor
from dysco.protocol.flow import UNDERLAY
from dysco.protocol.locks import LEASE_S, Lock, LockState
from dysco.protocol.paths import TwoPaths
from dysco.protocol.settings import LocalBox
from dysco.protocol.states import State
from dysco.wire.chain_header import CHAIN_ID_LEN
from dysco.wire.frames import decode_places
from dysco.wire.messages import Change
from dysco.wire.tuples import FiveTuple

VERSION: Final = 7
STATES: Final = (State.ESTABLISHED, State.HALF_CLOSED, State.TIME_WAIT, State.RESET, State.PROBED)
_FIXED: Final = struct.Struct(f"!BBB{CHAIN_ID_LEN + 1}s4HII")
_ANCHOR: Final = struct.Struct("!BQIIIIIIIIIIIIHII")
_MOST_SCALE: Final = 14  # RFC 7323 section 2.3
_SUMS: Final = struct.Struct("!II")
_INSIDE: Final = struct.Struct("!?QI")
_LENGTH: Final = struct.Struct("!H")
_NOTHING: Final = _LENGTH.pack(0)
_JOINT: Final = struct.Struct(f"!B{CHAIN_ID_LEN + 1}sQIqqIIII")
_FIELDS: Final = 19
_DONE: Final = struct.Struct("!QI")
_STAMPS: Final = struct.Struct("!III")
_SEAM: Final = struct.Struct("!16sIbbB")
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
        b"" if left.sums is None else _SUMS.pack(*left.sums),
        b"" if chain.changing is None else _write_anchor(chain.changing.left, (0, 0)),
        b"" if chain.changing is None else _write_anchor(chain.changing.right, None),
        b"" if chain.changing is None else _write_inside(chain.changing.inside),
        chain.told,
        _write_seam(left.seam),
        _write_seam(right.seam),
        _write_joint(chain),
        b"".join([_DONE.pack(*one) for one in chain.done]),
    )
    fixed = _FIXED.pack(
        VERSION,
        STATES.index(chain.state),
        flags,
        chain.key,
        left.read,
        left.write,
        right.read,
        right.write,
        left.hop,
        right.hop,
    )
    return fixed + b"".join([_LENGTH.pack(len(field)) + field if field else _NOTHING for field in fields])


def read_record(data: bytes, boxes: Iterable[LocalBox], now: float) -> Chain | None:
    """The session of a record; None if it is damaged, of another version, or its box is gone."""
    if len(data) < _FIXED.size or data[0] != VERSION:
        return None
    _, state, flags, key, left_read, left_write, right_read, right_write, left_hop, right_hop = (
        _FIXED.unpack_from(data)
    )
    fields = _split(data)
    if state >= len(STATES) or flags & ~_ALL_FLAGS or fields is None:
        return None
    tuples, handshakes, names, sums, anchors = fields[:4], fields[4:6], fields[6:10], fields[10], fields[11:]
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
    if sums and len(sums) != _SUMS.size:
        return None
    left.hop, right.hop = left_hop, right_hop
    left.sums = _SUMS.unpack(sums) if sums else None
    left.handshake = handshakes[0]
    right.handshake = handshakes[1] or left.handshake
    chain = Chain(key, left, session_in, policy, None, now)
    chain.session_out, chain.right, chain.box = session_out, right, box
    chain.fins = flags & _FINS
    chain.state = STATES[state]
    try:
        _read_anchors(chain, anchors[0], anchors[1], now)
        _read_inside(chain, anchors[2], now)
        if anchors[3]:
            decode_places(anchors[3])  # or it is refused
        chain.told = anchors[3]
        left.seam, right.seam = _read_seam(anchors[4]), _read_seam(anchors[5])
        _read_joint(chain, anchors[6])
        if len(anchors[7]) > MOST_DONE * _DONE.size:
            return None
        chain.done = tuple((request, cutoff) for request, cutoff in _DONE.iter_unpack(anchors[7]))
    except (struct.error, WireError, UnicodeDecodeError, IndexError):
        return None
    return chain


def _write_anchor(anchor: LeftAnchor | RightAnchor | None, sums: tuple[int, int] | None) -> bytes:
    if anchor is None or anchor.new is None:
        return b""
    waiting = anchor.two is None
    if waiting and isinstance(anchor, LeftAnchor):
        return b""
    two, new, change = anchor.two or TwoPaths(0, 0, 0, 0), anchor.new, anchor.change
    peer_cutoff = two.peer_cutoff
    bits = (
        (peer_cutoff is not None) | anchor.peer_done << 1 | change.force << 2 | new.opened << 3 | waiting << 4
    )
    bits |= (anchor.peer_next is not None) << 5 | anchor.joined << 6 | two.empty << 7
    forward, backward = sums or (anchor.sums if isinstance(anchor, RightAnchor) else (0, 0))
    fixed = _ANCHOR.pack(
        bits, change.request, change.first, change.last, two.cutoff, peer_cutoff or 0, two.top, two.old_rcvd, two.rcvd,
        two.acked, two.answered, forward, backward, new.hop, new.write,
        anchor.isn, anchor.peer_next or 0,
    )  # fmt: skip
    stamps = anchor.stamps
    given = b"" if stamps is None or stamps.given is None else _STAMPS.pack(*stamps.latest)
    texts = ((new.peer or "").encode(), bytes(new.tuple), new.handshake, _write_seam(new.seam), given)
    return fixed + b"".join(bytes((len(text),)) + text for text in texts)


def _read_anchors(chain: Chain, left: bytes, right: bytes, now: float) -> None:
    """Take up what was being changed; raises what damaged bytes lead to."""
    if not left and not right:
        return
    assert chain.right is not None
    chain.changing = changing = Changing()
    for data, old in ((left, chain.right), (right, chain.left)):
        if not data:
            continue
        (
            bits, request, first, last, cutoff, peer_cutoff, top, old_rcvd, rcvd, acked, answered, forward, backward,
            hop, write, isn, peer_next,
        ) = _ANCHOR.unpack_from(data)  # fmt: skip
        texts, position = [], _ANCHOR.size
        for _ in range(5):
            end = position + 1 + data[position]
            texts.append(data[position + 1 : end])
            position = end
        if position != len(data) or len(texts[2]) != len(NO_HANDSHAKE):
            raise WireError("an anchor is damaged")
        change = Change(request, first, last, force=bool(bits & 4))
        new = Facing(UNDERLAY, write, FiveTuple(texts[1]), sys.intern(texts[0].decode()), bool(bits & 8))
        new.hop, new.handshake, new.seam = hop, texts[2], _read_seam(texts[3])
        anchor: LeftAnchor | RightAnchor
        if data is left:
            if bits & 48 != 32:
                raise WireError(
                    "a left anchor is there from the switch on, which a path handshake comes before"
                )
            changing.left = anchor = LeftAnchor(change, old, now)
            anchor.state = LeftState.TWO_PATHS
            anchor.agreed = anchor.shaken = True
            old.lock = Lock(LockState.LOCKED, request, now + LEASE_S)
        else:
            changing.right = anchor = RightAnchor(change, old, "", (forward, backward), now)
            anchor.state = RightState.WAITING if bits & 16 else RightState.TWO_PATHS
            new.sums = (forward, backward)
        anchor.isn, anchor.peer_next = isn, peer_next if bits & 32 else None
        if bits & 64:
            anchor.join()
            if anchor.stamps is not None and texts[4]:
                anchor.stamps.resume(*_STAMPS.unpack(texts[4]), settled=not bits & 16)
        if bits & 16:
            anchor.new, anchor.phase = new, Phase.LOCKED
            continue
        anchor.new, anchor.phase, anchor.peer_done = new, Phase.TWO_PATHS, bool(bits & 2)
        anchor.since[Phase.TWO_PATHS] = now
        anchor.two = two = TwoPaths(cutoff, old_rcvd, acked, answered, forced=bool(bits & 4))
        two.top, two.rcvd, two.empty = top, rcvd, bool(bits & 128)
        two.peer_cutoff = peer_cutoff if bits & 1 else None


def _write_inside(inside: Inside | None) -> bytes:
    if inside is None or not inside.new:
        return b""
    return _INSIDE.pack(inside.committed, inside.request, inside.last)


def _read_inside(chain: Chain, data: bytes, now: float) -> None:
    if not data:
        return
    committed, request, last = _INSIDE.unpack(data)
    chain.changing = chain.changing or Changing()
    chain.changing.inside = inside = Inside(request, last, new=True)
    inside.committed = committed
    if not committed and chain.right is not None:
        chain.right.lock = Lock(LockState.LOCKED, request, now + LEASE_S)


def _write_joint(chain: Chain) -> bytes:
    joint, inside = chain.joint, None if chain.changing is None else chain.changing.inside
    if joint is None or inside is None:
        return b""
    is_left = chain is joint.left
    other = joint.right if is_left else joint.left
    lock = None if joint.right.right is None else joint.right.right.lock
    ends = joint.ends.get(chain.key)
    bits = is_left | (lock is not None and lock.state is LockState.LOCKED) << 1
    bits |= inside.left_done << 2 | inside.right_done << 3 | inside.committed << 4
    bits |= (chain.key in joint.over) << 5 | (ends is not None) << 6
    numbers = ends or (0, 0, 0, 0)
    return _JOINT.pack(bits, other.key, joint.request, inside.last, *joint.added, *numbers)


def _read_joint(chain: Chain, data: bytes) -> None:
    if not data:
        return
    bits, partner, request, last, right, left, *ends = _JOINT.unpack(data)
    if bits > 127:
        raise WireError("a joint is damaged")
    chain.changing = chain.changing or Changing()
    chain.changing.inside = inside = Inside(request, last, new=False)
    inside.left_done, inside.right_done, inside.committed = bool(bits & 4), bool(bits & 8), bool(bits & 16)
    numbers = (ends[0], ends[1], ends[2], ends[3]) if bits & 64 else None
    inside.joined = Joined(partner, bool(bits & 1), bool(bits & 2), bool(bits & 32), (right, left), numbers)


def _write_seam(seam: Seam | None) -> bytes:
    """16 chain id (zeros: the chain's own), 4 timestamps, 1 and 1 scale, 1 bits (0 and 1: strip); empty: none."""
    if seam is None:
        return b""
    terms = seam.terms
    strips = terms.strip_in | terms.strip_out << 1
    return _SEAM.pack(seam.chain_id, seam.stamp, terms.scale_in, terms.scale_out, strips)


def _read_seam(data: bytes) -> Seam | None:
    if not data:
        return None
    chain_id, stamp, scale_in, scale_out, strips = _SEAM.unpack(data)
    if strips > 3 or max(abs(scale_in), abs(scale_out)) > _MOST_SCALE:
        raise WireError("a seam is damaged")
    terms = Terms(scale_in, scale_out, bool(strips & 1), bool(strips & 2))
    return Seam(b"" if chain_id == bytes(CHAIN_ID_LEN) else chain_id, stamp, terms)


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
