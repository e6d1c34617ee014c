"""Network namespaces: who they are, how to find them again, and how to work inside of one.

Knows setns(2), /run/netns and the kernel's cookies. Must not know what is done inside. Only a thread is
moved into a namespace, never the process: the caller's own thread, its event loop and its view of /sys stay
where they are, and everything else that /proc/sys/net shows or a socket reaches is that of the namespace.

A name can be given to another namespace later, and an inode number can be used again; the cookie
(SO_NETNS_COOKIE, Linux 5.14) is unique until the next boot, so that a journal says by cookies whom it speaks
of.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from pyroute2 import IPRoute

from dysco.errors import HostError, PermissionDeniedError

P = ParamSpec("P")
T = TypeVar("T")

NAMED: Final = Path("/run/netns")  # where `ip netns` keeps its names
_OWN: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000  # sched.h
_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def path_of(netns: str) -> Path:
    """Give the file of a namespace that is named as in `ip netns`, or by a path."""
    return Path(netns) if "/" in netns else NAMED / netns


def prefix(netns: str | None) -> str:
    """Give what a person writes before a command to run it there; empty for the own namespace."""
    if netns is None:
        return ""
    return f"nsenter --net={netns} " if "/" in netns else f"ip netns exec {netns} "


def cookie() -> int:
    """Give the cookie of the calling thread's namespace; raises HostError on a kernel without them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError as error:
            raise HostError(
                f"the kernel does not tell a network namespace's cookie ({error.strerror}): "
                "Linux 5.14 or newer is needed"
            ) from None


def enter(path: Path | str) -> None:
    """Move the calling thread into a namespace; raises HostError, PermissionDeniedError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HostError(f"{path}: there is no such network namespace (see `ip netns list`)") from None
    except PermissionError:
        raise PermissionDeniedError(f"{path}: permission denied; root is needed") from None
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from None
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise PermissionDeniedError(f"{path}: CAP_SYS_ADMIN is needed to enter a network namespace")
            raise HostError(f"{path}: not a network namespace ({os.strerror(number)})")
    finally:
        os.close(descriptor)


def run_in(netns: str | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a namespace, on a thread of its own, and give its result or raise its error.

    None is the caller's namespace. Sockets, TUN descriptors and child processes made there belong to it.
    """
    answer: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            if netns is not None:
                enter(path_of(netns))
            answer.append(work(*args, **kwargs))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name=f"dysco-netns-{netns}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]


class Kernel:
    """One namespace's kernel as changes see it: a netlink socket, sysctls, a cookie.

    Made and used on a thread that stands in the namespace.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.cookie = cookie()
        self.inode = os.stat(_OWN).st_ino
        self._route: Any = None

    @property
    def ip(self) -> Any:
        """The netlink socket, opened when it is first needed."""
        if self._route is None:
            self._route = IPRoute()
        return self._route

    def close(self) -> None:
        """Close the netlink socket."""
        if self._route is not None:
            self._route.close()
            self._route = None

    def index(self, device: str) -> int | None:
        """Give a device's number, or None if there is no such device."""
        try:
            return socket.if_nametoindex(device)
        except OSError:
            return None

    def get(self, key: str) -> str | None:
        """Read a sysctl named with slashes (`net/ipv4/ip_forward`); None if it is unknown."""
        try:
            return " ".join((Path("/proc/sys") / key).read_text().split())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise HostError(f"/proc/sys/{key}: {error.strerror}") from None

    def each(self, root: str, key: str) -> dict[str, str]:
        """Read one key of every device below a sysctl directory, `default` too, `all` not."""
        base = Path("/proc/sys") / root
        names = sorted(path.name for path in base.iterdir()) if base.is_dir() else []
        values = {name: self.get(f"{root}/{name}/{key}") for name in names if name != "all"}
        return {name: value for name, value in values.items() if value is not None}

    def set(self, key: str, value: str) -> None:
        """Write a sysctl; raises HostError, PermissionDeniedError."""
        path = Path("/proc/sys") / key
        try:
            path.write_text(value + "\n")
        except PermissionError:
            raise PermissionDeniedError(f"{path}: permission denied; CAP_NET_ADMIN is needed") from None
        except OSError as error:
            raise HostError(f"{path}: {value!r}: {error.strerror}") from None


class Namespace:
    """A worker that stands in one namespace; `call` runs a function there with its Kernel."""

    def __init__(self, netns: str | None) -> None:
        self.netns = netns
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"dysco-host-{netns or 'own'}")
        try:
            self._kernel = self._pool.submit(self._enter).result()
        except BaseException:
            self._pool.shutdown()
            raise

    def _enter(self) -> Kernel:
        if self.netns is not None:
            enter(path_of(self.netns))
        return Kernel(self.netns)

    @property
    def cookie(self) -> int:
        """The cookie of the namespace."""
        return self._kernel.cookie

    @property
    def inode(self) -> int:
        """The inode number of the namespace, by which it can be found again."""
        return self._kernel.inode

    def call(self, work: Callable[[Kernel], T]) -> T:
        """Run `work` there, give its result or raise its error."""
        return self._pool.submit(work, self._kernel).result()

    def close(self) -> None:
        """Leave the namespace."""
        self._pool.submit(self._kernel.close).result()
        self._pool.shutdown()


def find(wanted: int, inode: int, hint: str | None) -> Namespace | None:
    """Enter the namespace with this cookie again: the own, the hinted, any with a name or a process.

    Give None if it is gone. The caller closes it.
    """
    for candidate in _candidates(inode, hint):
        try:
            found = Namespace(candidate)
        except HostError:
            continue
        if found.cookie == wanted:
            return found
        found.close()
    return None


def _candidates(inode: int, hint: str | None) -> Iterator[str | None]:
    yield None
    if hint is not None:
        yield hint
    for path in (*NAMED.glob("*"), *Path("/proc").glob("[0-9]*/ns/net")):
        try:
            if path.stat().st_ino == inode:
                yield str(path)
        except OSError:
            continue
