"""The flow table of a simulated host: two dictionaries, nothing more."""

from __future__ import annotations

from collections.abc import Sequence

from dysco.protocol.flow import UNKNOWN, AtRest, Flow, FlowKey, Nobody
from dysco.wire.tuples import FiveTuple


class SimFlowTable:
    """A `FlowTable` that also tells which tuples the kernel would divert."""

    def __init__(self) -> None:
        self.flows: dict[FlowKey, Flow] = {}
        self.captured: set[FiveTuple] = set()
        self.at_rest: AtRest = Nobody()
        self._counted: dict[FlowKey, tuple[int, int, int, int]] = {}

    def insert(self, flow: Flow) -> None:
        self.flows[flow.port, flow.match] = flow

    def delete(self, port: int, match: bytes) -> None:
        self.flows.pop((port, match), None)

    def get(self, port: int, match: bytes) -> Flow | None:
        flow = self.flows.get((port, match))
        return self.flows.get((port, match)) if flow is None and self.at_rest.wakes(match) else flow

    def adopt(self, flow: Flow) -> None:
        flow.packets, flow.bytes, flow.top_seq, flow.top_ack = self._counted.pop(
            (flow.port, flow.match), (0, 0, UNKNOWN, UNKNOWN)
        )
        self.insert(flow)

    def may_rest(self, flow: Flow) -> bool:
        return not flow.slow

    def rest(self, flow: Flow) -> None:
        del self.flows[flow.port, flow.match]
        self._counted[flow.port, flow.match] = (flow.packets, flow.bytes, flow.top_seq, flow.top_ack)

    def expect(self, match: FiveTuple) -> None:
        self.captured.add(match)

    def drop(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        carried = self.carried(keys)
        for key in keys:
            self.delete(*key)
        return carried

    def forget(self, port: int, match: bytes) -> None:
        self.delete(port, match)

    def carried(self, keys: Sequence[FlowKey]) -> list[tuple[int, int]]:
        return [
            self._counted.get(key, (0, 0, 0, 0))[:2] if flow is None else (flow.packets, flow.bytes)
            for key, flow in zip(keys, map(self.flows.get, keys), strict=True)
        ]

    def capture(self, match: FiveTuple) -> None:
        self.captured.add(match)

    def release(self, match: FiveTuple) -> None:
        self.captured.discard(match)

    def refresh(self, flow: Flow) -> int:
        return flow.packets
