"""Kernels on which the start-up tests fail: an agent does without what is wrong there, and says so.

Such kernels are made of this one: an agent gets other programs, or its trial runs where packets are damaged.

a ---- b (nftables firewall) ---- d
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dysco.dataplane.steer import OBJECT
from dysco.dataplane.trial import rewriting_fault
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, ask, fetch, log_of, put_file, until_said, url
from netns.test_life import configured

BUILD = Path(__file__).parents[2] / "tools" / "build-bpf"
OTHER_PROGRAMS = """
from pathlib import Path
from dysco.dataplane import steer
steer.OBJECT = Path({object!r})
"""
# The fourth word of the payload of large packets.
DAMAGE = """
import subprocess
from pathlib import Path
from dysco.dataplane import selftest
from dysco.service import kernel
kernel.TRIAL = Path("/dev/null")  # nothing is remembered
test = selftest._offload_here
RULE = "add rule inet t f meta length > 1500 @th,256,32 set 0"
CHAIN = "add table inet t; add chain inet t f { type filter hook forward priority 0; }"
def damaged():
    subprocess.run(["nft", f"{CHAIN}; {RULE}"], check=True)
    return test()
selftest._offload_here = damaged
"""


def built(directory: Path, old: str, new: str) -> Path:
    """Build the programs with something else in the place of a piece of their source."""
    place = directory / "src" / "dysco" / "dataplane" / "bpf"
    shutil.copytree(OBJECT.parent, place)
    source = place / "fast.bpf.h"
    text = source.read_text()
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    (directory / "tools").mkdir()
    shutil.copy(BUILD, directory / "tools")
    subprocess.run([sys.executable, directory / "tools" / BUILD.name], check=True, timeout=60)
    return place / OBJECT.name


WRONG = [
    ("bpf_ntohl(number) + delta", "bpf_ntohl(number) + delta + 1", "52 bytes for IPv4 arrives with other bytes"),
    ("fold((__u64)old + address_delta)", "fold((__u64)old)", "20053 bytes for IPv4 arrives with other bytes"),
    ("ip->check + flow->address_delta", "ip->check", "52 bytes for IPv4 does not arrive"),
    ("ip_sum + flow->address_delta", "ip_sum", "52 bytes for IPv4 arrives with other bytes"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    WRONG,
    ids=["numbers", "partial-checksums", "ip-checksums", "ip-checksums-general"],
)
def test_the_trial_finds_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str, fault: str
) -> None:
    monkeypatch.setattr("dysco.dataplane.steer.OBJECT", built(tmp_path, old, new))
    assert rewriting_fault() == f"a packet of {fault}"


def test_an_agent_does_without_what_is_wrong(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel of b rewrites wrongly, that of d damages large packets; sessions pass them all the same."""
    lab = make_lab(configured("faults", "", ""))
    lab.up(agents=False)
    old, new, fault = WRONG[0]
    faults = {"b": OTHER_PROGRAMS.format(object=str(built(tmp_path, old, new))), "d": DAMAGE}
    for node, text in faults.items():
        (tmp_path / node).mkdir()
        (tmp_path / node / "sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / node))
        lab.start_agent(node)
    monkeypatch.delenv("PYTHONPATH")
    lab.start_agent("a")
    lab.wait_for_agents()
    a, b, d = (ask(lab, node, "status") for node in "abd")
    assert (a["mode"], a["why_no_ebpf"], a["why_no_offload"]) == ("ebpf, tun with offload", None, None)
    assert (b["mode"], b["why_no_ebpf"]) == ("tun with offload", f"a packet of {fault}")
    assert d["mode"] == "ebpf, tun, plain packets"
    assert d["why_no_offload"] == "an offload packet for IPv4 arrives with other bytes"
    for node, status, what in (("b", b, "why_no_ebpf"), ("d", d, "why_no_offload")):
        argv = [sys.executable, "-m", "dysco.cli", "--socket", str(lab.socket(node)), "tun", "status"]
        said = " ".join(lab.exec(node, argv).stdout.split())
        assert status["mode"] in said
        assert status[what] in said
    until_said(lab, "b", "agent.log", "agent_started")
    [started] = [line for line in log_of(lab, "b", "agent.log").splitlines() if "agent_started" in line]
    assert 'mode="tun with offload"' in started
    assert fault in started
    wanted = put_file(lab, MEGABYTE)
    for family in (4, 6):
        assert fetch(lab, url(lab, family)) == wanted
    assert ask(lab, "b", "status")["steering"]["rewritten"] == 0
    assert ask(lab, "d", "status")["steering"]["rewritten"] > 0
