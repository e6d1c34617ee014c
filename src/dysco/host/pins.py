"""The bpffs of an agent, where its maps, programs and links are pinned and outlive it.

    RUN DIRECTORY/bpf/maps/flows_4     programs/ingress     links/eth0-ingress

Knows mount namespaces. `ip netns exec` makes one that ends with the last process in it, and with it would end what is
mounted there and each link that is pinned there alone. So the bpffs is mounted where process 1 of the machine stands,
and reached by /proc/1/root where an agent does not see it. In a container process 1 may end before the network does:
nothing is mounted there, but what somebody has mounted is used. Without a bpffs programs are attached without links,
and an agent works as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote

from dysco.dataplane import tcx
from dysco.dataplane.steer import MAPS_IN, PROGRAMS_IN
from dysco.errors import HostError
from dysco.host.changes import Change, State
from dysco.host.netns import Kernel, run_in

FIRST: Final = Path("/proc/1")
LINKS_IN: Final = "links"
_ROOMS: Final = (LINKS_IN, PROGRAMS_IN, MAPS_IN)
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_OF_THE_MACHINE: Final = 0xEFFFFFFC  # PID_NS_INIT_INO, linux/nsfs.h
_ESCAPED: Final = {ord(one): f"\\{ord(one):03o}" for one in " \t\n\\"}  # in mountinfo, proc(5)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# sched.h, sys/mount.h
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000
_MNT_DETACH: Final = 2


def directory_of(run_directory: Path) -> Path:
    """Where the bpffs of an agent is mounted: by a path that means the same in every mount namespace."""
    return run_directory.resolve() / "bpf"


def reach(directory: Path) -> Path | None:
    """By which path the bpffs of a directory is reached; None: there is none that process 1 has, too."""
    devices = _devices(directory)
    for path in (directory, FIRST / "root" / directory.relative_to("/")) if devices else ():
        with contextlib.suppress(OSError):
            device = path.stat().st_dev
            if f"{os.major(device)}:{os.minor(device)}" in devices:
                return path
    return None


def fault(directory: Path) -> str | None:
    """Say why no bpffs can be mounted at a directory that would outlive this process; None if one can, or is there."""
    if _devices(directory):
        return None
    if _PID_NAMESPACE.stat().st_ino != _OF_THE_MACHINE:
        return "this is a container, and what is mounted here ends with it"
    try:
        if not _is_with_first():
            there = next(path for path in directory.parents if path.exists())
            if not there.samefile(FIRST / "root" / there.relative_to("/")):
                return f"process 1 has another directory {there} than this one"
        _where_first_stands(_try)
    except OSError as error:
        return f"a bpffs cannot be mounted where process 1 stands: {error.strerror}"
    return None


def link_name(netns: str | None, device: str, direction: str) -> str:
    """The file of a link: of no other one, and one that a bpffs takes, which wants no dots."""
    where = device if netns is None else f"{netns}:{device}"
    return quote(f"{where}-{direction}", safe=":@").replace(".", "%2E")


@dataclass(frozen=True, kw_only=True)
class MountBpf(Change):
    """Mount a bpffs with rooms for maps, programs and links; one that is there already is taken as it is."""

    directory: str
    outlives_namespace: ClassVar[bool] = True

    def command(self) -> str:
        """Give the change in mount's syntax."""
        return f"mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf {self.directory}"

    def look(self, kernel: Kernel) -> State:
        """See whether somebody else has mounted one."""
        return {"there": bool(_devices(Path(self.directory)))}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Mount it, and unpin what an earlier agent has left and nobody needs."""
        try:
            if not _devices(Path(self.directory)):
                _where_first_stands(lambda: _make(self.directory))
            place = reach(Path(self.directory))
            if place is None:
                return  # an agent before us could go there; its links stay, and hold our programs then
            for room in _ROOMS:
                (place / room).mkdir(exist_ok=True)
            for link in (place / LINKS_IN).iterdir():
                if tcx.is_defunct(link):
                    link.unlink()
            for program in (place / PROGRAMS_IN).iterdir():
                program.unlink()
        except OSError as error:
            raise HostError(f"{self.show()}: {error.strerror}") from None

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Unpin everything, and unmount it unless it was there before.

        Without its directory it is mounted nowhere any more, also where this process cannot look.
        """
        try:
            place = reach(Path(self.directory))
            if place is not None:
                for room in _ROOMS:
                    _empty(place / room)
            if before["there"]:
                return None
            while os.path.ismount(self.directory):
                _succeed(_LIBC.umount2(os.fsencode(self.directory), _MNT_DETACH))
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self.directory)
        except OSError as error:
            return f"{self.directory} stays: {error.strerror}"
        return None


def _empty(room: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for name in room.iterdir():
            name.unlink(missing_ok=True)
        room.rmdir()


def _devices(directory: Path) -> set[str]:
    """The numbers of the bpffs that process 1 has at a directory."""
    name = str(directory).translate(_ESCAPED)
    return {fields[2] for fields in _mounts(FIRST) if (fields[4], fields[-3]) == (name, "bpf")}


def _mounts(process: Path) -> list[list[str]]:
    """The mounts of a process: proc(5), /proc/pid/mountinfo; none if it cannot be looked at."""
    try:
        lines = (process / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [line.split(" ") for line in lines]


def _is_with_first() -> bool:
    """Whether we stand where process 1 does: each mount of a namespace has a number that no other one has."""
    numbers = ({fields[0] for fields in _mounts(process)} for process in (Path("/proc/self"), FIRST))
    return not set.isdisjoint(*numbers)


def _where_first_stands(work: Callable[[], None]) -> None:
    """Do something in the mount namespace of process 1, on a thread of its own. Raises OSError."""

    def body() -> None:
        if not _is_with_first():
            descriptor = os.open(FIRST / "ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _succeed(_LIBC.unshare(_CLONE_FS))  # who shares its root with other threads is not let in
                _succeed(_LIBC.setns(descriptor, _CLONE_NEWNS))
            finally:
                os.close(descriptor)
        work()

    run_in(None, body)


def _make(directory: str) -> None:
    os.makedirs(directory, 0o755, exist_ok=True)
    _mount(directory)


def _mount(directory: str) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _succeed(_LIBC.mount(b"bpf", os.fsencode(directory), b"bpf", flags, b"mode=700"))


def _try() -> None:
    """Mount one where nobody else sees it, and it ends with the thread."""
    _succeed(_LIBC.unshare(_CLONE_NEWNS))
    _succeed(_LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    _mount("/proc")


def _succeed(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
