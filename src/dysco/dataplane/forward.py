"""The hot loop: read a packet, find its flow, edit the header in the buffer, write it.

A packet of an established session is never copied nor taken apart: one struct reads what the decision needs, the
twelve (IPv6: 36) bytes of addresses and ports are the table's key, and what changes is written back in place. What
is not of that kind (no flow, SYN, FIN or RST, a slow flow, IP options, fragments, anything but TCP) becomes a
`Packet` and goes to the core. Measured: read and write of the device cost three times what Python does here.

    HOST, box --readable--> flow --in place--> device        established
                              \\-- _other --> apply --> send  options, SACK to translate, software devices
                               \\-- slow ---> core           what changes state

Buffer: 10 bytes of virtio-net header (left zero without offload), then the IP packet.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from io import FileIO
from typing import Final

from dysco.dataplane.table import PythonFlowTable
from dysco.dataplane.tun import Tun
from dysco.errors import LocalError
from dysco.protocol.flow import FIRST_BOX, FORWARD, HOST, LOOP, UNDERLAY, Translation
from dysco.wire import vnet
from dysco.wire.packet import ACK, SYN, Located, Packet, complete, locate
from dysco.wire.rewrite import apply

BUDGET: Final = 64
"""Packets that one wake-up may handle before the event loop gets its turn."""
PATIENCE: Final = 2
"""ours: wake-ups in a row that may end at the budget. Then more arrives than can be done, and something must go."""

_BUFFER: Final = vnet.HEADER_LEN + 65536
# flags of the virtio header; fragment field, protocol, header checksum, tuple; numbers, data offset, flags, checksum
_IPV4 = struct.Struct(">B15xHxBH12sIIBB2xH")
_IPV6 = struct.Struct(">B15xBx36sIIBB2xH")
_IPV4_EDIT = struct.Struct(">H12s")
_IPV6_EDIT = struct.Struct(">36s")
_U16 = struct.Struct(">H")
_NUMBERS = struct.Struct(">IIB")
_U32_PAIR = struct.Struct(">II")
_IPV4_EDIT_AT: Final = 20
_IPV4_CHECKSUM_AT: Final = 46
_IPV6_EDIT_AT: Final = 18
_IPV6_CHECKSUM_AT: Final = 66
_IPV4_TCP: Final = 30
_IPV6_TCP: Final = 50
_IPV4_LEAST: Final = 50
_IPV6_LEAST: Final = 70
_SLOW_FLAGS: Final = 0x07
_MASK32: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31
_PLAIN_HEADER: Final = 5  # data offset without options
_TIMESTAMPS_HEADER: Final = (
    8  # data offset with timestamps alone, laid out as all systems do (RFC 7323 appendix A)
)
_TIMESTAMPS: Final = b"\1\1\x08\x0a"
_TRANSIENT: Final = frozenset((errno.ENOBUFS, errno.ENOMEM, errno.EIO, errno.ENETDOWN))
_DELETED: Final = frozenset((errno.EBADFD, errno.ENODEV))

_OPENS: Final = SYN | ACK
Slow = Callable[[int, Packet, Located | None], None]
Writer = Tun | Callable[[Packet], None]


class Forwarder:
    """Moves packets between devices by a flow table.

    readers: the port that packets of a device are read from. writers: where packets for a port go, a device or a
    function; devices are all with offload or all without. slow is given what the table cannot decide, and where its
    parts are; gone is told a descriptor whose device somebody has deleted: it must not be waited for any more.

    While a device is behind, SYNs that would begin a chain are dropped and counted (`syn_shed`): their senders repeat
    them, and what a set-up costs is left to the sessions that have begun. It is behind once PATIENCE wake-ups have
    ended at the budget, until it has been read empty; so a queue stays shorter than what the kernel would cut off.
    """

    def __init__(
        self,
        readers: Mapping[Tun, int],
        writers: Mapping[int, Writer],
        table: PythonFlowTable,
        slow: Slow,
        gone: Callable[[int], None] = lambda fd: None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._table = table
        self._slow = slow
        self._ports = {tun.fd: port for tun, port in readers.items()}
        self._flows = {tun.fd: table.ports[port] for tun, port in readers.items()}
        self._writers = dict(writers)
        self._gone = gone
        self._full = dict.fromkeys(self._ports, 0)
        self._sent_to = LOOP
        tuns = [*readers, *(tun for tun in writers.values() if isinstance(tun, Tun))]
        if len({tun.has_offload for tun in tuns}) > 1:
            raise LocalError("devices with and without offload cannot be mixed")
        # FileIO has less ado than os.readv and os.write, and gives None where it would have to wait.
        files = {tun.fd: FileIO(tun.fd, "r+", closefd=False) for tun in tuns}
        self._read = {fd: file.readinto for fd, file in files.items()}
        self._write = {port: files[tun.fd].write for port, tun in writers.items() if isinstance(tun, Tun)}
        self._echo = _echoes({port: tun.fd for tun, port in readers.items()})
        self._start = 0 if all(tun.has_offload for tun in tuns) else vnet.HEADER_LEN
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._into = self._view[self._start :]

    def readable(self, fd: int) -> None:
        """Handle what a device has, up to the budget. Call it when the descriptor is readable."""
        buffer, view, into, start = self._buffer, self._view, self._into, self._start
        flows, writes, read, out = self._flows[fd], self._write, self._read[fd], LOOP
        unpack4, unpack6, pack = _IPV4.unpack_from, _IPV6.unpack_from, _U16.pack_into
        edit4, edit6 = _IPV4_EDIT.pack_into, _IPV6_EDIT.pack_into
        for _ in range(BUDGET):
            try:
                end = read(into)
            except OSError as error:
                self._read_failed(fd, error)
                return
            if end is None:
                # What was written to a box has passed it by now, as a rule: it waits at the other side.
                self._full[fd] = 0
                other = self._echo.get(out)
                if other is None or other == fd:
                    return
                fd, out = other, LOOP
                flows, read = self._flows[fd], self._read[fd]
                continue
            end += start
            version = buffer[10]
            if version == 0x45 and end >= _IPV4_LEAST:
                partial, fragment, protocol, ip_sum, key, seq, ack, offset, flags, tcp_sum = unpack4(buffer)
                flow = flows.get(key)
                if flow is None or flags & _SLOW_FLAGS or flow.slow or protocol != 6 or fragment & 0x3FFF:
                    self._other(fd, end)
                    continue
                out = flow.out
                write = writes.get(out)
                full = flow.full_delta
                if flow.translation is not None and write is not None:
                    shifted = self._shift(_IPV4_TCP, end, flow.translation)
                    if shifted is None:
                        write = None
                    else:
                        full += shifted
                if write is None:
                    self._other(fd, end)
                    continue
                delta = flow.address_delta
                total = (65535 - ip_sum + delta) % 65535
                edit4(buffer, _IPV4_EDIT_AT, 65535 - total if total else 0, flow.rewrite)
                if partial & 1:
                    pack(buffer, _IPV4_CHECKSUM_AT, (tcp_sum + delta) % 65535 or 65535)
                else:
                    total = (65535 - tcp_sum + full) % 65535
                    pack(buffer, _IPV4_CHECKSUM_AT, 65535 - total if total else 0)
            elif version >> 4 == 6 and end >= _IPV6_LEAST:
                partial, protocol, key, seq, ack, offset, flags, tcp_sum = unpack6(buffer)
                flow = flows.get(key)
                if flow is None or flags & _SLOW_FLAGS or flow.slow or protocol != 6:
                    self._other(fd, end)
                    continue
                out = flow.out
                write = writes.get(out)
                full = flow.full_delta
                if flow.translation is not None and write is not None:
                    shifted = self._shift(_IPV6_TCP, end, flow.translation)
                    if shifted is None:
                        write = None
                    else:
                        full += shifted
                if write is None:
                    self._other(fd, end)
                    continue
                edit6(buffer, _IPV6_EDIT_AT, flow.rewrite)
                if partial & 1:
                    pack(buffer, _IPV6_CHECKSUM_AT, (tcp_sum + flow.address_delta) % 65535 or 65535)
                else:
                    total = (65535 - tcp_sum + full) % 65535
                    pack(buffer, _IPV6_CHECKSUM_AT, 65535 - total if total else 0)
            else:
                self._other(fd, end)
                continue
            flow.packets += 1
            flow.bytes += end - 10
            top = (seq + end - (_IPV4_TCP if version == 0x45 else _IPV6_TCP) - (offset >> 2 & 60)) & _MASK32
            if (top - flow.top_seq) & _MASK32 < _HALF or flow.top_seq < 0:
                flow.top_seq = top
            if (ack - flow.top_ack) & _MASK32 < _HALF or flow.top_ack < 0:
                flow.top_ack = ack
            try:
                if write(view[start:end]) is None:
                    self.counters["write_eagain"] += 1
            except OSError as error:
                self._write_failed(error)
        self._full[fd] += 1

    def echo(self) -> int | None:
        """The descriptor where what was sent last comes back as a rule, out of a kernel box; None: nowhere."""
        port, self._sent_to = self._sent_to, LOOP
        return self._echo.get(port)

    def receive(self, port: int, packet: Packet) -> None:
        """Handle a packet of a software device as though it had been read from `port`."""
        at = locate(packet)
        flow = None if at is None else self._table.ports[port].get(at.five_tuple)
        if at is None or flow is None or flow.slow or at.flags & _SLOW_FLAGS:
            self._slow(port, packet, at)
            return
        flow.count(at, len(packet.data))
        apply(packet, flow, at)
        self.send(flow.out, packet)

    def send(self, port: int, packet: Packet) -> None:
        """Write a packet to a port; what cannot be written is counted and lost, as on any wire."""
        if port == LOOP:
            self.receive(UNDERLAY, packet)
            return
        self._sent_to = port
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
        if end < vnet.HEADER_LEN:
            self.counters["malformed"] += 1
            return
        packet = vnet.unpack(self._view[:end])
        port = self._ports[fd]
        at = locate(packet)
        flow = None if at is None else self._table.ports[port].get(at.five_tuple)
        if at is not None and flow is not None and not flow.slow and not at.flags & _SLOW_FLAGS:
            flow.count(at, len(packet.data))
            apply(packet, flow, at)
            self.send(flow.out, packet)
        elif (
            at is not None
            and flow is None
            and self._full[fd] >= PATIENCE
            and at.flags & _OPENS == SYN
            and not self._table.expects(at.five_tuple)
        ):
            self.counters["syn_shed"] += 1
        else:
            self._slow(port, packet, at)

    def _shift(self, tcp: int, end: int, numbers: Translation) -> int | None:
        """Shift the numbers of the packet in the buffer; give what that adds to a complete checksum.

        None, and nothing is changed, if there is more to do, or options have to be looked for one by one.
        """
        if not numbers.is_plain:
            return None
        buffer = self._buffer
        seq, ack, offset = _NUMBERS.unpack_from(buffer, tcp + 4)
        header = offset >> 4
        stamps = None
        if header != _PLAIN_HEADER:
            if (
                header != _TIMESTAMPS_HEADER
                or end < tcp + 32
                or buffer[tcp + 20 : tcp + 24] != _TIMESTAMPS
                or not buffer[tcp + 13] & ACK
            ):
                return None
            stamps = _U32_PAIR.unpack_from(buffer, tcp + 24)
        new_seq = (seq + numbers.seq_delta) & 0xFFFFFFFF
        new_ack = (ack + numbers.ack_delta) & 0xFFFFFFFF if buffer[tcp + 13] & ACK else ack
        _U32_PAIR.pack_into(buffer, tcp + 4, new_seq, new_ack)
        change = new_seq - seq + new_ack - ack
        if stamps is not None and (numbers.tsval_delta or numbers.tsecr_delta):
            value = (stamps[0] + numbers.tsval_delta) & 0xFFFFFFFF
            echo = (stamps[1] + numbers.tsecr_delta) & 0xFFFFFFFF
            _U32_PAIR.pack_into(buffer, tcp + 24, value, echo)
            change += value - stamps[0] + echo - stamps[1]
        return int(change % 65535)

    def _read_failed(self, fd: int, error: OSError) -> None:
        self.counters["read_errors"] += 1
        if error.errno in _DELETED:
            self.counters["device_gone"] += 1
            self._gone(fd)
        elif error.errno not in _TRANSIENT:
            raise error

    def _write_failed(self, error: OSError) -> None:
        self.counters[f"write_{errno.errorcode.get(error.errno or 0, 'error').lower()}"] += 1


def _echoes(readers: Mapping[int, int]) -> dict[int, int]:
    """By the port that was written to: the descriptor where a kernel box lets the packet out again."""
    echoes = {port ^ 1: fd for port, fd in readers.items() if port >= FIRST_BOX}
    if HOST in readers:
        echoes[FORWARD] = readers[HOST]
    return echoes
