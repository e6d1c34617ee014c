"""What an adapter is: a class that says which sessions of a proxy belong together.

A proxy ends TCP on both sides:

    client  == left session ==>  proxy  == right session ==>  server

Both are named by the five-tuple of their SYN as the proxy's host sees it: `left` goes from the client to the proxy,
`right` from the proxy to the server. They may be of different families.

What a proxy does to the numbers is said in bytes of the two streams. Of a relay that copies byte by byte both sums
are 0. A proxy that wrote a PROXY protocol line of 47 bytes to the server before the client's bytes has added 47 to the
right. One that took a CONNECT request of 60 bytes from the client, and answered it itself with 39 bytes, has added -60
to the right and 39 to the left. Bytes that stand in the proxy's buffers at this moment do not count: they will still be
written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from dysco.config import Proxy
from dysco.wire.tuples import FiveTuple


class Pair(NamedTuple):
    """Two sessions that one proxy joins, or of which it is not sure that it joins them (`safe` is false then).

    added_right: bytes that the proxy has written to the right beyond what it has read from the left; negative if it
    has taken some out. added_left: likewise from right to left. safe: from now on the proxy copies byte by byte until
    both sides are closed, and both numbers are known. why: a few words for people, on which ground it is safe, or why
    it is not.
    """

    left: FiveTuple
    right: FiveTuple
    added_right: int
    added_left: int
    safe: bool
    why: str


class Adapter(ABC):
    """Find the pairs of one proxy. A subclass of your own needs `pairs` only.

    It is made once for each `[[proxy]]` of host.toml, with this section as its only argument, and asked again and again
    while that stands there, never twice at the same time.
    """

    unplaced: Sequence[FiveTuple] = ()
    """Clients' sessions that the proxy had at the latest answer of `pairs`, and that are in none of its pairs.

    A drained proxy is not empty while there is one.
    """

    def __init__(self, proxy: Proxy | None = None) -> None:
        self.proxy = proxy

    @abstractmethod
    async def pairs(self) -> list[Pair]:
        """Give the pairs of sessions that are open now.

        A session without a partner is left out. Raises HostError if the proxy cannot be asked now; that is said to
        people, and the adapter is asked again later.
        """
