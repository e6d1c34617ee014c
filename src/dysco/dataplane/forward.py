"""The hot loop: read a packet, find its flow, edit the header in the buffer, write it.

A packet of an established session is never copied nor taken apart: one struct reads what the decision needs, the
twelve (IPv6: 36) bytes of addresses and ports are the table's key, and what changes is written back in place. What
is not of that kind (no flow, SYN, FIN or RST, a slow flow, IP options, fragments, anything but TCP) becomes a
`Packet` and goes to the core. Measured: read and write of the device cost three times what Python does here.

Buffer: 10 bytes of virtio-net header (left zero without offload), then the IP packet.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from dysco.dataplane.table import PythonFlowTable
from dysco.dataplane.tun import Tun
from dysco.protocol.flow import LOOP, UNDERLAY
from dysco.wire import vnet
from dysco.wire.packet import Packet, complete, locate
from dysco.wire.rewrite import apply

BUDGET: Final = 64
"""Packets that one wake-up may handle before the event loop gets its turn."""

_BUFFER: Final = vnet.HEADER_LEN + 65536
# flags of the virtio header; fragment field, protocol, header checksum, tuple; TCP flags, TCP checksum
_IPV4 = struct.Struct(">B15xHxBH12s9xB2xH")
_IPV6 = struct.Struct(">B15xBx36s9xB2xH")
_IPV4_EDIT = struct.Struct(">H12s")
_IPV6_EDIT = struct.Struct(">36s")
_U16 = struct.Struct(">H")
_IPV4_EDIT_AT: Final = 20
_IPV4_CHECKSUM_AT: Final = 46
_IPV6_EDIT_AT: Final = 18
_IPV6_CHECKSUM_AT: Final = 66
_IPV4_LEAST: Final = 50
_IPV6_LEAST: Final = 70
_SLOW_FLAGS: Final = 0x07
_TRANSIENT: Final = frozenset(
    (errno.EAGAIN, errno.ENOBUFS, errno.EIO, errno.EINVAL, errno.ENETDOWN, errno.EMSGSIZE)
)

Slow = Callable[[int, Packet], None]
Writer = Tun | Callable[[Packet], None]


class Forwarder:
    """Moves packets between devices by a flow table.

    readers: the port that packets of a device are read from. writers: where packets for a port go, a device or a
    function. slow is given what the table cannot decide.
    """

    def __init__(
        self, readers: Mapping[Tun, int], writers: Mapping[int, Writer], table: PythonFlowTable, slow: Slow
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._table = table
        self._slow = slow
        self._ports = {tun.fd: port for tun, port in readers.items()}
        self._flows = {tun.fd: table.ports[port] for tun, port in readers.items()}
        self._writers = dict(writers)
        self._fds = {port: tun.fd for port, tun in writers.items() if isinstance(tun, Tun)}
        self._start = 0 if all(tun.has_offload for tun in readers) else vnet.HEADER_LEN
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._into = [self._view[self._start :]]

    def readable(self, fd: int) -> None:
        """Handle what a device has, up to the budget. Call it when the descriptor is readable."""
        buffer, view, into, start = self._buffer, self._view, self._into, self._start
        flows, fds = self._flows[fd], self._fds
        readv, write = os.readv, os.write
        unpack4, unpack6 = _IPV4.unpack_from, _IPV6.unpack_from
        for _ in range(BUDGET):
            try:
                end = readv(fd, into) + start
            except BlockingIOError:
                return
            except OSError as error:
                self.counters["read_errors"] += 1
                if error.errno in _TRANSIENT:
                    return
                raise
            version = buffer[10]
            if version == 0x45 and end >= _IPV4_LEAST:
                partial, fragment, protocol, ip_sum, key, flags, tcp_sum = unpack4(buffer)
                flow = flows.get(key)
                if (
                    flow is None
                    or flags & _SLOW_FLAGS
                    or flow.slow
                    or protocol != 6
                    or fragment & 0x3FFF
                    or flow.translation is not None
                    or flow.out not in fds
                ):
                    self._other(fd, end)
                    continue
                delta = flow.address_delta
                total = (65535 - ip_sum + delta) % 65535
                _IPV4_EDIT.pack_into(buffer, _IPV4_EDIT_AT, 65535 - total if total else 0, flow.rewrite)
                if partial & 1:
                    _U16.pack_into(buffer, _IPV4_CHECKSUM_AT, (tcp_sum + delta) % 65535)
                else:
                    total = (65535 - tcp_sum + flow.full_delta) % 65535
                    _U16.pack_into(buffer, _IPV4_CHECKSUM_AT, 65535 - total if total else 0)
            elif version >> 4 == 6 and end >= _IPV6_LEAST:
                partial, protocol, key, flags, tcp_sum = unpack6(buffer)
                flow = flows.get(key)
                if (
                    flow is None
                    or flags & _SLOW_FLAGS
                    or flow.slow
                    or protocol != 6
                    or flow.translation is not None
                    or flow.out not in fds
                ):
                    self._other(fd, end)
                    continue
                _IPV6_EDIT.pack_into(buffer, _IPV6_EDIT_AT, flow.rewrite)
                if partial & 1:
                    _U16.pack_into(buffer, _IPV6_CHECKSUM_AT, (tcp_sum + flow.address_delta) % 65535)
                else:
                    total = (65535 - tcp_sum + flow.full_delta) % 65535
                    _U16.pack_into(buffer, _IPV6_CHECKSUM_AT, 65535 - total if total else 0)
            else:
                self._other(fd, end)
                continue
            flow.packets += 1
            flow.bytes += end - 10
            try:
                write(fds[flow.out], view[start:end])
            except OSError as error:
                self._write_failed(error)

    def receive(self, port: int, packet: Packet) -> None:
        """Handle a packet of a software device as though it had been read from `port`."""
        at = locate(packet)
        flow = None if at is None else self._table.ports[port].get(at.five_tuple)
        if at is None or flow is None or flow.slow or at.flags & _SLOW_FLAGS:
            self._slow(port, packet)
            return
        flow.packets += 1
        flow.bytes += len(packet.data)
        apply(packet, flow)
        self.send(flow.out, packet)

    def send(self, port: int, packet: Packet) -> None:
        """Write a packet to a port; what cannot be written is counted and lost, as on any wire."""
        if port == LOOP:
            self.receive(UNDERLAY, packet)
            return
        writer = self._writers.get(port)
        if writer is None:
            self.counters["no_device"] += 1
        elif not isinstance(writer, Tun):
            writer(packet)
        else:
            try:
                if writer.has_offload:
                    os.writev(writer.fd, (vnet.pack(packet), packet.data))
                else:
                    complete(packet)
                    os.write(writer.fd, packet.data)
            except OSError as error:
                self._write_failed(error)

    def _other(self, fd: int, end: int) -> None:
        """Hand a packet over that the hot loop does not edit by itself."""
        frame = (
            bytes(self._view[:end])
            if not self._start
            else vnet.NO_HEADER + bytes(self._view[self._start : end])
        )
        packet = vnet.unpack(frame)
        port = self._ports[fd]
        at = locate(packet)
        flow = None if at is None else self._table.ports[port].get(at.five_tuple)
        if at is None or flow is None or flow.slow or at.flags & _SLOW_FLAGS:
            self._slow(port, packet)
        else:
            flow.packets += 1
            flow.bytes += len(packet.data)
            apply(packet, flow)
            self.send(flow.out, packet)

    def _write_failed(self, error: OSError) -> None:
        self.counters[f"write_{errno.errorcode.get(error.errno or 0, 'error').lower()}"] += 1
        if error.errno not in _TRANSIENT:
            raise error
