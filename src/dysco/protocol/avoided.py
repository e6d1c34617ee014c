"""Which hops and routes new sessions keep off for a while, because a chain could not be made there."""

from __future__ import annotations

from typing import Final

from dysco.protocol.neighbours import Neighbours
from dysco.wire.chain_header import Hop

_MOST_ROUTES: Final = 1024

Route = tuple[Hop, ...]


class Avoided:
    """What has failed, and until when that counts. routes: those of which it is not known which hop it was."""

    def __init__(self, neighbours: Neighbours) -> None:
        self.routes: dict[Route, float] = {}
        self._neighbours = neighbours

    def add(self, route: Route, hops: Route, until: float, now: float, *, far: bool) -> None:
        """Keep new sessions off the first of `hops`, or, if it is not known which one failed, off the whole route."""
        neighbour = self._neighbours.at(hops[0].address) if hops else None
        if neighbour is not None and not far:
            neighbour.avoid_until = until
            return
        if len(self.routes) >= _MOST_ROUTES:
            self.routes = {one: end for one, end in self.routes.items() if now < end}
        if len(self.routes) < _MOST_ROUTES:
            self.routes[route] = until

    def has(self, route: Route, now: float) -> bool:
        """Whether new sessions keep off a route, or off a hop of it."""
        if now < self.routes.get(route, 0.0):
            return True
        neighbours = (self._neighbours.at(hop.address) for hop in route)
        return any(one is not None and now < one.avoid_until for one in neighbours)
