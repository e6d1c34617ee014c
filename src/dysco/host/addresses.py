"""Addresses of a host: on which device one is, and the change that keeps one after its device has lost it."""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dysco.errors import HostError
from dysco.host.changes import Change, State
from dysco.host.netns import Kernel

_IFF_UP: Final = 0x1  # linux/if.h
# linux/if_addr.h: no duplicate address detection, no route to a network that is not there.
_IFA_F_NODAD: Final = 0x02
_IFA_F_NOPREFIXROUTE: Final = 0x200


def device_of(address: bytes, keeper: str) -> str:
    """The device by which others reach an address, in this thread's namespace; HostError if none has it.

    keeper: the device of ours that keeps the addresses that are left. To one of them the host may come back, and then
    two devices have it.
    """
    with IPRoute() as ip:
        links = {int(link["index"]): link for link in ip.get_links()}
        found = [links[entry["index"]] for entry in ip.get_addr() if _packed(entry) == address]
        names = [str(link.get_attr("IFLA_IFNAME")) for link in sorted(found, key=_is_down)]
    name = next((name for name in names if name != keeper), None)
    if name is None:
        raise HostError(f"no device here has the address {ipaddress.ip_address(address)}")
    return name


def _is_down(link: Any) -> bool:
    return not link["flags"] & _IFF_UP


@dataclass(frozen=True, kw_only=True)
class KeepAddress(Change):
    """Let a device of ours have an address, alone, so that sockets that use it can go on.

    They still do when the agent has ended without a word and another one takes its sessions up.
    """

    outlives_agent: ClassVar[bool] = True
    device: str
    address: str

    def command(self) -> str:
        """Give the change in ip's syntax."""
        return f"ip address add {self.address}/{self._length} dev {self.device} noprefixroute"

    @property
    def _length(self) -> int:
        return ipaddress.ip_address(self.address).max_prefixlen

    def look(self, kernel: Kernel) -> State:
        """See whether the device has it."""
        return {"there": self._is_there(kernel)}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Add it."""
        if not self._is_there(kernel):
            flags = _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE
            self._change(kernel, "add", flags=flags, IFA_FLAGS=flags)

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Take it away, unless it was there before."""
        if not before.get("there") and self._is_there(kernel):
            self._change(kernel, "del")
        return None

    def _change(self, kernel: Kernel, what: str, **more: Any) -> None:
        index = kernel.index(self.device)
        if index is None:
            raise HostError(f"{self.show()}: there is no device {self.device}")
        try:
            kernel.ip.addr(what, index=index, address=self.address, prefixlen=self._length, **more)
        except NetlinkError as error:
            if error.code not in (errno.EEXIST, errno.EADDRNOTAVAIL):
                raise HostError(f"{self.show()}: {error}") from None

    def _is_there(self, kernel: Kernel) -> bool:
        index, wanted = kernel.index(self.device), ipaddress.ip_address(self.address).packed
        return index is not None and any(_packed(one) == wanted for one in kernel.ip.get_addr(index=index))


def _packed(entry: Any) -> bytes:
    text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
    return ipaddress.ip_address(text).packed
