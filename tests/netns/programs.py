"""The kernel programs, run on single frames by the kernel itself (BPF_PROG_TEST_RUN)."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

from dysco.dataplane.steer import Steering, SteeringConfig

PASS: Final = -1  # TC_ACT_UNSPEC: the next filter decides
DROP: Final = 2  # TC_ACT_SHOT
DIVERT: Final = 7  # TC_ACT_REDIRECT
OWN4, OWN6 = bytes((10, 0, 0, 1)), b"\xfd" + bytes(14) + b"\1"
_TEST_RUN: Final = 10
_SYSCALL: Final = {"x86_64": 321}.get(platform.machine(), 280)
_MARK_AT: Final = 8  # of struct __sk_buff
_CHECKSUM_COMPLETE: Final = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE (kernel 6.16)


class Programs:
    """Loaded programs that can be run on a packet."""

    def __init__(self) -> None:
        self.steering = Steering.open("no-such-tun")
        self.steering.configure(SteeringConfig(1, 1, 1, bytes(6), (61000, 65535), (OWN4, OWN6)))
        self._load = self.steering.programs()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def run(self, name: str, packet: bytes | bytearray, mark: int = 0) -> int:
        """What the program says to a packet behind an Ethernet header."""
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        return self.on_frame(name, bytes(12) + kind + packet, mark)

    def edit(self, name: str, packet: bytes | bytearray, *, summed: bool = False) -> tuple[int, bytes]:
        """What the program says to a packet, and what it makes of it.

        summed: a device has taken the sum of the whole packet; OSError if it is not that of what comes out.
        """
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        verdict, frame = self.frame(name, bytes(12) + kind + packet, 0, summed=summed)
        return verdict, frame[14:]

    def on_frame(self, name: str, frame: bytes, mark: int = 0) -> int:
        """What the program says to an Ethernet frame."""
        return self.frame(name, frame, mark)[0]

    def frame(self, name: str, frame: bytes, mark: int = 0, *, summed: bool = False) -> tuple[int, bytes]:
        """What the program says to an Ethernet frame, and what it makes of it."""
        data = ctypes.create_string_buffer(frame, len(frame))
        out = ctypes.create_string_buffer(len(frame) + 512)
        context = ctypes.create_string_buffer(192)
        struct.pack_into("=I", context, _MARK_AT, mark)
        # union bpf_attr, test: prog_fd retval data_size_in data_size_out data_in data_out repeat duration
        # ctx_size_in ctx_size_out ctx_in ctx_out flags
        attribute = ctypes.create_string_buffer(
            struct.pack(
                "=IIIIQQIIIIQQI",
                *(self._load[name](), 0, len(frame), len(out)),
                *(ctypes.addressof(data), ctypes.addressof(out), 1, 0),
                *(len(context), 0, ctypes.addressof(context), 0),
                _CHECKSUM_COMPLETE if summed else 0,
            ),
            128,
        )
        if self._libc.syscall(_SYSCALL, _TEST_RUN, attribute, 128) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        verdict, size = struct.unpack_from("=i4xI", attribute, 4)
        return verdict, out.raw[:size]
