"""Find out whether a SYN with payload reaches another host: that is how chains begin.

Knows raw sockets and one fact: a host refuses a SYN for a port where nobody listens with a RST that acknowledges what
the SYN took of sequence space, payload included (RFC 9293 section 3.10.7.1). So the answer tells whether the payload
was still there, and no agent needs to run at the other end.
"""

from __future__ import annotations

import os
import select
import socket
import time
from enum import Enum
from typing import Final

from dysco.errors import HostError, PermissionDeniedError
from dysco.wire.packet import ACK, RST, SYN, Packet, build_tcp, locate
from dysco.wire.tuples import FiveTuple

PAYLOAD: Final = bytes(range(120))  # about as long as a chain header
WAIT_S: Final = 0.7
TRIES: Final = 2
_WINDOW: Final = 1024
_IPV6_HEADER: Final = 40


class Arrival(Enum):
    """What became of a SYN with payload."""

    WHOLE = "SYNs with payload arrive whole"
    STRIPPED = "the payload of SYNs is removed on the way"
    DROPPED = "SYNs with payload are dropped on the way, others arrive"
    SERVED = "somebody listens at the port that was tried, so that nothing can be told"
    SILENT = "no answer to any SYN"


def syn_with_payload(address: bytes, port: int) -> Arrival:
    """Send SYNs to a port where nobody should listen. Raises PermissionDeniedError, HostError."""
    found = _ask(address, port, PAYLOAD)
    if found is None:
        return Arrival.SILENT if _ask(address, port, b"") is None else Arrival.DROPPED
    flags, taken = found
    if flags & SYN:
        return Arrival.SERVED
    return Arrival.WHOLE if taken == 1 + len(PAYLOAD) else Arrival.STRIPPED


def _ask(address: bytes, port: int, payload: bytes) -> tuple[int, int] | None:
    """Flags of the answer and how much sequence space it acknowledges; None without one."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    target = socket.inet_ntop(family, address)
    try:
        with (
            socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
            socket.socket(family, socket.SOCK_STREAM) as holder,
        ):
            own = _source(family, target, port)
            holder.bind((own, 0))  # nobody else is given this port meanwhile
            source = holder.getsockname()[1]
            session = FiveTuple.of(socket.inet_pton(family, own), source, address, port)
            for _ in range(TRIES):
                number = int.from_bytes(os.urandom(4), "big")
                syn = build_tcp(session, number, 0, SYN, _WINDOW, b"", payload)
                at = locate(syn)
                assert at is not None
                raw.sendto(bytes(syn.data[at.tcp_offset :]), (target, 0))
                found = _answer(raw, session.reversed(), number)
                if found is not None:
                    return found
    except PermissionError:
        raise PermissionDeniedError("a SYN cannot be sent: CAP_NET_RAW is needed") from None
    except OSError as error:
        raise HostError(f"a SYN to {target} cannot be sent: {error.strerror}") from None
    return None


def _source(family: int, target: str, port: int) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, port))
        return str(probe.getsockname()[0])


def _answer(raw: socket.socket, wanted: FiveTuple, number: int) -> tuple[int, int] | None:
    end = time.monotonic() + WAIT_S
    while (left := end - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
        data = raw.recv(2048)
        if wanted.family == 6:
            # A raw socket of IPv6 gives no IP header (RFC 3542 section 3).
            data = b"\x60\0\0\0" + len(data).to_bytes(2, "big") + b"\x06\x40" + wanted[:32] + data
        at = locate(Packet(bytearray(data)))
        if at is not None and at.five_tuple == wanted and at.flags & (SYN | RST) and at.flags & ACK:
            return at.flags, (at.ack - number) & 0xFFFFFFFF
    return None
