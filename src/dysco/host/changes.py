"""What a change to the kernel is, and the changes of switches: sysctls, reserved ports, reverse-path filters.

Knows /proc/sys. Devices, rules, routes and classifiers are in links.py; when changes are made and undone,
and how they reach the disk, in transaction.py. Every change keeps the same contract:

    look     what stands there before, as JSON: written to the journal before anything is touched
    apply    makes it so; a second time does nothing more
    undo     puts back what `look` saw, where that is still ours to put back; says what it leaves and why

`undo` must bear a change that was never made (the journal is written first) and one that is undone already
(a crash in the middle of `down`). What somebody else has set meanwhile stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from dysco.errors import HostError
from dysco.host.netns import Kernel, prefix

State = dict[str, Any]
KINDS: dict[str, type[Change]] = {}

_CONF4 = "net/ipv4/conf"
_CONF6 = "net/ipv6/conf"


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """One change to one network namespace; None is the namespace of the agent."""

    netns: str | None = None
    # Fields that live only in this process (descriptors, callables) and are not needed to undo.
    _volatile: ClassVar[frozenset[str]] = frozenset()
    # Whether something is to be undone although the namespace is gone.
    outlives_namespace: ClassVar[bool] = False
    # Whether an agent that takes over keeps it, although its own plan has no such change.
    outlives_agent: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def record(self) -> State:
        """Give the change as JSON; two changes are the same if their records are equal."""
        names = (field.name for field in fields(self) if field.name not in self._volatile)
        return {"kind": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def show(self) -> str:
        """Give the change as a person would type it."""
        return prefix(self.netns) + self.command()

    @abstractmethod
    def command(self) -> str:
        """Give the change in the syntax of ip, tc or sysctl, without the namespace."""

    @abstractmethod
    def look(self, kernel: Kernel) -> State:
        """See what stands there now; raises HostError if the change cannot be made."""

    @abstractmethod
    def apply(self, kernel: Kernel, before: State) -> None:
        """Make the change if it is not made yet; raises HostError."""

    @abstractmethod
    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Put back what was there; give a sentence about what was left because somebody else changed it."""


def from_record(record: State) -> Change:
    """Make a change of its record; raises HostError for one that this version does not know."""
    values = dict(record)
    kind = KINDS.get(str(values.pop("kind", None)))
    if kind is None:
        raise HostError(f"the journal names a change that is not known here: {record}")
    try:
        return kind(**values)
    except TypeError:
        raise HostError(f"the journal describes a change wrongly: {record}") from None


def sysctl_name(key: str) -> str:
    """Give a sysctl's name for people: with dots, unless a device's name has dots itself (sysctl(8))."""
    return key if "." in key else key.replace("/", ".")


def _put_back(kernel: Kernel, key: str, ours: str, before: str) -> str | None:
    now = kernel.get(key)
    if now is None or now == before:
        return None
    if now != ours:
        return f"{sysctl_name(key)} is {now} now, no longer the {ours} that was set here: left as it is"
    kernel.set(key, before)
    return None


@dataclass(frozen=True, kw_only=True)
class SetSysctl(Change):
    """Set one value. `key` is its path under /proc/sys; an `optional` one that the kernel lacks stays out."""

    key: str
    value: str
    optional: bool = False

    def command(self) -> str:
        """Give the change in sysctl's syntax."""
        return f"sysctl -w {sysctl_name(self.key)}={self.value}"

    def look(self, kernel: Kernel) -> State:
        """See the old value."""
        value = kernel.get(self.key)
        if value is None and not self.optional:
            raise HostError(f"{self.command()}: this kernel has no such setting")
        return {"value": value}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Set the value where it differs."""
        now = kernel.get(self.key)
        if now is None and not self.optional:
            raise HostError(f"{self.command()}: this kernel has no such setting")
        if now is not None and now != self.value:
            kernel.set(self.key, self.value)

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Set the old value again."""
        if before["value"] is None:
            return None
        return _put_back(kernel, self.key, self.value, before["value"])


def _parse_ports(text: str) -> set[int]:
    ports: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        ports.update(range(int(low), int(high or low) + 1))
    return ports


def _format_ports(ports: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for port in sorted(ports):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


@dataclass(frozen=True, kw_only=True)
class ReservePorts(Change):
    """Keep the kernel from choosing ports of [first, last] for its own connections."""

    first: int
    last: int
    _key: ClassVar[str] = "net/ipv4/ip_local_reserved_ports"

    def command(self) -> str:
        """Give the change in sysctl's syntax; what is reserved already stays beside it."""
        return f"sysctl -w {sysctl_name(self._key)}={self.first}-{self.last}   # beside what is reserved"

    def look(self, kernel: Kernel) -> State:
        """See what is reserved."""
        return {"value": kernel.get(self._key) or ""}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Reserve the ports."""
        now = _parse_ports(kernel.get(self._key) or "")
        wanted = now | set(range(self.first, self.last + 1))
        if wanted != now:
            kernel.set(self._key, _format_ports(wanted))

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Take out what was not reserved before; what others added since stays."""
        now = _parse_ports(kernel.get(self._key) or "")
        rest = now - (set(range(self.first, self.last + 1)) - _parse_ports(before["value"]))
        if rest != now:
            kernel.set(self._key, _format_ports(rest))
        return None


@dataclass(frozen=True, kw_only=True)
class ReversePathPerDevice(Change):
    """Check reverse paths by device instead of everywhere, so that our own devices can go without.

    The kernel takes the larger of `all` and the device's value (ip-sysctl: rp_filter), and with a value
    other than 0 it drops all that enters by a device without addresses. So the value of `all` moves to every
    device that has a smaller one, and to `default`; what each of them does stays the same.
    """

    def command(self) -> str:
        """Give the change in sysctl's syntax."""
        return "sysctl -w net.ipv4.conf.all.rp_filter=0   # its value moves to each net.ipv4.conf.*.rp_filter"

    def look(self, kernel: Kernel) -> State:
        """See the values of all devices."""
        return {"all": kernel.get(f"{_CONF4}/all/rp_filter"), "each": kernel.each(_CONF4, "rp_filter")}

    def apply(self, kernel: Kernel, before: State) -> None:
        """Raise the devices, then lower `all`, so that nothing is unchecked between."""
        if before["all"] in (None, "0") or kernel.get(f"{_CONF4}/all/rp_filter") == "0":
            return
        for device in before["each"]:
            now = kernel.get(f"{_CONF4}/{device}/rp_filter")
            if now is not None and int(now) < int(before["all"]):
                kernel.set(f"{_CONF4}/{device}/rp_filter", before["all"])
        kernel.set(f"{_CONF4}/all/rp_filter", "0")

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Raise `all` again, then lower the devices."""
        if before["all"] in (None, "0"):
            return None
        kept = [_put_back(kernel, f"{_CONF4}/all/rp_filter", "0", before["all"])]
        for device, value in before["each"].items():
            if int(value) < int(before["all"]):
                kept.append(_put_back(kernel, f"{_CONF4}/{device}/rp_filter", before["all"], value))
        return "; ".join(filter(None, kept)) or None


@dataclass(frozen=True, kw_only=True)
class ForwardIPv6(Change):
    """Forward IPv6 on all devices: for kernels before 6.17, which have no force_forwarding for one device.

    Forwarding ends the acceptance of router advertisements unless accept_ra is 2 (ip-sysctl: accept_ra), so
    that a host would lose its default route: 1 becomes 2 first.
    """

    def command(self) -> str:
        """Give the change in sysctl's syntax."""
        return (
            "sysctl -w net.ipv6.conf.all.forwarding=1   # after net.ipv6.conf.*.accept_ra=2 wherever it is 1"
        )

    def look(self, kernel: Kernel) -> State:
        """See the values of all devices."""
        return {
            "all": kernel.get(f"{_CONF6}/all/forwarding"),
            "forwarding": kernel.each(_CONF6, "forwarding"),
            "accept_ra": kernel.each(_CONF6, "accept_ra"),
        }

    def apply(self, kernel: Kernel, before: State) -> None:
        """Keep router advertisements, then forward."""
        if before["all"] != "0" or kernel.get(f"{_CONF6}/all/forwarding") != "0":
            return
        for device, value in before["accept_ra"].items():
            if value == "1" and kernel.get(f"{_CONF6}/{device}/accept_ra") == "1":
                kernel.set(f"{_CONF6}/{device}/accept_ra", "2")
        kernel.set(f"{_CONF6}/all/forwarding", "1")

    def undo(self, kernel: Kernel, before: State) -> str | None:
        """Stop forwarding, except where it was on before; the kernel sets every device when `all` is set."""
        if before["all"] != "0":
            return None
        kept = [_put_back(kernel, f"{_CONF6}/all/forwarding", "1", "0")]
        for device, value in before["forwarding"].items():
            if value == "1" and kernel.get(f"{_CONF6}/{device}/forwarding") == "0":
                kernel.set(f"{_CONF6}/{device}/forwarding", "1")
        for device, value in before["accept_ra"].items():
            if value == "1":
                kept.append(_put_back(kernel, f"{_CONF6}/{device}/accept_ra", "2", "1"))
        return "; ".join(filter(None, kept)) or None
