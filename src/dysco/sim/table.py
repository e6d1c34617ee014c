"""The flow table of a simulated host: two dictionaries, nothing more."""

from __future__ import annotations

from dysco.protocol.flow import Flow
from dysco.wire.tuples import FiveTuple


class SimFlowTable:
    """A `FlowTable` that also tells which tuples the kernel would divert."""

    def __init__(self) -> None:
        self.flows: dict[tuple[int, FiveTuple], Flow] = {}
        self.captured: set[FiveTuple] = set()

    def insert(self, flow: Flow) -> None:
        self.flows[flow.port, flow.match] = flow

    def delete(self, port: int, match: FiveTuple) -> None:
        self.flows.pop((port, match), None)

    def get(self, port: int, match: FiveTuple) -> Flow | None:
        return self.flows.get((port, match))

    def capture(self, match: FiveTuple) -> None:
        self.captured.add(match)

    def release(self, match: FiveTuple) -> None:
        self.captured.discard(match)

    def refresh(self, flow: Flow) -> int:
        return flow.packets
