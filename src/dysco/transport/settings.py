"""What the channel is told: own name and addresses, the peers, and how long and how much.

Plain values, built by the service from the configuration; and what the channel reports back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dysco.wire.messages import Hello, Message

DEFAULT_PORT = 2016


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """A peer: its name, and its addresses (one at least) as text.

    `mtu` is the IP packet size that reaches it, if it is known and need not be searched.
    """

    name: str
    addresses: tuple[str, ...]
    port: int = DEFAULT_PORT
    fingerprint: str | None = None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in seconds."""

    keepalive_s: float = 5.0
    dead_s: float = 15.0
    handshake_s: float = 8.0  # a handshake that takes longer has failed
    first_pause_s: float = 0.25  # before a failed handshake is tried again; doubled each time
    last_pause_s: float = 30.0
    rekey_s: float = 86_400.0
    probe_s: float = 600.0
    linger_s: float = 30.0  # a replaced association still receives


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """All that a channel needs besides its identity. `mtu` is the underlay device's.

    roaming: networks (as text) from which a peer may call although the configuration does not name its address there.
    """

    name: str
    addresses: tuple[str, ...]
    boot_id: bytes
    port_range: tuple[int, int]
    peers: tuple[PeerSettings, ...] = ()
    port: int = DEFAULT_PORT
    capabilities: int = 0
    mtu: int = 1500
    timing: Timing = field(default_factory=Timing)
    queue_limit: int = 65_536  # messages waiting to be packed, a peer
    roaming: tuple[str, ...] = ()
    half_open_limit: int = 256
    half_open_source_limit: int = 8


class Handler(Protocol):
    """What the channel calls. All of it is called from the event loop, and must not block or raise."""

    def on_key(self, peer: str, receive_key: bytes) -> None:
        """The peer may use this key from now on, soon or never; keys before it stay valid for 2 minutes."""

    def on_up(self, peer: str, hello: Hello, send_key: bytes, receive_key: bytes, address: bytes) -> None:
        """The peer is there (again): it has accepted `send_key`. Called again when keys or address change.

        Another boot id than before means that the peer has restarted.
        """

    def on_down(self, peer: str) -> None:
        """The peer is not there any more."""

    def on_message(self, peer: str, message: Message) -> None:
        """A message that the channel does not keep to itself: all but Hello, KeepaliveAck, MTU probes."""

    def on_mtu(self, peer: str, mtu: int) -> None:
        """IP packets of so many bytes reach the peer."""

    def digest(self, peer: str) -> bytes:
        """Give the 8 bytes that the next keepalive says about shared sessions."""

    def standing(self, peer: str) -> list[Message]:
        """Give what goes with the next keepalive, for a peer that has not heard it the first time."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How a peer stands. Ages in seconds; `mtu` is of IP packets."""

    name: str
    up: bool
    address: str | None
    boot_id: bytes | None
    client: bool | None
    up_for_s: float | None
    heard_s: float | None
    mtu: int | None
    attempts: int
    last_failure: str | None
