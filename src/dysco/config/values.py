"""Values of host.toml: what one key may be, checked, with messages for people; and how a key is declared.

Knows no section. A validator raises ValueError; findings.py makes a finding of it.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dysco.config.findings import did_you_mean
from dysco.policy import MatchError, parse

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_DEVICE = re.compile(r"[^\s/:%]{1,15}")
_FINGERPRINT_BYTES: Final = 32
_SOCKET_PATH_LIMIT: Final = 107  # sun_path has 108 bytes with the final zero (unix(7))
ADAPTERS: Final = ("haproxy", "nginx-stream", "generic")


def option(
    default: Any = ...,
    *,
    doc: str,
    reload: Literal["live", "restart"] = "live",
    unit: str = "",
    **limits: Any,
) -> Any:
    """Declare one key: its default (none: it must be given), meaning, unit, and what a reload does."""
    extra: dict[str, Any] = {"reload": reload, "unit": unit}
    if default is ...:
        return Field(description=doc, json_schema_extra=extra, **limits)
    return Field(default=default, description=doc, json_schema_extra=extra, **limits)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name: 1 to 63 letters, digits, '_', '.' and '-', beginning with a letter, "
            f"digit or '_'"
        )
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value) or value in (".", ".."):
        raise ValueError(
            f"{value!r} is not a device name: 1 to 15 characters without blanks, '/', ':' and '%'"
        )
    return value


def _address(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{value!r}: an address with a zone cannot be reached from another host")
    for wrong, word in (
        (address.is_unspecified, "the unspecified address"),
        (address.is_loopback, "a loopback address"),
        (address.is_link_local, "a link-local address"),
        (address.is_multicast, "a multicast address"),
        (getattr(address, "ipv4_mapped", None) is not None, "an IPv4-mapped address (write it as IPv4)"),
    ):
        if wrong:
            raise ValueError(
                f"{value!r} is {word}: agents are reached by addresses that other hosts can route"
            )
    return address


def _fingerprint(value: str) -> str:
    digits = value.lower().removeprefix("sha256:").replace(":", "")
    if len(digits) != 2 * _FINGERPRINT_BYTES or set(digits) - set("0123456789abcdef"):
        raise ValueError(
            f"{value!r} is not a SHA-256 fingerprint: 64 hexadecimal digits, as `dysco keys show` prints"
        )
    return digits


def _socket(value: Path) -> Path:
    if len(str(value).encode()) > _SOCKET_PATH_LIMIT:
        raise ValueError(
            f"'{value}' is longer than the {_SOCKET_PATH_LIMIT} bytes that a Unix socket's path may have"
        )
    return value


def _path(value: object) -> object:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError(f"{value!r} is not a path")
        return Path(value)
    return value


def _range(value: object) -> object:
    if isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value):
        low, high = value
        if not 1024 <= low <= 65535 or not 1024 <= high <= 65535:
            raise ValueError(f"{value}: ports of subsessions lie between 1024 and 65535")
        if high - low < 1:
            raise ValueError(f"{value}: the first port must be below the last")
        return (low, high)
    if isinstance(value, list):
        raise ValueError(f"{value} is not a pair of ports such as [61000, 65535]")
    return value


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    try:
        if not separator or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        raise ValueError(f"{value!r} is not ADDRESS:PORT, such as '127.0.0.1:9416' or '[::1]:9416'") from None
    return value


def _python(value: str) -> str:
    source, separator, name = value.rpartition(":")
    if not separator or not source or not name.isidentifier():
        raise ValueError(f"{value!r} is neither 'package.module:Class' nor 'path/to/file.py:Class'")
    if not source.endswith(".py") and not all(part.isidentifier() for part in source.split(".")):
        raise ValueError(f"{value!r}: {source!r} is neither a module's name nor a file that ends in .py")
    return value


def _match(value: str) -> str:
    try:
        parse(value)
    except MatchError as error:
        raise ValueError(str(error)) from None
    return value


def _adapter(value: str) -> str:
    if ":" not in value and value not in ADAPTERS:
        words = ", ".join(map(repr, ADAPTERS))
        hint = did_you_mean(value, ADAPTERS)
        raise ValueError(f"{value!r} is not one of {words}, nor 'module:Class'{hint}")
    return value if value in ADAPTERS else _python(value)


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is no network such as 10.1.0.0/16: {error}") from None


def hop_table(value: object) -> object:
    if not isinstance(value, (str, dict)) or not value:
        raise ValueError("a hop is a peer, 'peer/box', an address, or { group = ... }")
    return {"to": value} if isinstance(value, str) else value


Name = Annotated[str, AfterValidator(_name)]
Device = Annotated[str, AfterValidator(_device)]
Address = Annotated[IPAddress, BeforeValidator(_address)]
Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
FilePath = Annotated[Path, BeforeValidator(_path)]
SocketPath = Annotated[Path, BeforeValidator(_path), AfterValidator(_socket)]
PortRange = Annotated[tuple[int, int], BeforeValidator(_range)]
Listen = Annotated[str, AfterValidator(_listen)]
Match = Annotated[str, AfterValidator(_match)]
BoolOrMatch = Annotated[
    bool | str, AfterValidator(lambda value: _match(value) if isinstance(value, str) else value)
]
PythonClass = Annotated[str, AfterValidator(_python)]
AdapterName = Annotated[str, AfterValidator(_adapter)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Devices = Annotated[tuple[Device, ...], Field(strict=False, min_length=1)]
Addresses = Annotated[tuple[Address, ...], Field(strict=False)]
Network = Annotated[str, AfterValidator(_network)]
Networks = Annotated[tuple[Network, ...], Field(strict=False)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Pick = Literal["hash", "least-sessions"]
Matching = Literal["tuple", "tag", "fingerprint", "api"]


class Section(BaseModel):
    """Base of all sections: frozen, strict, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
