"""Programs that hang on a device itself, without queueing disciplines (tcx, kernel 6.6 and later).

Knows the commands of bpf(2) that attach, replace, list and detach them; knows nothing of what the programs do. One
that is held by a link stays as long as the link is pinned; one that is attached without a link stays until
it is detached. Both keep the maps that they use, and go with their device; a link of a device that is gone is defunct.
It costs a packet less than a classifier of tc does. Constants are those of linux/bpf.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from dysco.dataplane.bpf import call, object_info, pin, pinned, program_by_id, program_id, program_name
from dysco.errors import HostError

Direction = Literal["ingress", "egress"]
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
_PROG_QUERY: Final = 16
_LINK_CREATE: Final = 28
_LINK_UPDATE: Final = 29
_LINK_BY_ID: Final = 30
_LINK_DETACH: Final = 34
_TCX: Final[dict[Direction, int]] = {"ingress": 46, "egress": 47}
_REPLACE: Final = 1 << 2
_BEFORE: Final = 1 << 3
_ID: Final = 1 << 5
_MOST: Final = 64  # programs of one device and direction (BPF_MPROG_MAX)
_LOOPBACK: Final = 1  # in every namespace the first device


class Attached(NamedTuple):
    """Ids of a program on a device and of the link that holds it there; 0: none does."""

    program: int
    link: int


def is_here() -> bool:
    """Whether this kernel has tcx and lets us use it."""
    try:
        attached(_LOOPBACK, "ingress")
    except HostError:
        return False
    return True


def attached(ifindex: int, direction: Direction) -> list[int]:
    """The ids of the programs on a device of the calling thread's namespace. Raises HostError."""
    return [one.program for one in _attached(ifindex, direction)]


def _attached(ifindex: int, direction: Direction) -> list[Attached]:
    programs, links = (ctypes.c_uint32 * _MOST)(), (ctypes.c_uint32 * _MOST)()
    where = (ctypes.addressof(programs), _MOST, 0, ctypes.addressof(links))
    # struct { u32 target_ifindex, attach_type, query_flags, attach_flags; u64 prog_ids; u32 count; u64 prog_flags,
    # link_ids; }
    query = ctypes.create_string_buffer(
        struct.pack("=IIIIQI4xQQ", ifindex, _TCX[direction], 0, 0, *where), 128
    )
    try:
        call(_PROG_QUERY, query, "the programs of a device cannot be listed")
    except HostError:
        if ctypes.get_errno() in (errno.ENOENT, errno.ENODEV):  # there never was one, or no device any more
            return []
        raise
    count = struct.unpack_from("=I", query, 24)[0]
    return [Attached(*ids) for ids in zip(programs[:count], links[:count], strict=True)]


def own(ifindex: int, direction: Direction, name: str) -> Attached | None:
    """The program with this name on a device, or None. Names end after 15 characters, as in the kernel."""
    for one in _attached(ifindex, direction):
        try:
            descriptor = program_by_id(one.program)
        except HostError:
            continue  # it was detached meanwhile
        try:
            if program_name(descriptor) == name[:15]:
                return one
        finally:
            os.close(descriptor)
    return None


def attach(
    ifindex: int, direction: Direction, program: int, replaced: Attached | None, pinned_at: Path | None = None
) -> None:
    """Attach a program by its descriptor in place of another one, so that one of them is there always.

    pinned_at: where in a bpffs the link that holds it is pinned; None: it stays without a link, unless the one that it
    replaces has one. Raises HostError.
    """
    if replaced is not None and replaced.link:
        with _link(replaced.link) as link:
            # struct { u32 link_fd, new_prog_fd, flags; }
            call(_LINK_UPDATE, struct.pack("=III", link, program, 0), "the program cannot be replaced")
            if pinned_at is not None:
                pin(link, pinned_at)
    elif pinned_at is not None:
        _attach_link(ifindex, direction, program, replaced, pinned_at)
    else:
        _attach(ifindex, direction, program, replaced)


def _attach_link(
    ifindex: int, direction: Direction, program: int, replaced: Attached | None, pinned_at: Path
) -> None:
    """No link takes the place of a program without one; so for a moment, both are there."""
    before = (_BEFORE | _ID, replaced.program) if replaced is not None else (0, 0)
    # struct { u32 prog_fd, target_ifindex, attach_type, flags, relative_id; u64 expected_revision; }
    attribute = struct.pack("=IIIII4xQ", program, ifindex, _TCX[direction], *before, 0)
    link = call(_LINK_CREATE, attribute, "the program cannot be attached")
    try:
        pin(link, pinned_at)
    finally:
        os.close(link)
    if replaced is not None:
        detach(ifindex, direction, replaced)


def _attach(ifindex: int, direction: Direction, program: int, replaced: Attached | None) -> None:
    """If it is the same one, it stays: a host that has moved may come back to a device that it has left."""
    if replaced is not None and replaced.program == program_id(program):
        return
    old = program_by_id(replaced.program) if replaced is not None else 0
    try:
        flags = _REPLACE if old else 0
        # struct { u32 target_ifindex, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd; }
        attribute = struct.pack("=IIIII", ifindex, program, _TCX[direction], flags, old)
        call(_PROG_ATTACH, attribute, "the program cannot be attached")
    finally:
        if old:
            os.close(old)


def detach(ifindex: int, direction: Direction, one: Attached) -> None:
    """Detach a program; no error if it is gone. Raises HostError."""
    try:
        if one.link:
            with _link(one.link) as link:
                # The kernel takes its time with links whose last pin goes, not with this.
                call(_LINK_DETACH, struct.pack("=I", link), "the program cannot be detached")
            return
        descriptor = program_by_id(one.program)
    except HostError:
        if ctypes.get_errno() not in (errno.ENOENT, errno.ENOLINK):
            raise
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


def is_defunct(pinned_at: Path) -> bool:
    """Whether a link that is pinned there holds nothing any more: its device is gone. Raises HostError."""
    descriptor = pinned(pinned_at)
    try:
        return not struct.unpack_from("=I", object_info(descriptor), 16)[
            0
        ]  # struct bpf_link_info: tcx.ifindex
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _link(number: int) -> Iterator[int]:
    descriptor = call(_LINK_BY_ID, struct.pack("=I", number), f"link {number} is gone")
    try:
        yield descriptor
    finally:
        os.close(descriptor)
