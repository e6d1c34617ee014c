"""libpcap as the judge of match expressions: compiles a filter and runs it on a built packet.

Takes libpcap by ctypes; raises OSError where it is not installed.
"""

from __future__ import annotations

import ctypes
import struct

from dysco.wire.tuples import FiveTuple

_DLT_RAW = 12  # on Linux and BSD but OpenBSD: packets begin with the IP header
_NETMASK_UNKNOWN = 0xFFFFFFFF


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


class Pcap:
    """A dead capture handle on which filters are compiled."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libpcap.so.0.8")
        self._lib.pcap_open_dead.restype = ctypes.c_void_p
        self._lib.pcap_geterr.restype = ctypes.c_char_p
        self._lib.pcap_geterr.argtypes = (ctypes.c_void_p,)
        self._lib.pcap_compile.argtypes = (
            ctypes.c_void_p,
            ctypes.POINTER(_Program),
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        )
        self._lib.pcap_offline_filter.argtypes = (
            ctypes.POINTER(_Program),
            ctypes.POINTER(_Header),
            ctypes.c_char_p,
        )
        self._lib.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        self._handle = self._lib.pcap_open_dead(_DLT_RAW, 65535)

    def matches(self, expression: str, sessions: list[FiveTuple]) -> list[bool] | str:
        """Tell of each session whether its packets match; libpcap's message if it refuses the expression.

        Without its optimizer, which errs (1.10.3): to it no packet matches `net ::/1 and src net ::/1`.
        """
        program = _Program()
        if self._lib.pcap_compile(
            self._handle, ctypes.byref(program), expression.encode(), 0, _NETMASK_UNKNOWN
        ):
            return str(self._lib.pcap_geterr(self._handle).decode())
        try:
            found = []
            for session in sessions:
                data = packet(session)
                header = _Header(0, 0, len(data), len(data))
                found.append(bool(self._lib.pcap_offline_filter(program, header, data)))
            return found
        finally:
            self._lib.pcap_freecode(ctypes.byref(program))


def packet(session: FiveTuple) -> bytes:
    """Build a bare SYN of a session; its checksums are zero, filters do not look at them."""
    tcp = struct.pack("!HHIIBBHHH", session.sport, session.dport, 1, 0, 0x50, 0x02, 65535, 0, 0)
    if session.family == 4:
        return struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + session.src + session.dst + tcp
    return struct.pack("!IHBB", 0x60000000, 20, 6, 64) + session.src + session.dst + tcp
