"""Sessions at rest: of what the kernel carries by itself and nobody has to do anything about, a record is enough.

A host may have a hundred thousand sessions that wait for the next word of their users for minutes, or whose packets
the kernel carries without a word. A chain with its facings, tuples and flows takes more than a kilobyte; what the
journal keeps of it takes a fifth of that. So when there are more chains than `Limits.awake`, the oldest go to rest;
whoever asks for one, by key, by a packet that the kernel hands over or by its timer, gets the chain as it was.

    awake --established, unchanged, nobody holds it, all its flows are the kernel's--> at rest --asked for--> awake

Only `Chains` knows who is at rest: it is the table of chains to everybody else.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Final

from dysco.protocol.chain import Chain
from dysco.protocol.flow import FlowTable
from dysco.protocol.records import read_record, write_record
from dysco.protocol.settings import LocalBox
from dysco.protocol.states import State
from dysco.wire.tuples import FiveTuple, trusted

PAUSE_S: Final = 0.01  # ours: between two looks for what could rest
_LONGEST_PAUSE_S: Final = 60.0  # it doubles when nothing was found
_SLICE: Final = 64  # chains that are looked at in one go, which keeps the loop for about 2 ms
_WINDOW: Final = 10  # 1024 bytes, of which it looks back 762 at most: two records and more
_SMALL: Final = (1 << 60) - 1  # what Python keeps in 32 bytes
_TIMES: Final = struct.Struct("=ddQ")  # created_at, deadline, active


class Chains:
    """The chains of an agent by key: a mapping that wakes what is asked for. `values` and `keys` are all, awake or not.

    held: keys of chains that somebody has a reference to, beyond a packet, a message or an alarm.
    """

    def __init__(self, table: FlowTable, most_awake: Callable[[], int]) -> None:
        self.held: Callable[[], Collection[bytes]] = lambda: ()
        self._table = table
        self._most_awake = most_awake
        self._awake: dict[bytes, Chain] = {}
        self._at_rest: dict[bytes, bytes] = {}
        self._by_tuple: dict[int, bytes] = {}
        self._boxes: dict[str, LocalBox] = {}
        self._pattern = b""
        self._look_at, self._pause = 0.0, PAUSE_S
        table.at_rest = self

    def __len__(self) -> int:
        return len(self._awake) + len(self._at_rest)

    def __contains__(self, key: bytes) -> bool:
        return key in self._awake or key in self._at_rest

    def __iter__(self) -> Iterator[bytes]:
        yield from self._awake
        yield from self._at_rest

    def __getitem__(self, key: bytes) -> Chain:
        chain = self.get(key)
        if chain is None:
            raise KeyError(key)
        return chain

    def __setitem__(self, key: bytes, chain: Chain) -> None:
        self._awake[key] = chain

    def get(self, key: bytes) -> Chain | None:
        """The chain, awake from now on."""
        chain = self._awake.get(key)
        return self._wake(key) if chain is None and key in self._at_rest else chain

    def pop(self, key: bytes) -> None:
        """Forget a chain that is awake; no error if it is not there."""
        self._awake.pop(key, None)

    @property
    def at_rest(self) -> int:
        """Of how many chains there is only a record."""
        return len(self._at_rest)

    def is_at_rest(self, key: bytes) -> bool:
        """Whether there is only a record of this chain."""
        return key in self._at_rest

    def values(self) -> Iterator[Chain]:
        """Every chain that is here now. Those at rest are left so: what is given for them may be read, not changed."""
        awake, at_rest = list(self._awake.values()), list(self._at_rest.values())
        yield from awake
        for packed in at_rest:
            yield self._read(packed)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and record of each session that is established, each as it is when it is its turn."""
        for key in list(self):
            packed, chain = self._at_rest.get(key), self._awake.get(key)
            if packed is not None:
                yield key, self._expand(packed)
            elif chain is not None and chain.opening is None and chain.right is not None:
                yield key, write_record(chain)

    def timer(self, key: bytes) -> tuple[float, float]:
        """When the entry of a chain's timer comes up, and its deadline; never, if there is no such chain."""
        chain = self._awake.get(key)
        if chain is not None:
            return chain.queued, chain.deadline
        packed = self._at_rest.get(key)
        at = math.inf if packed is None else float(_TIMES.unpack_from(packed)[1])
        return at, at

    def timers(self) -> Iterator[tuple[float, bytes]]:
        """When each chain's timer comes up."""
        for chain in self._awake.values():
            chain.queued = chain.deadline
            yield chain.deadline, chain.key
        for key, packed in self._at_rest.items():
            yield _TIMES.unpack_from(packed)[1], key

    # Going to rest.

    def next_deadline(self) -> float | None:
        """When somebody must look for chains that can rest; None: there are few enough."""
        return self._look_at if len(self._awake) > self._most_awake() else None

    def let_rest(self, now: float, queue: Callable[[float, bytes], None]) -> None:
        """Let the oldest rest. queue: takes the time of a chain's timer that it has not had yet."""
        surplus = len(self._awake) - self._most_awake()
        if surplus <= 0 or now < self._look_at:
            return
        held, found = self.held(), 0
        for key, chain in list(islice(self._awake.items(), min(_SLICE, surplus))):
            del self._awake[key]
            queued = chain.queued
            if key not in held and self._rest(chain):
                found += 1
                if queued != chain.deadline:
                    queue(chain.deadline, key)
            else:
                self._awake[key] = chain
        self._pause = PAUSE_S if found else min(2 * self._pause, _LONGEST_PAUSE_S)
        self._look_at = now + self._pause

    def _rest(self, chain: Chain) -> bool:
        """Keep a record of a chain in place of it, if that says all; False: it does not."""
        left, right = chain.left, chain.right
        if (
            chain.state is not State.ESTABLISHED
            or right is None
            or chain.opening is not None
            or chain.changing is not None
            or chain.joint is not None
            or left.lock is not None
            or right.lock is not None
        ):
            return False
        tuples = {_either_way(match) for _, match in chain.flow_keys()}
        if any(one in self._by_tuple for one in tuples):
            return False  # the same host twice in a chain, or another chain that this one has replaced; it would wake
        flows = [self._table.get(port, match) for port, match in chain.flow_keys()]
        carried = [
            flow for flow in flows if flow is not None and flow.owner is chain and self._table.may_rest(flow)
        ]
        if len(carried) != len(flows):
            return False
        if chain.box is not None:
            self._boxes[chain.box.name] = chain.box
        times = _TIMES.pack(chain.created_at, chain.deadline, chain.active)
        self._at_rest[chain.key] = times + self._squeeze(write_record(chain))
        for one in tuples:
            self._by_tuple[one] = chain.key
        for flow in carried:
            self._table.rest(flow)
        return True

    # Waking.

    def has(self, match: FiveTuple) -> bool:
        """Whether a session at rest has a flow with this tuple."""
        return bool(self._by_tuple) and _either_way(match) in self._by_tuple

    def wakes(self, match: bytes) -> bool:
        """Wake the session at rest that has a flow with this tuple; False if there is none."""
        key = self._by_tuple.get(_either_way(trusted(match))) if self._by_tuple else None
        return key is not None and self._wake(key) is not None

    def _wake(self, key: bytes) -> Chain:
        chain = self._read(self._at_rest.pop(key))
        flows = (*chain.left_flows(), *chain.right_flows())
        for flow in flows:
            self._by_tuple.pop(_either_way(flow.match), None)
        self._awake[key] = chain
        for flow in flows:
            self._table.adopt(flow)
        return chain

    def _read(self, packed: bytes) -> Chain:
        created_at, deadline, active = _TIMES.unpack_from(packed)
        chain = read_record(self._expand(packed), self._boxes.values(), created_at)
        assert chain is not None
        chain.deadline = chain.queued = deadline
        chain.active = active
        return chain

    def _squeeze(self, record: bytes) -> bytes:
        """A record without what it shares with the first one: addresses, names, who is on the chain."""
        self._pattern = self._pattern or record
        squeezer = zlib.compressobj(1, zlib.DEFLATED, -_WINDOW, 1, zlib.Z_DEFAULT_STRATEGY, self._pattern)
        return squeezer.compress(record) + squeezer.flush()

    def _expand(self, packed: bytes) -> bytes:
        return zlib.decompressobj(-_WINDOW, self._pattern).decompress(packed[_TIMES.size :])


def _either_way(match: FiveTuple) -> int:
    """A number that is the same for both directions of a session.

    It takes less memory than the tuple. Where two sessions have the same one, once in some ten million tables, only
    the first rests, and a packet of the other wakes it.
    """
    return hash(min(bytes(match), bytes(match.reversed()))) & _SMALL
