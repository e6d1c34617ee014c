"""What agents would say: records for tables, drawings and the dashboard."""

from __future__ import annotations

from typing import Any

CHAIN_ID = "3f2a91c05d7e8b1146aa90fe127733c4"
SESSION = "10.0.1.1:43210 > 10.0.4.4:80"
A_B = "10.0.1.1:61001 > 10.0.2.2:61000"
B_C = "10.0.2.2:61003 > 10.0.3.3:61002"
C_D = "10.0.3.3:61005 > 10.0.4.4:61004"


def facing(side: str, peer: str, subsession: str) -> dict[str, Any]:
    return {"side": side, "peer": peer, "subsession": subsession}


def session(*facings: dict[str, Any], box: str = "", **more: Any) -> dict[str, Any]:
    record = {
        "chain_id": CHAIN_ID,
        "session": SESSION,
        "state": "established",
        "box": box,
        "policy": "web",
        "facings": list(facings),
        "packets": 1500,
        "bytes": 2_000_000,
        "age_s": 12.5,
        "idle_s": 0.2,
    }
    return record | more


AT_A = session(facing("right", "B", A_B))
AT_B = session(facing("left", "A", A_B), facing("right", "C", B_C), box="fw")
AT_C = session(facing("left", "B", B_C), facing("right", "D", C_D), box="tap")
AT_D = session(facing("left", "C", C_D))

PEERS: list[dict[str, Any]] = [
    {"name": "B", "state": "up", "address": "10.0.2.2", "rtt_s": 0.0004, "mtu": 1500, "sessions": 3},
    {"name": "C", "state": "down", "addresses": ["10.0.3.3", "2001:db8:3::3"]},
]
STATUS: dict[str, Any] = {
    "name": "A",
    "version": "0.1.0",
    "pid": 4711,
    "uptime_s": 187.0,
    "mode": {"offload": True, "loop": "uvloop"},
}
EVENTS: list[dict[str, Any]] = [
    {"time": "12:00:01", "event": "peer-up", "peer": "B"},
    {"time": "12:00:02", "event": "session-up", "session": SESSION, "policy": "web"},
]
