"""`dysco doctor` on hosts of a lab: what is well, what is not, and what to do about it."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import ask, lab_text, until

BOX = """
[[host]]
name = "b"
[host.config]
box = [{ name = "firewall", kind = "kernel" }]
"""


def examine(lab: Lab, node: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """The findings on a host by their subject."""
    config = str(lab.directory / node / "host.toml")
    done = lab.exec(
        node, [sys.executable, "-m", "dysco.cli", "doctor", "--config", config, "--json"], check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = {}
    for one in json.loads(done.stdout)["findings"]:
        assert (one["remedy"] is None) == (one["level"] == "good")
        if one["subject"] not in found or found[one["subject"]]["level"] == "good":
            found[one["subject"]] = one
    return found


def test_findings_and_remedies(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("doctor", BOX, hops='["b"]'))
    lab.up()
    for node in ("a", "b", "d"):
        assert [one for one in examine(lab, node).values() if one["level"] != "good"] == []
    told = lab.exec("a", [sys.executable, "-m", "dysco.cli", "doctor"]).stdout
    assert "ok    kernel: Linux" in told

    device = lab.exec("b", ["ip", "-br", "link"]).stdout
    name = next(line.split("@")[0] for line in device.splitlines() if "@" in line)
    lab.exec("b", ["ethtool", "-K", name, "tso", "off"])
    lab.exec(
        "b",
        [
            "nft",
            "add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }",
        ],
    )
    found = examine(lab, "b")
    assert found[name]["remedy"] == f"ethtool -K {name} tso on"
    assert found["nftables"]["remedy"].endswith("nft add rule inet fw f iifname dysco0 accept")

    # A firewall that lets no data pass in SYNs: 20 bytes of IP and 20 of TCP header are allowed.
    lab.exec("d", ["nft", "add table ip strict; add chain ip strict in { type filter hook input priority 0; }; "
                   "add rule ip strict in tcp flags syn ip length > 40 drop"])  # fmt: skip
    # One that drops everything, so that nothing can be told.
    lab.exec("d", ["nft", "add table ip6 strict; add chain ip6 strict in { type filter hook input priority 0; }; "
                   "add rule ip6 strict in tcp dport 2016 drop"])  # fmt: skip
    found = examine(lab, "a", 1)
    four, six = (found[f"d ({lab.address('d', family)})"] for family in (4, 6))
    assert (four["level"], four["text"]) == ("bad", "SYNs with payload are dropped on the way, others arrive")
    assert (six["level"], six["text"]) == ("note", "no answer to any SYN")
    assert found[f"b ({lab.address('b', 4)})"]["level"] == "good"

    lab.exec("a", ["ip", "link", "set", name, "mtu", "1000"])
    os.kill(lab.agent_pid("b"), signal.SIGTERM)
    until("b is missed", lambda: any(one["state"] == "down" for one in ask(lab, "a", "peers")))
    found = examine(lab, "a", 1)
    assert found[name]["level"] == "bad"
    assert found["peer b"]["level"] == "bad"
