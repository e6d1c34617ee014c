"""What agents would say, for tables, drawings and the dashboard."""

from __future__ import annotations

from dysco.views import Event, Facing, Peer, ProxiedPair, ProxyState, Session, Status

CHAIN_ID = "3f2a91c05d7e8b1146aa90fe127733c4"
SESSION = "10.0.1.1:43210 > 10.0.4.4:80"
A_B = "10.0.1.1:61001 > 10.0.2.2:61000"
B_C = "10.0.2.2:61003 > 10.0.3.3:61002"
C_D = "10.0.3.3:61005 > 10.0.4.4:61004"


def session(*facings: Facing, box: str | None = None, name: str = SESSION) -> Session:
    return Session(
        chain_id=CHAIN_ID,
        hop_index=0,
        role="middle",
        state="established",
        session=name,
        session_out=name,
        policy="web",
        box=box,
        facings=facings,
        age_s=12.5,
        packets=1500,
        bytes=2_000_000,
    )


AT_A = session(Facing("right", "B", A_B))
AT_B = session(Facing("left", "A", A_B), Facing("right", "C", B_C), box="fw")
AT_C = session(Facing("left", "B", B_C), Facing("right", "D", C_D), box="tap")
AT_D = session(Facing("left", "C", C_D))

PEERS = [
    Peer(
        name="B",
        state="up",
        address="10.0.2.2",
        addresses=("10.0.2.2", "2001:db8:2::2"),
        since_s=45.6,
        heard_s=0.59,
        mtu=1500,
        sessions=3,
        attempts=1,
        last_failure=None,
    ),
    Peer(
        name="C",
        state="down",
        address=None,
        addresses=("10.0.3.3", "2001:db8:3::3"),
        since_s=None,
        heard_s=None,
        mtu=None,
        sessions=0,
        attempts=7,
        last_failure="no answer",
    ),
]
PID = (1 << 22) + 1  # above the greatest number that Linux gives a process
STATUS = Status(
    name="A",
    pid=PID,
    uptime_s=187.0,
    mode="tun with offload",
    why_no_ebpf=None,
    opening="agent",
    why_no_offload=None,
    addresses=("10.0.1.1", "2001:db8:1::1"),
    mtu=1500,
    sessions=1,
    flows=2,
    policies=1,
    boxes=(),
    loop_lag_s=0.001,
    counters={"opened": 3, "syn": 4},
    drops={},
    steering={"diverted": 5},
)
EVENTS = [
    Event("peer_up", "2026-01-02T12:00:01.250+00:00", {"peer": "B"}),
    Event(
        "session_opened",
        "2026-01-02T12:00:02.000+00:00",
        {"chain_id": CHAIN_ID, "session": SESSION, "policy": ""},
    ),
]

PROXIES = [
    ProxyState(
        name="balancer",
        adapter="haproxy",
        remove="chosen",
        drained=True,
        removed=7,
        trouble="",
        pairs=(
            ProxiedPair(SESSION, B_C, 47, -3, True, "HAProxy only passes data on", "is taken out"),
            ProxiedPair(A_B, C_D, 0, 0, False, "TLS ends \x1b[31mhere", "is taken out"),
        ),
    ),
    ProxyState("other", "generic", "never", False, 0, "nobody listens on port 9000", ()),
]
