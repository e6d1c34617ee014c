"""Programs that hang on a device itself, without queueing disciplines (tcx, kernel 6.6 and later).

Knows the commands of bpf(2) that attach, replace, list and detach them; knows nothing of what the programs do. One
that is attached so stays until it is detached or its device goes, with the maps that it uses: no link, no pin and
no bpffs is needed for it to outlive its agent. It costs a packet less than a classifier of tc does.
Constants are those of linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, Literal

from dysco.dataplane.bpf import call, program_by_id, program_id, program_name
from dysco.errors import HostError

Direction = Literal["ingress", "egress"]
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
_PROG_QUERY: Final = 16
_TCX: Final[dict[Direction, int]] = {"ingress": 46, "egress": 47}
_REPLACE: Final = 1 << 2
_MOST: Final = 64  # programs of one device and direction (BPF_MPROG_MAX)
_LOOPBACK: Final = 1  # in every namespace the first device


def is_here() -> bool:
    """Whether this kernel has tcx and lets us use it."""
    try:
        attached(_LOOPBACK, "ingress")
    except HostError:
        return False
    return True


def attached(ifindex: int, direction: Direction) -> list[int]:
    """The ids of the programs on a device of the calling thread's namespace. Raises HostError."""
    ids = (ctypes.c_uint32 * _MOST)()
    # struct { u32 target_ifindex, attach_type, query_flags, attach_flags; u64 prog_ids; u32 count; }
    query = ctypes.create_string_buffer(
        struct.pack("=IIIIQI", ifindex, _TCX[direction], 0, 0, ctypes.addressof(ids), _MOST), 128
    )
    try:
        call(_PROG_QUERY, query, "the programs of a device cannot be listed")
    except HostError:
        if ctypes.get_errno() in (errno.ENOENT, errno.ENODEV):  # there never was one, or no device any more
            return []
        raise
    return list(ids[: struct.unpack_from("=I", query, 24)[0]])


def own(ifindex: int, direction: Direction, name: str) -> int | None:
    """The id of the program with this name on a device, or None. Names end after 15 characters, as in the kernel."""
    for number in attached(ifindex, direction):
        try:
            descriptor = program_by_id(number)
        except HostError:
            continue  # it was detached meanwhile
        try:
            if program_name(descriptor) == name[:15]:
                return number
        finally:
            os.close(descriptor)
    return None


def attach(ifindex: int, direction: Direction, program: int, replaced: int | None) -> None:
    """Attach a program by its descriptor, in one step in place of the one with this id. Raises HostError.

    If it is the same one, it stays: a host that has moved may come back to a device that it has left.
    """
    if replaced == program_id(program):
        return
    old = program_by_id(replaced) if replaced is not None else 0
    try:
        flags = _REPLACE if old else 0
        # struct { u32 target_ifindex, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd; }
        attribute = struct.pack("=IIIII", ifindex, program, _TCX[direction], flags, old)
        call(_PROG_ATTACH, attribute, "the program cannot be attached")
    finally:
        if old:
            os.close(old)


def detach(ifindex: int, direction: Direction, number: int) -> None:
    """Detach the program with this id; no error if it is gone. Raises HostError."""
    try:
        descriptor = program_by_id(number)
    except HostError:
        return
    try:
        call(
            _PROG_DETACH,
            struct.pack("=IIIII", ifindex, descriptor, _TCX[direction], 0, 0),
            "the program cannot be detached",
        )
    except HostError:
        if ctypes.get_errno() not in (errno.ENOENT, errno.ENODEV):
            raise
    finally:
        os.close(descriptor)
