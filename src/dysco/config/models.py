"""host.toml as pydantic models: every key with unit, default, meaning, and what a reload does.

Knows which keys there are. What one value may be is in values.py, what values must be together in checks.py, how
errors read in findings.py, the reference page in reference.py. All models are frozen and strict: a quoted number is not
a number.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dysco.config.values import (
    AdapterName,
    Addresses,
    BoolOrMatch,
    Device,
    Devices,
    FilePath,
    Fingerprint,
    Listen,
    Match,
    Matching,
    Name,
    Names,
    Networks,
    Pick,
    PortRange,
    PythonClass,
    Seconds,
    Section,
    SocketPath,
    Strings,
    hop_table,
    option,
)


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
    roaming: Networks = option(
        (),
        doc="Networks from which peers may call although their addresses there are not named: for hosts that move.",
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
        None,
        doc="Where the journals are kept and the bpffs is mounted. Default: /run/dysco/NAME.",
        reload="restart",
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
            "Python box handles, and does not start where the kernel cannot; `tun`: the "
            "agent rewrites all of them; `auto`: `ebpf` if a test at start shows that it works here, else `tun`. "
            "`dysco tun status` says which is in use, and why."
        ),
        reload="restart",
    )
    opening: Literal["kernel", "agent"] = option(
        "kernel",
        doc=(
            "Who opens chains in the mode `ebpf`, where nothing has to be decided (policies with named hops and "
            '`on_fail = "closed"`, SYNs without options or data that ask for more): `kernel`: the programs, and the '
            "agent hears of it a moment later; `agent`: the agent sees every SYN."
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


Hop = Annotated[HopRef, BeforeValidator(hop_table)]


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


class Proxy(Section):
    """A proxy on this host, in the agent's network namespace, that live sessions which need it no more can leave."""

    name: Name = option(doc="Name of the proxy, as in `dysco proxy drain NAME`.")
    adapter: AdapterName = option(
        doc=(
            "How its pairs of sessions are found, and which of them it may leave. `haproxy`: by its runtime API "
            "(`socket`). `nginx-stream`: by its error log (`log`). `generic`: any program that copies byte by byte, by "
            "what goes through its sockets. Or an own class: `package.module:Class`, or `file.py:Class`, a path "
            "relative to this file."
        ),
    )
    socket: SocketPath | None = option(
        None, doc="Socket of HAProxy's runtime API (`stats socket` there). For `haproxy`, and needed there."
    )
    log: FilePath | None = option(
        None,
        doc="nginx's error log, of level `info`. For `nginx-stream`, and needed there.",
    )
    port: int | None = option(
        None,
        doc="Port on which it listens; sessions to other ports of it are left alone. `nginx-stream` and `generic` "
        "need this or `pid_file`.",
        ge=1,
        le=65535,
    )
    pid_file: FilePath | None = option(
        None,
        doc="File with the number of its process; its children count too. For `nginx-stream` and `generic`.",
    )
    line: Literal["auto", "none", "v1", "v2"] = option(
        "auto",
        doc=(
            "The PROXY protocol line that HAProxy writes to servers before the data (`send-proxy`, `send-proxy-v2`), "
            "for sessions that never rest; `auto`: found out from its other sessions. For `haproxy`."
        ),
    )
    remove: Literal["never", "chosen", "after"] = option(
        "never",
        doc=(
            "When it is taken out of a session by itself. `never`: only when asked (`dysco splice`, `dysco proxy "
            "drain`). `chosen`: as soon as its server is chosen and it only passes data on. `after`: when "
            "`after_bytes` or `after_seconds` is reached, whichever is first. Sessions of which its adapter is not "
            "sure keep it."
        ),
    )
    after_bytes: int | None = option(
        None, doc="Bytes of both directions. For `remove` of `after`.", unit="bytes", ge=1, le=1 << 62
    )
    after_seconds: Seconds | None = option(
        None, doc="Age of the session as the agent saw it begin. For `remove` of `after`.", unit="s"
    )
    match: Match = option(
        "",
        doc="The clients' sessions that the rule and a drain are about, in the language of `match`. Empty: all.",
    )
    keep: Match | None = option(
        None,
        doc="The clients' sessions in which it must stay whatever happens, in the language of `match`. Default: none.",
    )
    every: Seconds = option(1.0, unit="s", doc="How often it is asked while there is something to remove.")


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
    keepalive: Seconds = option(
        5.0,
        unit="s",
        doc="Between two keepalives to a peer; down to half of it with those of others, a fifth more behind an answer.",
        reload="restart",
    )
    peer_dead: Seconds = option(
        15.0, unit="s", doc="A peer that was not heard for this long counts as down.", reload="restart"
    )


class Limits(Section):
    """How much there may be."""

    sessions: int = option(
        200_000,
        doc="Sessions in the table; more are refused. The kernel's table of flows has room for as many; one that an "
        "agent takes over from the one before keeps its size until `dysco tun down`.",
        unit="sessions",
        ge=1,
        le=10_000_000,
    )
    embryonic: int = option(
        16_384,
        doc="Sessions that are being opened; the oldest of them make room.",
        unit="sessions",
        ge=1,
        le=10_000_000,
    )
    setups_per_second: int = option(
        20_000,
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
    proxy: Annotated[tuple[Proxy, ...], Field(strict=False)] = ()
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
