"""A TUN device that the agent reads and writes.

Opened with pytun. With offload, each packet has a virtio-net header before it, may be up to 64 KiB and may have a
partial checksum (linux/if_tun.h); without, packets are plain IP packets of at most the MTU. The device itself is
made, configured and deleted by `dysco.host`; opening attaches to it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

import pytun

from dysco.errors import HostError, PermissionDeniedError
from dysco.wire.vnet import HEADER_LEN

_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_CSUM: Final = 0x01
_TSO4: Final = 0x02
_TSO6: Final = 0x04
_TSO_ECN: Final = 0x08
_OFFLOADS: Final = (_CSUM, _TSO4, _TSO6, _TSO_ECN)


class Tun:
    """An open TUN device; `offloads` says which flags the kernel took (0: plain packets)."""

    def __init__(self, name: str, *, offload: bool) -> None:
        """Attach to a device of this thread's network namespace. Raises HostError, PermissionDeniedError."""
        flags = pytun.IFF_TUN | pytun.IFF_NO_PI | (pytun.IFF_VNET_HDR if offload else 0)
        try:
            self._device = pytun.TunTapDevice(name=name, flags=flags)
        except (pytun.Error, OSError) as error:
            kind = PermissionDeniedError if "not permitted" in str(error) else HostError
            raise kind(f"the device {name} cannot be opened: {error}") from None
        self.name = name
        self.fd: int = self._device.fileno()
        self.offloads = 0
        os.set_blocking(self.fd, False)
        os.set_inheritable(self.fd, False)
        try:
            if offload:
                fcntl.ioctl(self.fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_LEN))
                self.offloads = self._negotiate()
            else:
                # A persistent device remembers what an earlier agent had switched on.
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, 0)
        except OSError as error:
            self.close()
            raise HostError(f"the device {name} cannot be set up: {error.strerror}") from None
        except HostError:
            self.close()
            raise

    @property
    def has_offload(self) -> bool:
        """Whether packets have a virtio-net header."""
        return self.offloads != 0

    def close(self) -> None:
        """Detach; a persistent device stays, and what is sent to it vanishes."""
        self._device.close()

    def _negotiate(self) -> int:
        """Switch on what the kernel allows, flag by flag; segmentation needs checksums."""
        taken = 0
        for flag in _OFFLOADS:
            try:
                fcntl.ioctl(self.fd, _TUNSETOFFLOAD, taken | flag)
            except OSError:
                if flag == _CSUM:
                    raise HostError(
                        f"{self.name}: the kernel refuses checksum offload; set tun.offload = false"
                    ) from None
                continue
            taken |= flag
        return taken
