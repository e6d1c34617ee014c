"""host.toml as pydantic models: every key with unit, default, meaning, and what a reload does.

Knows what one value may be; what values must be together is in checks.py, how errors read in findings.py, the
reference page in reference.py. All models are frozen and strict: a quoted number is not a number.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dysco.policy import MatchError, parse

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_DEVICE = re.compile(r"[^\s/:%]{1,15}")
_FINGERPRINT_BYTES: Final = 32
_SOCKET_PATH_LIMIT: Final = 107  # sun_path has 108 bytes with the final zero (unix(7))


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


def _hop(value: object) -> object:
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
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]
Devices = Annotated[tuple[Device, ...], Field(strict=False, min_length=1)]
Addresses = Annotated[tuple[Address, ...], Field(strict=False)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Pick = Literal["hash", "least-sessions"]
Matching = Literal["tuple", "tag", "fingerprint", "api"]


class Section(BaseModel):
    """Base of all sections: frozen, strict, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Agent(Section):
    """This agent: its name, where it is reached, and how it runs."""

    name: Name = option(
        doc="Name of this agent; peers know it by this name, and its certificate carries it.",
        reload="restart",
    )
    addresses: Addresses = option(
        (),
        doc="Own underlay addresses, IPv4 and IPv6. Empty: the global addresses of the underlay devices.",
        reload="restart",
    )
    underlay: Devices = option(
        ("eth0",),
        doc="Devices by which other hosts are reached; sessions are captured there.",
        reload="restart",
    )
    control_port: int = option(
        2016,
        doc="UDP port on which agents talk to each other; the same on all agents.",
        reload="restart",
        ge=1,
        le=65535,
    )
    port_range: PortRange = option(
        (61000, 65535),
        doc="First and last TCP port reserved for subsessions, outside of the kernel's ephemeral range.",
        reload="restart",
    )
    run_directory: FilePath | None = option(
        None, doc="Where the journals are kept. Default: /run/dysco/NAME.", reload="restart"
    )
    socket: SocketPath | None = option(
        None, doc="Control socket. Default: /run/dysco/NAME.sock.", reload="restart"
    )
    loop: Literal["uvloop", "asyncio"] = option("uvloop", doc="Event loop.", reload="restart")
    on_stop: Literal["keep", "reset"] = option(
        "reset",
        doc=(
            "What becomes of established sessions when the agent is told to stop. `reset`: both ends of "
            "every session "
            "get a reset, and everything in the kernel is undone; new sessions then go without a chain. "
            "`keep`: "
            "devices, steering and the session journal stay; what the kernel rewrites goes on, other packets of "
            "chained sessions, and new sessions that a policy matches, wait or vanish until an agent starts here "
            "again (`dysco tun down` ends it for good)."
        ),
    )
    log_format: Literal["text", "json"] = option(
        "text", doc="Lines for people, or one JSON object a line.", reload="restart"
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", doc="Least severity that is logged.", reload="restart"
    )
    metrics: Listen | None = option(
        None,
        doc="Address and port that serve metrics in Prometheus' text format. Default: none, only `dysco "
        "metrics`.",
        reload="restart",
    )


class Tun(Section):
    """The two TUN devices of the agent."""

    session: Device = option(
        "dysco0", doc="Device on which captured session packets arrive.", reload="restart"
    )
    underlay: Device = option("dysco1", doc="Device for packets of subsessions.", reload="restart")
    mtu: int | None = option(
        None,
        doc="MTU of both devices. Default: the smallest MTU of the underlay devices.",
        unit="bytes",
        reload="restart",
        ge=576,
        le=65535,
    )
    offload: bool | Literal["auto"] = option(
        "auto",
        doc=(
            "Segmentation and checksum offload (IFF_VNET_HDR). `auto`: if the kernel allows it; `true`: "
            "refuse to "
            "start without; `false`: one packet a read."
        ),
        reload="restart",
    )


class Dataplane(Section):
    """Who moves the packets of established sessions."""

    mode: Literal["auto", "ebpf", "tun"] = option(
        "auto",
        doc=(
            "`ebpf`: programs in the kernel rewrite them, the agent sees what begins and ends sessions and what a "
            "Python box or a box in another namespace handles, and does not start where the kernel cannot; `tun`: the "
            "agent rewrites all of them; `auto`: `ebpf` if a test at start shows that it works here, else `tun`. "
            "`dysco tun status` says which is in use, and why."
        ),
        reload="restart",
    )


class Keys(Section):
    """How agents prove who they are; `certificate` and `key` must be given."""

    certificate: FilePath | None = option(
        None,
        doc="Own certificate (PEM), as `dysco keys issue` writes it.",
        reload="restart",
    )
    key: FilePath | None = option(None, doc="Private key of the certificate (PEM).", reload="restart")
    ca: FilePath | None = option(
        None,
        doc="Certificate of the CA that signed the peers' certificates. Not needed if every peer has a "
        "`fingerprint`.",
        reload="restart",
    )


class Peer(Section):
    """Another agent. Agents that are not listed get no answer."""

    name: Name = option(doc="Name of the peer, as in its certificate.")
    addresses: Addresses = option(doc="Its underlay addresses, IPv4, IPv6 or both.", min_length=1)
    mtu: int | None = option(
        None,
        doc="Largest packet that reaches this peer. Default: found by probing.",
        unit="bytes",
        ge=576,
        le=65535,
    )
    fingerprint: Fingerprint | None = option(
        None, doc="SHA-256 of its certificate in hexadecimal; then the CA is not asked about this peer."
    )
    accept: bool = option(
        True,
        doc="Whether chains that come from this peer are accepted here, passing through or ending. "
        "`false`: this host only sends to it.",
    )
    next_hops: Names | None = option(
        None,
        doc="Peers to which chains that come from this peer may go on from here; with `[]` they may only "
        "end here. "
        "Default: all peers of this file.",
    )
    may_use: Match | None = option(
        None,
        doc=(
            "Sessions that this peer may have sent on natively from here (`egress` of `native` or `nat`), "
            "in the "
            "language of `match`, such as `dst net 10.20.0.0/16 and dst port 80 or 443`. Default: none."
        ),
    )
    may_reconfigure: BoolOrMatch = option(
        True,
        doc=(
            "Whether this peer may have the chains of live sessions changed here: of all (`true`), of none, or of "
            "those that an expression matches, in the language of `match`. A change needs the consent of each host "
            "of the segment that it replaces."
        ),
    )


class Box(Section):
    """A middlebox that this host runs."""

    name: Name = option(doc="Name of the box; other agents' policies say `peer/box`.")
    kind: Literal["kernel", "namespace", "packet", "stream", "proxy"] = option(
        doc=(
            "`kernel`: forwarding in the agent's own network namespace (nftables, conntrack). `namespace`: "
            "a network "
            "namespace of its own with a pair of TUN devices. `packet`, `stream`: a Python class that sees "
            "packets, or "
            "the bytes of the stream. `proxy`: an unmodified program here that ends the session and opens "
            "another one."
        ),
        reload="restart",
    )
    namespace: str | None = option(
        None,
        doc="Network namespace of the box: a name as in `ip netns`, or a path such as /proc/PID/ns/net. "
        "For `namespace` only, and needed there.",
        reload="restart",
        min_length=1,
    )
    left: Device = option(
        "dysco-left",
        doc="TUN device in that namespace by which packets from the left enter.",
        reload="restart",
    )
    right: Device = option(
        "dysco-right", doc="TUN device in that namespace toward the right.", reload="restart"
    )
    python: PythonClass | None = option(
        None,
        doc="Class of a `packet` or `stream` box: `package.module:Class`, or `file.py:Class`, a path "
        "relative to this "
        "file. Needed there unless a program attaches through the API.",
        reload="restart",
    )
    changes_tuple: bool = option(
        False, doc="Whether the box changes addresses or ports (NAT, load balancer).", reload="restart"
    )
    match: Annotated[tuple[Matching, ...], Field(strict=False, min_length=1)] | None = option(
        None,
        doc=(
            "How a SYN that leaves the box is recognised, tried in this order: the same five-tuple "
            "(`tuple`), an inserted "
            "TCP option (`tag`), the same numbers and options (`fingerprint`), what the box said (`api`). "
            "Default: "
            "`tuple`; for a box that changes tuples `tag`, then `fingerprint`."
        ),
        reload="restart",
    )
    mandatory: bool = option(
        False,
        doc="Whether live sessions must not lose this box: it may be replaced in their chains, but not taken out.",
    )
    state: Literal["none", "conntrack", "command", "python"] = option(
        "none",
        doc=(
            "How the state of a live session goes to another host when this box is replaced there. `none`: not at all. "
            "`conntrack`: the kernel's entry of the session, for `kernel` and `namespace`. `command`: by "
            "`state_command`. `python`: by `export_state` and `import_state` of the class, for `packet` and `stream`."
        ),
        reload="restart",
    )
    state_command: Strings = option(
        (),
        doc=(
            "Program and arguments that export and import state, run without a shell in the agent's namespace: JSON on "
            'standard input and output. An absolute path. For `state = "command"`, and needed there.'
        ),
        reload="restart",
    )
    state_timeout: Seconds = option(
        2.0, unit="s", doc="The command is killed when it takes longer.", reload="restart"
    )
    state_limit: int = option(
        262_144,
        doc="State of one session that is larger is neither sent nor taken.",
        unit="bytes",
        reload="restart",
        ge=1,
        le=262_144,
    )
    default: bool = option(
        False,
        doc="The box that a hop means which names only this host. At most one; if none is marked, the first.",
        reload="restart",
    )

    @property
    def matching(self) -> tuple[Matching, ...]:
        """How a SYN that leaves the box is recognised, with the default filled in."""
        if self.match is not None:
            return self.match
        return ("tag", "fingerprint") if self.changes_tuple else ("tuple",)

    @property
    def tag(self) -> int:
        """The box's 32-bit number in chain headers."""
        return box_tag(self.name)


class Group(Section):
    """Hops of which a policy takes one for each session."""

    name: Name = option(doc="Name of the group.")
    members: Strings = option(doc="Hops to choose from: peers, `peer/box`, or addresses.", min_length=1)
    pick: Pick = option(
        "hash",
        doc="`hash`: by a hash of the session, which moves few sessions when members come or go; "
        "`least-sessions`: the "
        "member with the fewest sessions from here.",
    )
    sticky: bool = option(
        False, doc="Whether sessions from one source address stay with one member while it is healthy."
    )
    drained: Strings = option((), doc="Members that get no new sessions.")


class HopRef(Section):
    """One hop of a policy: a name or an address (`to`), or a group."""

    to: str | None = None
    group: str | None = None
    pick: Pick | None = None


Hop = Annotated[HopRef, BeforeValidator(_hop)]


class Policy(Section):
    """Which sessions go through which hops. The first that matches counts, by priority, then by order."""

    name: Name = option(doc="Name of the policy.")
    match: Match = option(
        doc="The sessions, in the part of the pcap filter language that speaks of five-tuples."
    )
    hops: Annotated[tuple[Hop, ...], Field(strict=False, max_length=16)] = option(
        doc='Hops in order: a peer, `peer/box`, an address, or `{ group = "NAME", pick = "hash" }`.'
    )
    on_fail: Literal["closed", "open"] = option(
        "closed",
        doc="If a hop cannot be reached or refuses. `closed`: the session is refused; `open`: it goes "
        "without the chain.",
    )
    egress: Literal["agent", "native", "nat"] = option(
        "agent",
        doc="How the last hop reaches the session's destination: by the `agent` there; as plain packets "
        "(`native`), "
        "whose answers must come back through it; or as plain packets from its own address (`nat`).",
    )
    priority: int = option(
        0, doc="Policies with a higher number are asked first.", ge=-1_000_000, le=1_000_000
    )
    enabled: bool = option(True, doc="Whether the policy counts.")


class Timers(Section):
    """How long things last."""

    embryonic: Seconds = option(75.0, unit="s", doc="A session that is being opened is forgotten after this.")
    established: Seconds = option(
        8100.0, unit="s", doc="An established session without a packet is forgotten after this."
    )
    half_closed: Seconds = option(3600.0, unit="s", doc="A session closed on one side, without a packet.")
    time_wait: Seconds = option(
        60.0, unit="s", doc="A closed session keeps absorbing late packets for this long."
    )
    quarantine: Seconds = option(
        60.0, unit="s", doc="A port of a subsession rests this long before it is used again."
    )
    avoid: Seconds = option(
        60.0, unit="s", doc='A hop that failed under `on_fail = "open"` is avoided for this long.'
    )
    association_wait: Seconds = option(
        1.0, unit="s", doc="A SYN waits this long for the association with its next hop to come up."
    )
    fingerprint: Seconds = option(
        2.0, unit="s", doc="A SYN must leave a box within this time to be known by fingerprint."
    )
    keepalive: Seconds = option(5.0, unit="s", doc="Between two keepalives to a peer.", reload="restart")
    peer_dead: Seconds = option(
        15.0, unit="s", doc="A peer that was not heard for this long counts as down.", reload="restart"
    )


class Limits(Section):
    """How much there may be."""

    sessions: int = option(
        200_000, doc="Sessions in the table; more are refused.", unit="sessions", ge=1, le=10_000_000
    )
    embryonic: int = option(
        16_384,
        doc="Sessions that are being opened; the oldest of them make room.",
        unit="sessions",
        ge=1,
        le=10_000_000,
    )
    setups_per_second: int = option(
        5_000,
        doc="New chains that one peer may begin through this host.",
        unit="sessions/s",
        ge=1,
        le=1_000_000,
    )


class HostConfig(Section):
    """A whole host.toml."""

    agent: Agent
    tun: Tun = Tun()
    dataplane: Dataplane = Dataplane()
    keys: Keys = Keys()
    peer: Annotated[tuple[Peer, ...], Field(strict=False)] = ()
    box: Annotated[tuple[Box, ...], Field(strict=False)] = ()
    group: Annotated[tuple[Group, ...], Field(strict=False)] = ()
    policy: Annotated[tuple[Policy, ...], Field(strict=False)] = ()
    timers: Timers = Timers()
    limits: Limits = Limits()

    @property
    def socket(self) -> Path:
        """The control socket, with the default filled in."""
        return self.agent.socket or Path("/run/dysco") / f"{self.agent.name}.sock"

    @property
    def run_directory(self) -> Path:
        """Where journals are kept, with the default filled in."""
        return self.agent.run_directory or Path("/run/dysco") / self.agent.name

    @property
    def default_box(self) -> Box | None:
        """The box that a hop means which names only this host; never a proxy, where chains end."""
        boxes = [box for box in self.box if box.kind != "proxy"]
        return next((box for box in boxes if box.default), boxes[0] if boxes else None)


def box_tag(name: str) -> int:
    """Give the 32-bit number that names a box in chain headers: the first bytes of SHA-256 of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
