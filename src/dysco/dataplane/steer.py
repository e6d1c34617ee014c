"""Steering: the kernel programs that divert packets to the agent, and the maps that tell them which.

Knows the layout of the maps of steer.bpf.c; attaching the programs is the host layer's work. A new agent takes the
maps over, so that what was captured stays captured: those that are pinned, else those of the programs that are
attached. For also without a pin programs live as long as they are attached, and maps as long as a program uses them.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dysco.dataplane import tcx
from dysco.dataplane.bpf import (
    ARRAY,
    HASH,
    PERCPU_ARRAY,
    PROG_ARRAY,
    RINGBUF,
    Map,
    MapSpec,
    bind_map,
    create_map,
    load_program,
    maps_of_program,
    pin,
    pinned_map,
    program_by_id,
    program_name,
    run_program,
    run_program_on,
)
from dysco.dataplane.flowmaps import ENTRIES, FLOW_BYTES, FlowMaps
from dysco.dataplane.flowmaps import KEY as _KEY
from dysco.dataplane.flowmaps import SPECS as _FLOWS
from dysco.policy.clauses import Clause
from dysco.wire.tuples import FiveTuple

OBJECT: Final = Path(__file__).parent / "bpf" / "steer.bpf.o"
MAX_CLAUSES: Final = 128
MAX_ADDRESSES: Final = 16
OUT: Final = 1
IN: Final = 2
COUNTERS: Final = (
    "captured_out",
    "captured_in",
    "syn_captured",
    "to_host",
    "to_wire",
    "no_route",
    "too_big",
    "reset_kept_back",
    "rewritten",
    "syn_opened",
)

_CLAUSE = struct.Struct("=16s16s16s16sHHHHB7x")
_CONFIG = struct.Struct("=IIIIIHH6sBBBB2xI256s16s")
_SET = struct.Struct("=II")  # of the configuration: how many clauses count, and where they begin
_SET_AT: Final = 12
_DIRECTION_AT: Final = 37
_ACTION_AT: Final = 40  # of struct flow
_INDEX = struct.Struct("=I")
_U64 = struct.Struct("=Q")
DIVERT: Final = bytes(FLOW_BYTES)  # struct flow: nothing but zeros hands every packet to the agent
# Of struct flow: which of the next two are known, top_seq, top_ack, packets, bytes.
_TALLY: Final = struct.Struct("=2xB69xIIQQ")
_CARRIED: Final = struct.Struct("=QQ24x")  # in place of a key
SERVICES: Final = 512
AT_ONCE: Final = 64
"""Entries that a program looks at in one go; as in steer.bpf.c."""
_KNOWN_SEQ: Final = 1
_KNOWN_ACK: Final = 2
_ETHERNET: Final = bytes(14)
_TCA_BPF_ID: Final = 11  # linux/pkt_cls.h
_NLA_HEADER: Final = 4
_INGRESS_PARENT: Final = 0xFFFFFFF2
_EGRESS_PARENT: Final = 0xFFFFFFF3
_DIRECTIONS: Final[tuple[tcx.Direction, ...]] = ("ingress", "egress")
_OWN: Final = "dysco_"  # our programs and filters are called so

LEAST_ENTRIES: Final = 1 << 12
_TUPLES: Final = 5  # of a session: two on each side of a box, and what a change needs beside them

# Of open.bpf.h, for `dysco.dataplane.opening`.
MAX_RULES: Final = 64
MAX_NEIGHBOURS: Final = 64
MAX_SLOTS: Final = 64
TICKETS: Final = 2048
MAX_WINDOWS: Final = 256
PAGE: Final = mmap.PAGESIZE
RING: Final = 1 << 20
STAGES: Final = ("open_out", "send", "open_in", "enter", "tell", "answer", "carry_on")

LAYOUT: Final = "bb00"
"""Of what stands in the maps: begins the SHA-256 of all structs of the programs' sources, as a test makes sure."""

_MAPS = (
    *_FLOWS,
    MapSpec("clauses", ARRAY, 4, _CLAUSE.size, 2 * MAX_CLAUSES),
    MapSpec("services", ARRAY, 4, SERVICES, 1),
    MapSpec("config", ARRAY, 4, _CONFIG.size, 1),
    MapSpec("counters", PERCPU_ARRAY, 4, 8, len(COUNTERS)),
    MapSpec("rules", ARRAY, 4, 232, 2 * MAX_RULES),
    MapSpec("neighbours", ARRAY, 4, 392, MAX_NEIGHBOURS),
    MapSpec("paces", ARRAY, 4, 24, MAX_NEIGHBOURS),
    MapSpec("windows", ARRAY, 4, 1040, MAX_WINDOWS),
    MapSpec("tickets", ARRAY, 4, 32, MAX_SLOTS * TICKETS),
    MapSpec("heads", ARRAY, 4, 8, MAX_SLOTS),
    MapSpec("openings", ARRAY, 4, 16, 1),
    MapSpec("sha256", ARRAY, 4, 256, 1),
    MapSpec("scratch", PERCPU_ARRAY, 4, 1248, 1),
    MapSpec("peers", HASH, 20, 4, 32 * MAX_NEIGHBOURS),
    MapSpec("in_box", HASH, 40, 152, 1 << 14),
    MapSpec("reports", RINGBUF, 0, 0, RING),
    MapSpec("stages", PROG_ARRAY, 4, 4, len(STAGES)),
)
SPECS: Final = tuple(replace(one, layout=LAYOUT) for one in _MAPS)
PROGRAMS: Final = ("egress", "ingress", "inject", "egress_l3", "ingress_l3", "from_host", "from_box")
_KEEPERS: Final = ("ingress", "ingress_l3")
# The kernel forgets what is in one with its last descriptor or pin: so that chains begin only while there is an agent.
_UNPINNED: Final = PROG_ARRAY
MAPS_IN: Final = "maps"
PROGRAMS_IN: Final = "programs"
LEAVE: Final = "leave"
"""Stands on each device of a box in a namespace of its own; `Steering.programs` has one as `leave` and the port."""
_PLACE = struct.Struct("=IHxx")
_PLACE_SPEC: Final = MapSpec("place", ARRAY, 4, _PLACE.size, 1)


@dataclass(frozen=True, slots=True)
class SteeringConfig:
    """What the programs must know. Indexes are interface indexes; mac None: the device has no Ethernet header."""

    session_ifindex: int
    underlay_ifindex: int
    device_ifindex: int
    device_mac: bytes | None
    port_range: tuple[int, int]
    addresses: tuple[bytes, ...]
    capture_all_syn: bool = False


class Tally(NamedTuple):
    """What was rewritten by an entry; top_seq and top_ack as in `dysco.protocol.flow.Flow`, None: not known."""

    packets: int
    bytes: int
    top_seq: int | None = None
    top_ack: int | None = None


NOTHING: Final = Tally(0, 0)


def entries_for(sessions: int) -> int:
    """How many tuples the table of flows must have room for; a power of two, as the kernel makes it."""
    return max(LEAST_ENTRIES, 1 << (sessions * _TUPLES - 1).bit_length())


class Steering:
    """The maps and the programs. `taken_over` says whether a running agent's maps were found.

    pinned_in gives the bpffs where they are pinned, or None, when the first program is loaded.
    """

    def __init__(
        self,
        maps: Mapping[str, Map],
        *,
        taken_over: bool = False,
        pinned_in: Callable[[], Path | None] = lambda: None,
    ) -> None:
        self.maps = dict(maps)
        self.taken_over = taken_over
        self._pinned_in = pinned_in
        self._are_pinned = False
        self._loaded: dict[str, int] = {}
        self._places: dict[int, Map] = {}  # of each `leave`, by port
        self.flows = FlowMaps(self.maps)
        self._config: SteeringConfig | None = None
        self._first = self._clauses = 0
        self._boxed = False
        self._services: set[int] = set()
        # What arrives without being a subsession has to be looked for; as long as there is none, nothing is.
        self._arriving: set[bytes] = set()
        if taken_over:
            # What the running programs do goes on until the new agent says otherwise.
            self._clauses, self._first = _SET.unpack_from(self._written(), _SET_AT)
            self._arriving = {key for key in self.flows.keys() if key[_DIRECTION_AT] == IN}  # noqa: SIM118

    @property
    def room(self) -> int:
        """How many tuples of each family the tables of flows have room for."""
        return self.flows.room

    @classmethod
    def open(
        cls,
        underlay_tun: str,
        pinned_in: Callable[[], Path | None] = lambda: None,
        entries: int = ENTRIES,
    ) -> Steering:
        """Take over the maps that are pinned or behind the programs that run here, or make new ones.

        entries: how many tuples of each family new ones have room for.

        None are taken over if the underlay TUN is not there: pins outlive a namespace; nor if an agent with other
        structs in them has made them. Raises HostError.
        """
        with IPRoute() as ip:
            is_here = bool(ip.link_lookup(ifname=underlay_tun))
        found = (_pinned(pinned_in()) or _running()) if is_here else {}
        if found:
            return cls(found, taken_over=True, pinned_in=pinned_in)
        return cls.make(entries, pinned_in)

    @classmethod
    def make(cls, entries: int = ENTRIES, pinned_in: Callable[[], Path | None] = lambda: None) -> Steering:
        """Make new maps with room for so many tuples of each family. Raises HostError."""
        flows = {spec.name for spec in _FLOWS}
        specs = (replace(spec, entries=entries) if spec.name in flows else spec for spec in SPECS)
        return cls({spec.name: create_map(spec) for spec in specs}, pinned_in=pinned_in)

    def programs(self, box_ports: Iterable[int] = ()) -> dict[str, Callable[[], int]]:
        """The classifiers by name, each as a function that loads it when it is first needed.

        box_ports: of boxes in namespaces of their own, both of each.
        """
        found: dict[str, Callable[[], int]] = {name: partial(self._load, name) for name in PROGRAMS}
        found.update({f"{LEAVE}{port}": partial(self._load_leave, port) for port in box_ports})
        return found

    def join(self, port: int, veth_ifindex: int) -> None:
        """Let packets leave a box's device by our veth pair; the index is that of its end in the box's namespace."""
        self._places[port].put(_INDEX.pack(0), _PLACE.pack(veth_ifindex, port))

    def configure(self, config: SteeringConfig) -> None:
        """Tell the programs about devices and addresses."""
        self._config = config
        self._arriving = {key for key in self._arriving if self._is_looked_for(*unpack_key(key))}
        self._write_config()

    def set_policies(self, clauses: Iterable[Clause]) -> None:
        """Replace the clauses that divert SYNs, all in one step; at most 128, further ones are not looked at."""
        packed = [pack_clause(clause) for clause in clauses][:MAX_CLAUSES]
        first = MAX_CLAUSES - self._first
        for index, value in enumerate(packed, first):
            self.maps["clauses"].put(_INDEX.pack(index), value)
        self._first, self._clauses = first, len(packed)
        if self._config is not None:
            self._write_config()

    def add(self, match: FiveTuple, direction: int, entry: bytes = DIVERT) -> None:
        """Do with packets of this tuple what an entry says; direction OUT (leaving), IN (arriving), or a box's port.

        entry: struct flow of fast.bpf.h; in its place until now was another, or none. HostError if the map is full.
        """
        key = pack_key(match, direction)
        if direction == OUT:
            self._know_service(match)
        self.flows.put(key, entry)
        if self._is_looked_for(match, direction):
            self._arriving.add(key)
            if len(self._arriving) == 1 and self._config is not None:
                self._write_config()

    def remove(self, match: FiveTuple, direction: int) -> None:
        """Leave packets of this tuple alone; no error if they were."""
        key = pack_key(match, direction)
        self.flows.delete(key)
        if key in self._arriving:
            self._arriving.discard(key)
            if not self._arriving and self._config is not None:
                self._write_config()

    def expect_boxed(self, boxed: bool) -> None:
        """Say whether SYNs may be in the kernel box that the programs let on by themselves."""
        if boxed != self._boxed:
            self._boxed = boxed
            self._write_config()

    def take_out(self, match: FiveTuple) -> None:
        """Forget that a SYN with this tuple is in the kernel box; no error if there is none."""
        self.maps["in_box"].delete(pack_key(match, OUT))

    def load(self, name: str) -> int:
        """The descriptor of a program, which is loaded when it is first needed. Raises HostError."""
        return self._load(name)

    def tally(self, match: FiveTuple, direction: int) -> Tally:
        """What the programs have rewritten by an entry."""
        entry = self.flows.get(pack_key(match, direction))
        return NOTHING if entry is None else _unpack_tally(entry)

    def all_tallies(self) -> dict[tuple[FiveTuple, int], Tally]:
        """The same of every entry that was used, read in batches."""
        found = {}
        for key, entry in self.flows.items():
            tally = _unpack_tally(entry)
            if tally != NOTHING:
                found[unpack_key(key)] = tally
        return found

    def carried(
        self, entries: Sequence[tuple[bytes, int]], *, take_away: bool = False
    ) -> list[tuple[int, int]]:
        """Packets and bytes that were rewritten by each of these entries.

        take_away: remove those by which a FIN was carried, too.
        """
        keys = [pack_key(*entry) for entry in entries]
        found: list[tuple[int, int]] = []
        for first in range(0, len(keys), AT_ONCE):
            some = keys[first : first + AT_ONCE]
            frame = b"".join((_ETHERNET, _INDEX.pack(take_away), *some))
            counted = run_program_on(self._load("tallies"), frame)[len(_ETHERNET) + _INDEX.size :]
            found += _CARRIED.iter_unpack(counted)
        if take_away and not self._arriving.isdisjoint(keys):
            self._arriving.difference_update(keys)
            if not self._arriving and self._config is not None:
                self._write_config()
        return found

    def stop(self, match: FiveTuple, direction: int) -> Tally:
        """Have the agent see the next packet already; give what was rewritten until now."""
        run_program(self._load("divert"), _ETHERNET + pack_key(match, direction))
        return self.tally(match, direction)

    def entries(self) -> list[tuple[FiveTuple, int]]:
        """All tuples that are diverted, with their direction; takes time proportional to their number."""
        return [unpack_key(key) for key in self.flows.keys()]  # noqa: SIM118

    def diverted(self) -> list[tuple[FiveTuple, int]]:
        """Those whose packets are handed to the agent, all of them."""
        return [unpack_key(key) for key, entry in self.flows.items() if not entry[_ACTION_AT]]

    def boxed(self) -> list[FiveTuple]:
        """The tuples of SYNs that are in the kernel box, by what the programs know."""
        return [unpack_key(key)[0] for key in self.maps["in_box"].keys()]  # noqa: SIM118

    def counters(self) -> dict[str, int]:
        """What the programs have counted, over all CPUs."""
        found = {}
        for index, name in enumerate(COUNTERS):
            values = self.maps["counters"].get(_INDEX.pack(index)) or b""
            found[name] = sum(_U64.unpack_from(values, at)[0] for at in range(0, len(values), 8))
        return found

    def close(self) -> None:
        """Give descriptors back; attached programs go on."""
        for one in (*self.maps.values(), *self._places.values()):
            one.close()
        for fd in self._loaded.values():
            os.close(fd)
        self._loaded.clear()

    def _know_service(self, match: FiveTuple) -> None:
        """Have the programs look for packets of this service that leave; they never forget one again."""
        service = int.from_bytes(min(match[-4:-2], match[-2:]), "big") % SERVICES
        if service not in self._services:
            run_program(self._load("know"), _ETHERNET + _INDEX.pack(service))
            self._services.add(service)

    def _is_looked_for(self, match: FiveTuple, direction: int) -> bool:
        if direction != IN or self._config is None:
            return direction == IN
        low, high = self._config.port_range
        return not low <= match[-2] << 8 | match[-1] <= high or match.dst not in self._config.addresses

    def _load(self, name: str) -> int:
        if name not in self._loaded:
            self._loaded[name] = load_program(OBJECT, f"tc/{name}", self.maps)
            if name in _KEEPERS:
                # So that the next agent finds them: what only tail calls lead to is gone with the last descriptor.
                for one in self.maps.values():
                    bind_map(self._loaded[name], one)
            if name in PROGRAMS:
                self._pin(name)
        return self._loaded[name]

    def _load_leave(self, port: int) -> int:
        name = f"{LEAVE}{port}"
        if name not in self._loaded:
            self._places[port] = create_map(_PLACE_SPEC)
            maps = {**self.maps, _PLACE_SPEC.name: self._places[port]}
            self._loaded[name] = load_program(OBJECT, f"tc/{LEAVE}", maps)
            self._pin(name)
        return self._loaded[name]

    def _pin(self, program: str) -> None:
        """Pin a program before it is attached; and first of all the maps."""
        place = self._pinned_in()
        if place is None:
            return
        if not self._are_pinned:
            for name, one in self.maps.items():
                if one.spec.type != _UNPINNED:
                    pin(one.fd, place / MAPS_IN / name)
            self._are_pinned = True
        pin(self._loaded[program], place / PROGRAMS_IN / program)

    def _written(self) -> bytes:
        return self.maps["config"].get(_INDEX.pack(0)) or bytes(_CONFIG.size)

    def _write_config(self) -> None:
        config = self._config
        assert config is not None
        addresses = config.addresses[:MAX_ADDRESSES]
        self.maps["config"].put(
            _INDEX.pack(0),
            _CONFIG.pack(
                config.session_ifindex,
                config.underlay_ifindex,
                config.device_ifindex,
                self._clauses,
                self._first,
                *config.port_range,
                config.device_mac or bytes(6),
                config.device_mac is not None,
                config.capture_all_syn,
                bool(self._arriving),
                self._boxed,
                len(addresses),
                b"".join(address.ljust(16, b"\0") for address in addresses),
                bytes(4 if len(address) == 4 else 6 for address in addresses),
            ),
        )


def _pinned(place: Path | None) -> dict[str, Map]:
    """The maps that are pinned, with new ones where the kernel forgets what was in them; or none at all."""
    found: dict[str, Map] = {}
    if place is None:
        return found
    for spec in SPECS:
        if spec.type == _UNPINNED:
            found[spec.name] = create_map(spec)
        elif one := pinned_map(place / MAPS_IN / spec.name, spec):
            found[spec.name] = one
    return _all_or_none(found)


def _running() -> dict[str, Map]:
    """The maps of our programs that are attached in this namespace; or none at all.

    One program does not use all maps, so that all of them are asked.
    """
    found: dict[str, Map] = {}
    for number in _attached():
        fd = program_by_id(number)
        try:
            if not program_name(fd).startswith(_OWN):
                continue
            for name, one in maps_of_program(fd, SPECS).items():
                if name in found:
                    one.close()
                else:
                    found[name] = one
        finally:
            os.close(fd)
    return _all_or_none(found)


def _all_or_none(found: dict[str, Map]) -> dict[str, Map]:
    if len(found) == len(SPECS):
        return found
    for one in found.values():
        one.close()
    return {}


def _attached() -> list[int]:
    """The ids of programs that are attached in this namespace, by tcx all of them, by cls_bpf ours."""
    numbers: list[int] = []
    with IPRoute() as ip:
        if tcx.is_here():
            for link in ip.get_links():
                for direction in _DIRECTIONS:
                    numbers += tcx.attached(link["index"], direction)
        places = [qdisc["index"] for qdisc in ip.get_qdiscs() if qdisc.get_attr("TCA_KIND") == "clsact"]
        for index in places:
            for parent in (_INGRESS_PARENT, _EGRESS_PARENT):
                try:
                    filters: list[Any] = list(ip.get_filters(index=index, parent=parent))
                except NetlinkError:
                    continue  # the device is gone
                numbers += [number for entry in filters if (number := _own_program(entry)) is not None]
    return numbers


def _own_program(entry: Any) -> int | None:
    options = entry.get_attr("TCA_OPTIONS")
    if options is None or not str(options.get_attr("TCA_BPF_NAME")).startswith(_OWN):
        return None
    # pyroute2 0.9 does not know TCA_BPF_ID and gives it as UNKNOWN, with its place in the message.
    for name, value in options["attrs"]:
        if name == "UNKNOWN" and value["header"]["type"] == _TCA_BPF_ID:
            return int(_INDEX.unpack_from(value.data, value.offset + _NLA_HEADER)[0])
    return None


def pack_key(match: bytes, direction: int) -> bytes:
    """Struct key of a tuple and a direction."""
    if len(match) == 12:
        return _KEY.pack(match[:4], match[4:8], match[8:], 4, direction)
    return _KEY.pack(match[:16], match[16:32], match[32:], 6, direction)


def unpack_key(key: bytes) -> tuple[FiveTuple, int]:
    """Tuple and direction of struct key."""
    src, dst, ports, family, direction = _KEY.unpack(key)
    size = 4 if family == 4 else 16
    return FiveTuple(src[:size] + dst[:size] + ports), direction


def _unpack_tally(entry: bytes) -> Tally:
    known, top_seq, top_ack, packets, octets = _TALLY.unpack(entry)
    return Tally(
        packets, octets, top_seq if known & _KNOWN_SEQ else None, top_ack if known & _KNOWN_ACK else None
    )


def pack_clause(clause: Clause) -> bytes:
    """A clause as the programs know it."""
    return _CLAUSE.pack(
        clause.src.ljust(16, b"\0"),
        _mask(clause.src_length),
        clause.dst.ljust(16, b"\0"),
        _mask(clause.dst_length),
        *clause.sport,
        *clause.dport,
        clause.family,
    )


def _mask(length: int) -> bytes:
    return ((1 << 128) - (1 << 128 - length)).to_bytes(16, "big")
