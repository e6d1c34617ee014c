"""Path MTU probes over a link: messages padded so that the IP packet has the size that a search asks for.

Knows links, the overhead of DTLS, UDP and IP, and when a search is due. The search itself is in mtu.py.
"""

from __future__ import annotations

from typing import Final

from dysco.transport import records, sockets
from dysco.transport.link import Link
from dysco.transport.mtu import LEAST_V4, LEAST_V6, Search
from dysco.transport.peer import Peer
from dysco.wire import frames
from dysco.wire.messages import MtuProbe, Padding

_PROBE_LEN: Final = len(frames.encode_one(MtuProbe(0, 0)))


def begin(peer: Peer, link: Link, device_mtu: int, now: float) -> None:
    """Begin a search on a link, up to the MTU of the own device and to what one record carries."""
    least = LEAST_V6 if ":" in link.remote[0] else LEAST_V4
    link.search = Search(least, min(device_mtu, records.RECORD_LIMIT + _overhead(link)))
    peer.probe_at = now + peer.timing.probe_s


def step(peer: Peer, link: Link, now: float) -> int | None:
    """Send the probes that are due; gives the size that was found when the search is over."""
    search = link.search
    if search is None:
        return None
    again = True
    while again:
        again = False
        for size in search.sizes(now):
            peer.probes += 1
            padding = Padding(size - _overhead(link) - _PROBE_LEN)
            link.send(frames.encode_one(MtuProbe(peer.probes, size, padding)), now)
            link.counters["mtu_probes"] += 1
            if link.refused_size:
                search.refused(size)
                again = True
    if search.done:
        link.search = None
    return search.found


def _overhead(link: Link) -> int:
    return sockets.ip_udp_length(link.remote[0]) + records.RECORD_OVERHEAD
