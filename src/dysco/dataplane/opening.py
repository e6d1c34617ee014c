"""What the kernel's programs need to open chains by themselves, and what they report of it.

Knows the layout of the maps of open.bpf.h; decides nothing: who may begin chains, by which hops and with which ports,
it is told. `Steering` has the maps, as it has those that divert.

    rules        sessions and their hops, in order             what the agent writes, the programs read
    neighbours   addresses, keys, ways, limits
    tickets      a chain id and a pair of ports, used once     written ahead of those that were taken
    windows      counters that were seen, of each key          written by the programs; the agent asks them
    reports      what was opened, answered, ended              a ring that the agent reads in place
"""

from __future__ import annotations

import hmac
import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Final, NamedTuple

from dysco.dataplane.bpf import run_program
from dysco.dataplane.since_boot import believed, mark
from dysco.dataplane.steer import (
    MAX_RULES,
    MAX_WINDOWS,
    OBJECT,
    OUT,
    PAGE,
    RING,
    STAGES,
    TICKETS,
    Steering,
    pack_clause,
)
from dysco.errors import HostError
from dysco.policy.clauses import Clause
from dysco.protocol.flow import HOST, UNDERLAY
from dysco.protocol.replay import ReplayWindow, Window
from dysco.protocol.reports import ANSWERED, ARRIVED, ENDED, PlainReport
from dysco.wire.chain_header import HMAC_LEN, Hop
from dysco.wire.tuples import Family

MAX_HOPS: Final = 6
MAX_KEYS: Final = 3
LEAST_HEADER: Final = 84  # bytes of a chain header of one hop, IPv4
MAX_HEADER: Final = 244  # of MAX_HOPS, IPv6
NO_SLOT: Final = 0xFFFFFFFF

_ROUTE = struct.Struct("=16xBBBBIII120s")
_HOP = struct.Struct("!16sI")
_NEIGHBOUR = struct.Struct("=16s16s16s16sIIIIB7x64s")
_KEY = struct.Struct("=64sQI4x")
_TICKET = struct.Struct("!16sHH4x")
_NUMBER = struct.Struct("=Q")
_PACE = struct.Struct("=QQQ")
_OPENINGS = struct.Struct("=II4sI")
_INDEX = struct.Struct("=I")
_PEER = struct.Struct("=16sI")
# A report: what all have, by family; and what those of SYNs have besides.
_REPORT_4 = struct.Struct("=B15x8s8x4s12x4s12x4sxB2x")
_REPORT_6 = struct.Struct("=B15x8s8x32s4sxB2x")
_REPORT_OF_SYN = struct.Struct("=4xIII8xH")
_REPORT_SIZE: Final = 72
_FAMILY_AT: Final = 68
_ASKED = struct.Struct("=14xIIQ")
_ETHERNET: Final = 14
_RING_HEAD: Final = 8
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_NEVER_NS: Final = (1 << 63) - 1


class OpenRule(NamedTuple):
    """Sessions in a clause go by these hops; neighbour None: the agent decides about them.

    number: what reports say; flags: of the chain header. The last hop is the session's destination.
    """

    clause: Clause
    neighbour: int | None = None
    hops: tuple[Hop, ...] = ()
    number: int = 0
    flags: int = 0


class OpenNeighbour(NamedTuple):
    """A neighbour; ways: own and its address by family; slots: of its tickets by family; keys: key, until, window."""

    ways: dict[Family, tuple[bytes, bytes]]
    slots: dict[Family, int]
    mtu: int
    rate: int
    send_key: bytes
    keys: tuple[tuple[bytes, float, int], ...]


class KernelWindow:
    """A replay window that the programs keep; `number` says which."""

    def __init__(self, openings: Openings, number: int) -> None:
        self.number = number
        self._openings = openings

    def accept(self, counter: int) -> bool:
        """Mark a counter as seen; False if it was seen before or is older than the window."""
        return self._openings.accept(self.number, counter)


class Openings:
    """The maps behind the programs that open chains, and the ring of their reports."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._maps = steering.maps
        self._first_rule = self._rules = 0
        self._mtu = 0
        self._box: int | None = None
        self._windows: dict[int, KernelWindow] = {}
        self.tickets: dict[tuple[int, Family], int] = {}
        self.begun: Counter[int] = Counter()
        ring = self._maps["reports"].fd
        self.fd = ring
        # linux/bpf.h: the reader's page; then the writer's, and the data twice, so that no record is cut.
        self._read = mmap.mmap(ring, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._ring = mmap.mmap(ring, PAGE + 2 * RING, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        self._position: int = _NUMBER.unpack_from(self._read)[0]
        self._maps["sha256"].put(_INDEX.pack(0), struct.pack("=64I", *_CONSTANTS))

    def close(self) -> None:
        """Give the pages back."""
        self._read.close()
        self._ring.close()

    def load(self, memory: Path) -> None:
        """Load the programs, which takes the kernel a quarter of a second, and try them once between two boots.

        memory: a file for that. Raises HostError if it refuses one of them, or one does not do what it shall.
        """
        for name in ("draw", "accept", *STAGES):
            self._steering.load(name)
        fault = believed(memory, f"signing {mark(OBJECT)}", self._signing_fault)
        if fault is not None:
            raise HostError(fault)

    def enable(self) -> None:
        """Let the programs open chains; `load` comes first."""
        for index, name in enumerate(STAGES):
            self._maps["stages"].put(_INDEX.pack(index), _INDEX.pack(self._steering.load(name)))

    def _signing_fault(self) -> str | None:
        """Say what the programs sign otherwise than Python does."""
        program, key = self._steering.load("prove"), bytes(range(32))
        for length in range(LEAST_HEADER - HMAC_LEN, MAX_HEADER - HMAC_LEN + 1, 8):
            message = bytes((7 * length + at) % 251 for at in range(length))
            mac = hmac.digest(key, message, "sha256")[:HMAC_LEN]
            frame = b"".join((bytes(_ETHERNET), _INDEX.pack(length), mac, _digest(key), message))
            if not run_program(program, frame):
                return f"this kernel computes another HMAC of {length} bytes"
        return None

    def disable(self) -> None:
        """Have the agent see every SYN, SYN-ACK and FIN again."""
        for index in range(len(STAGES)):
            self._maps["stages"].delete(_INDEX.pack(index))

    def configure(self, mtu: int, box: int | None) -> None:
        """Say the underlay's MTU in bytes, and the number of the kernel box that SYNs leave as they came, if any."""
        self._mtu, self._box = mtu, box
        self._steering.expect_boxed(box is not None)
        self._write()

    def set_rules(self, rules: Sequence[OpenRule]) -> None:
        """Replace all rules in one step; about what comes behind the first 64 the agent decides."""
        first = MAX_RULES - self._first_rule
        for index, rule in enumerate(rules[:MAX_RULES], first):
            self._maps["rules"].put(_INDEX.pack(index), _pack_rule(rule))
        self._first_rule, self._rules = first, min(len(rules), MAX_RULES)
        self._write()

    def set_neighbour(self, number: int, neighbour: OpenNeighbour) -> None:
        """Tell the programs about a neighbour."""
        ways = [neighbour.ways.get(family, (b"", b"")) for family in (4, 6)]
        keys = b"".join(
            _KEY.pack(_digest(key), _ns(until), window) for key, until, window in neighbour.keys[:MAX_KEYS]
        )
        self._maps["neighbours"].put(
            _INDEX.pack(number),
            _NEIGHBOUR.pack(
                *(own.ljust(16, b"\0") for own, _ in ways),
                *(address.ljust(16, b"\0") for _, address in ways),
                *(neighbour.slots.get(family, NO_SLOT) for family in (4, 6)),
                neighbour.mtu,
                neighbour.rate,
                bool(neighbour.send_key),
                _digest(neighbour.send_key) if neighbour.send_key else bytes(64),
            )
            + keys.ljust(MAX_KEYS * _KEY.size, b"\0"),
        )

    def set_peer(self, address: bytes, number: int | None) -> None:
        """Say whose an address is; None: nobody's."""
        key = _PEER.pack(address, 4 if len(address) == 4 else 6)
        if number is None:
            self._maps["peers"].delete(key)
        else:
            self._maps["peers"].put(key, _INDEX.pack(number))

    def set_counter(self, neighbour: int, counter: int) -> None:
        """Let the counters of a neighbour's headers go on behind this one."""
        self._maps["paces"].put(_INDEX.pack(neighbour), _PACE.pack(counter, 0, 0))

    def draw(self, neighbour: int) -> int:
        """Take the next counter of a neighbour's headers."""
        low = run_program(self._steering.load("draw"), bytes(_ETHERNET) + _INDEX.pack(neighbour)) & 0xFFFFFFFF
        entry = self._maps["paces"].get(_INDEX.pack(neighbour)) or bytes(_PACE.size)
        top: int = _PACE.unpack(entry)[0]
        # The program gives the lower half; others may have drawn since, so that the upper one may be one ahead.
        return ((top - low) >> 32 << 32) + low if top >= low else low

    def taken(self, slot: int) -> int:
        """How many tickets of a slot were taken."""
        return int(_NUMBER.unpack(self._maps["heads"].get(_INDEX.pack(slot)) or bytes(8))[0])

    def put_tickets(self, slot: int, first: int, tickets: Sequence[tuple[bytes, int, int]]) -> None:
        """Lay tickets ready, from the first-th of their slot (from 1): chain id, own and the neighbour's port."""
        numbers = range(first, first + len(tickets))
        self._maps["tickets"].put_all(
            b"".join(_INDEX.pack(slot * TICKETS + (number - 1) % TICKETS) for number in numbers),
            b"".join(
                _NUMBER.pack(number) + _TICKET.pack(*ticket)
                for number, ticket in zip(numbers, tickets, strict=True)
            ),
        )

    def clear_tickets(self, slot: int) -> None:
        """Take back what an agent before has laid ready."""
        places = b"".join(_INDEX.pack(slot * TICKETS + place) for place in range(TICKETS))
        self._maps["tickets"].put_all(places, bytes(TICKETS * (_NUMBER.size + _TICKET.size)))

    def new_window(self) -> Window:
        """A window of a new key; one that the programs know nothing of if they have no room."""
        number = next((one for one in range(MAX_WINDOWS) if one not in self._windows), None)
        if number is None:
            return ReplayWindow()
        self._maps["windows"].put(_INDEX.pack(number), bytes(self._maps["windows"].spec.value_size))
        self._windows[number] = window = KernelWindow(self, number)
        return window

    def keep_windows(self, used: set[int]) -> None:
        """Give back the windows of keys that are good no more."""
        for number in [one for one in self._windows if one not in used]:
            del self._windows[number]

    def accept(self, window: int, counter: int) -> bool:
        """Ask whether a counter is new in a window, and mark it as seen."""
        return bool(run_program(self._steering.load("accept"), _ASKED.pack(window, 0, counter)))

    def has_reports(self) -> bool:
        """Whether there is anything to read."""
        return bool(_NUMBER.unpack_from(self._ring)[0] != self._position)

    def reports(self, policies: Mapping[int, str]) -> Iterator[PlainReport]:
        """Read reports, oldest first.

        `tickets` has the highest that they have used, by neighbour and family; `begun`, how many chains each neighbour
        has begun here. policies: names by what rules say. `done` gives the room of those that were read back.
        """
        ring, begun = self._ring, self.begun
        unpack4, unpack6, unpack_syn = (
            _REPORT_4.unpack_from,
            _REPORT_6.unpack_from,
            _REPORT_OF_SYN.unpack_from,
        )
        end = _NUMBER.unpack_from(ring)[0]
        while self._position < end:
            at = PAGE + self._position % RING
            length = _INDEX.unpack_from(ring, at)[0]
            if length & _BUSY:
                break
            self._position += (_RING_HEAD + (length & ~_DISCARDED) + 7) & ~7
            if length & _DISCARDED:
                continue
            at += _RING_HEAD
            family: Family = 4 if ring[at + _FAMILY_AT] == 4 else 6
            if family == 4:
                kind, half, src, dst, ports, direction = unpack4(ring, at)
                match = src + dst + ports
            else:
                kind, half, addresses, ports, direction = unpack6(ring, at)
                match = addresses + ports
            port = HOST if direction == OUT else UNDERLAY
            if kind == ENDED:
                yield (ENDED, port, match, b"", b"", "")
            elif kind == ANSWERED:
                yield (ANSWERED, port, match, half, b"", "")
            else:
                neighbour, rule, ticket, size = unpack_syn(ring, at)
                if ticket:  # two processors may report in another order than they have taken them
                    place = (neighbour, family)
                    self.tickets[place] = max(ticket, self.tickets.get(place, 0))
                elif kind == ARRIVED:
                    begun[neighbour] += 1
                header = ring[at + _REPORT_SIZE : at + _REPORT_SIZE + size]
                policy = policies.get(rule, "") if rule else ""
                yield (kind, port, match, half, header, policy)

    @property
    def position(self) -> int:
        """How far reports were read."""
        return self._position

    def done(self, position: int) -> None:
        """Give back the room of reports that were read up to a position."""
        _NUMBER.pack_into(self._read, 0, position)

    def _write(self) -> None:
        box = _INDEX.pack(0) if self._box is None else self._box.to_bytes(4, "big")
        self._maps["openings"].put(
            _INDEX.pack(0), _OPENINGS.pack(self._rules, self._first_rule, box, self._mtu)
        )


def _pack_rule(rule: OpenRule) -> bytes:
    hops = (*rule.hops, Hop(bytes(16))) if rule.neighbour is not None else ()
    return pack_clause(rule.clause) + _ROUTE.pack(
        0,
        len(hops),
        rule.flags,
        True,
        NO_SLOT if rule.neighbour is None else rule.neighbour,
        rule.number,
        0xFFFF,
        b"".join(_HOP.pack(hop.address, hop.box) for hop in hops),
    )


def _ns(until: float) -> int:
    return min(int(min(until, 1e9) * 1e9), _NEVER_NS)


# SHA-256 (FIPS 180-4), of one block: the programs go on where the key's block of RFC 2104 has brought it.


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % one for one in found):
            found.append(number)
        number += 1
    return found


def _cube_root(value: int) -> int:
    low, high = 0, 1 << (value.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**3 <= value:
            low = middle
        else:
            high = middle - 1
    return low


_MASK32: Final = 0xFFFFFFFF
_CONSTANTS: Final = tuple(_cube_root(prime << 96) & _MASK32 for prime in _primes(64))
_INITIAL: Final = tuple(isqrt(prime << 64) & _MASK32 for prime in _primes(8))


def _compress(block: bytes) -> tuple[int, ...]:
    w = list(struct.unpack("!16I", block))
    for t in range(16, 64):
        x, y = w[t - 15], w[t - 2]
        w.append(
            w[t - 16] + (_ror(x, 7) ^ _ror(x, 18) ^ x >> 3) + w[t - 7] + (_ror(y, 17) ^ _ror(y, 19) ^ y >> 10)
            & _MASK32
        )
    a, b, c, d, e, f, g, h = _INITIAL
    for t in range(64):
        one = h + (_ror(e, 6) ^ _ror(e, 11) ^ _ror(e, 25)) + (e & f ^ ~e & g) + _CONSTANTS[t] + w[t]
        two = (_ror(a, 2) ^ _ror(a, 13) ^ _ror(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = one + two & _MASK32, a, b, c, d + one & _MASK32, e, f, g
    return tuple(old + new & _MASK32 for old, new in zip(_INITIAL, (a, b, c, d, e, f, g, h), strict=True))


def _ror(value: int, count: int) -> int:
    return (value >> count | value << 32 - count) & _MASK32


@lru_cache(256)
def _digest(key: bytes) -> bytes:
    """Both hashes of RFC 2104 after the block of a key (at most 64 bytes), as struct digest has them."""
    key = key.ljust(64, b"\0")
    inner, outer = (_compress(bytes(byte ^ pad for byte in key)) for pad in (0x36, 0x5C))
    return struct.pack("=16I", *inner, *outer)
