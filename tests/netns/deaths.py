"""Hosts that die at a moment that is named: the router is the first to know, and carries nothing to or from them.

So no test needs luck: the packet that says how far a change is takes the host with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from dysco.lab import Lab
from netns.labs import nft_counter, until

# An anchor shows its cutoff by the first packet that it sends on the new path once it has switched.
SWITCHED = "{net} saddr {by} {net} daddr {at} tcp flags == psh | ack tcp window 65535 meta length {length}"

_RULES = """
table inet deaths-NODE {
    set dead { typeof meta oifname; flags dynamic; }
    counter died {}
    chain forward {
        type filter hook forward priority filter;
        iifname @dead drop
        oifname @dead drop
        WHEN add @dead { oifname } counter name died drop
    }
}
"""


def switched(lab: Lab, family: int, by: str, at: str) -> str:
    """The moment when an anchor has switched to a path whose next host is `at`."""
    net, length = ("ip", 40) if family == 4 else ("ip6", 60)
    return SWITCHED.format(net=net, length=length, by=lab.address(by, family), at=lab.address(at, family))


def die(lab: Lab, node: str) -> None:
    """Kill a host: its agent for good, and its links."""
    os.kill(lab.agent_pid(node), signal.SIGKILL)
    lab.exec(node, ["ip", "link", "set", "eth0", "down"])


def has_died(lab: Lab, node: str) -> bool:
    """Whether the moment has come for a host."""
    return nft_counter(lab, "router", f"deaths-{node}", "died") > 0


@contextlib.contextmanager
def dies(lab: Lab, node: str, when: str) -> Iterator[None]:
    """Let a host die when the router is to carry such a packet to it."""
    path = lab.directory / f"deaths-{node}.nft"
    path.write_text(_RULES.replace("NODE", node).replace("WHEN", when))
    lab.exec("router", ["nft", "-f", str(path)])

    def wait() -> None:
        until(f"{node} has not died", lambda: has_died(lab, node))
        die(lab, node)

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        yield
    finally:
        waiting.join()
    assert has_died(lab, node)
