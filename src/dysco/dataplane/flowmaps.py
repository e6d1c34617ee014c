"""The kernel's tables of flows, one for each family, as one by struct key."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from dysco.dataplane.bpf import HASH, Map, MapSpec

KEY: Final = struct.Struct("=16s16s4sBB2x")
"""Struct key of steer.bpf.c: addresses, ports, family, direction."""
FLOW_BYTES: Final = 96
"""Of struct flow in fast.bpf.h."""
ENTRIES: Final = 1 << 20
_KEY_4: Final = struct.Struct("=4s4s4sB3x")
_NAMES: Final = ("flows_4", "flows_6")
SPECS: Final = (
    MapSpec(_NAMES[0], HASH, _KEY_4.size, FLOW_BYTES, ENTRIES),
    MapSpec(_NAMES[1], HASH, KEY.size, FLOW_BYTES, ENTRIES),
)


class FlowMaps:
    """Keys are struct key, values struct flow, in bytes."""

    def __init__(self, maps: dict[str, Map]) -> None:
        self._four, self._six = (maps[name] for name in _NAMES)

    @property
    def room(self) -> int:
        """How many tuples of each family there is room for."""
        return self._four.spec.entries

    def put(self, key: bytes, flow: bytes) -> None:
        """Insert or replace; HostError if there is no room."""
        table, own = self._place(key)
        table.put(own, flow)

    def get(self, key: bytes) -> bytes | None:
        """The flow with this key; None if there is none."""
        table, own = self._place(key)
        return table.get(own)

    def delete(self, key: bytes) -> None:
        """Remove a flow; no error if there is none."""
        table, own = self._place(key)
        table.delete(own)

    def keys(self) -> Iterator[bytes]:
        """All keys; takes time proportional to their number."""
        yield from map(_long, self._four.keys())
        yield from self._six.keys()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys with their flows, read in batches."""
        for key, flow in self._four.items():
            yield _long(key), flow
        yield from self._six.items()

    def _place(self, key: bytes) -> tuple[Map, bytes]:
        src, dst, ports, family, direction = KEY.unpack(key)
        if family != 4:
            return self._six, key
        return self._four, _KEY_4.pack(src[:4], dst[:4], ports, direction)


def _long(key: bytes) -> bytes:
    src, dst, ports, direction = _KEY_4.unpack(key)
    return KEY.pack(src, dst, ports, 4, direction)
