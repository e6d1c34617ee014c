"""What the kernel programs cost a packet, by themselves: run by the kernel over and over (BPF_PROG_TEST_RUN).

Caches are warm and nothing else is measured, so that the figures show what the programs do, not what a packet costs.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from dysco.dataplane.bpf import call
from dysco.dataplane.fast import TO_BOX, pack
from dysco.dataplane.steer import IN, OUT, Steering, SteeringConfig
from dysco.protocol.flow import FORWARD, UNDERLAY, Flow, Translation
from dysco.wire.packet import ACK, build_tcp
from dysco.wire.tuples import FiveTuple

REPEAT = 200_000
TURNS = 7
_PROG_TEST_RUN = 10
_PORTS = (61000, 65535)
_STAMPS = b"\1\1\x08\x0a" + bytes(8)
_OTHER = {
    4: FiveTuple.parse("10.0.0.1:40001 > 10.0.0.9:80"),
    6: FiveTuple.parse("[fd00::1]:40001 > [fd00::9]:80"),
}
_OURS = {
    4: FiveTuple.parse("10.0.0.2:61000 > 10.0.0.1:61001"),
    6: FiveTuple.parse("[fd00::2]:61000 > [fd00::1]:61001"),
}
_BESIDE = {
    4: FiveTuple.parse("10.0.0.3:61002 > 10.0.0.1:61001"),
    6: FiveTuple.parse("[fd00::3]:61002 > [fd00::1]:61001"),
}
_UDP = 17
_PROTOCOL_AT = {4: 9, 6: 6}


def run(sessions: int = 100_000) -> dict[str, dict[str, float]]:
    """Nanoseconds a packet, the least of some turns, beside so many chained sessions."""
    steering = Steering.make()
    try:
        own = tuple(match.dst for match in _OURS.values())
        steering.configure(SteeringConfig(1, 1, 1, bytes(6), _PORTS, own))
        for number in range(sessions):
            steering.add(FiveTuple.of(number.to_bytes(4, "big"), 1, bytes(4), 1), OUT)
        programs = steering.programs()
        return {
            f"{name}, IPv{family}": {"ns_a_packet": _least(programs[program](), packet)}
            for name, program, family, packet in _packets(steering)
        }
    finally:
        steering.close()


def _packets(steering: Steering) -> Iterator[tuple[str, str, int, bytes]]:
    for family in (4, 6):
        other = build_tcp(_OTHER[family], 1, 1, ACK, 1000, _STAMPS, bytes(1000)).data
        udp = bytearray(other)
        udp[_PROTOCOL_AT[family]] = _UDP
        yield "UDP (as good as no program), arriving", "ingress", family, bytes(udp)
        yield "TCP that is not chained, arriving", "ingress", family, bytes(other)
        yield "TCP that is not chained, leaving", "egress", family, bytes(other)
        ours, beside = _OURS[family], _BESIDE[family]
        packet = bytes(build_tcp(ours, 1, 1, ACK, 1000, _STAMPS, bytes(1000)).data)
        for name, numbers in (("rewritten", None), ("rewritten, other numbers", Translation())):
            # To and fro, so that each turn finds it again.
            for old, new in ((ours, beside), (beside, ours)):
                steering.add(old, IN, pack(Flow(UNDERLAY, old, FORWARD, new, translation=numbers), TO_BOX))
            yield f"{name}, arriving", "ingress", family, packet


def _least(program: int, packet: bytes) -> float:
    frame = bytes(12) + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet
    data = ctypes.create_string_buffer(frame, len(frame))
    found = []
    for _ in range(TURNS):
        # struct { u32 prog_fd, retval, data_size_in, data_size_out; u64 data_in, data_out; u32 repeat, duration; }
        run_of = struct.pack("=IIIIQQII", program, 0, len(frame), 0, ctypes.addressof(data), 0, REPEAT, 0)
        attribute = ctypes.create_string_buffer(run_of, 128)
        call(_PROG_TEST_RUN, attribute, "a program cannot be run")
        found.append(struct.unpack_from("=I", attribute, 36)[0])
    return float(min(found))
