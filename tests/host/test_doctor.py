"""What `dysco doctor` says of a machine: each thing that it looks at, well and not, with its remedy.

The kernel is played; `netns/test_doctor.py` examines real hosts.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dysco.dataplane import tcx
from dysco.errors import HostError, PermissionDeniedError
from dysco.host import doctor, pins
from dysco.host.doctor import Finding, Neighbour
from dysco.host.probe import Arrival

DEVICES = [("eth0", 1500, True, True), ("eth1", 1500, True, True)]


class Attributes(dict[str, Any]):
    """A netlink message."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


class Links:
    """Answers for `IPRoute` with devices: name, MTU, up, addressed; and their kind."""

    devices = DEVICES
    kind = "dummy"

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_links(self) -> list[Attributes]:
        info = Attributes(IFLA_INFO_KIND=self.kind)
        return [
            Attributes(index=index, flags=int(up), IFLA_IFNAME=name, IFLA_MTU=mtu, IFLA_LINKINFO=info)
            for index, (name, mtu, up, _) in enumerate(self.devices, 1)
        ]

    def get_addr(self) -> list[Attributes]:
        return [
            Attributes(index=index, scope=0 if addressed else 253)
            for index, (*_, addressed) in enumerate(self.devices, 1)
        ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which all is well."""
    monkeypatch.setattr(doctor, "IPRoute", Links)
    monkeypatch.setattr(Links, "devices", DEVICES)
    monkeypatch.setattr(doctor, "_feature", lambda device, command: True)
    monkeypatch.setattr(doctor, "offload_fault", lambda: None)
    monkeypatch.setattr(doctor, "steering_fault", lambda: None)
    monkeypatch.setattr(doctor, "rewriting_fault", lambda: None)
    monkeypatch.setattr(tcx, "is_here", lambda: True)
    release(monkeypatch, "6.12.1-amd64")
    tun(monkeypatch, None)
    status(monkeypatch, (1 << 12) | (1 << 13) | (1 << 39))
    switch(monkeypatch)
    return monkeypatch


def release(patch: pytest.MonkeyPatch, text: str) -> None:
    patch.setattr(doctor, "platform", SimpleNamespace(release=lambda: text))


def tun(patch: pytest.MonkeyPatch, error: int | None) -> None:
    def open_(path: str, flags: int) -> int:
        assert path == "/dev/net/tun"
        if error is not None:
            raise OSError(error, os.strerror(error))
        return 99

    names = {"open": open_, "close": lambda fd: None, "O_RDWR": os.O_RDWR, "O_CLOEXEC": os.O_CLOEXEC}
    patch.setattr(doctor, "os", SimpleNamespace(**names))


def status(patch: pytest.MonkeyPatch, capabilities: int) -> None:
    read = Path.read_text
    text = f"Name:\tpython\nCapEff:\t{capabilities:016x}\n"
    patch.setattr(
        Path, "read_text", lambda path, *_: text if str(path) == "/proc/self/status" else read(path)
    )


def switch(patch: pytest.MonkeyPatch, **values: str) -> None:
    known = {"rp_filter": "0", "forwarding": "0", "force_forwarding": "0"} | values
    patch.setattr(doctor, "_sysctl", lambda key: known.get(key.rpartition("/")[2]) or None)


def about(findings: Iterator[Finding]) -> dict[str, Finding]:
    """The findings by subject, the worst of each; every one that is not good has a remedy."""
    found: dict[str, Finding] = {}
    for one in findings:
        assert (one.remedy is None) == (one.level == "good"), one
        if one.subject not in found or found[one.subject].level == "good":
            found[one.subject] = one
    return found


def test_a_machine_that_can(machine: pytest.MonkeyPatch) -> None:
    found = about(doctor.machine())
    assert [*found] == ["kernel", "tun", "capabilities", "offload", "ebpf"]
    assert {one.level for one in found.values()} == {"good"}
    assert "tcx" in found["ebpf"].text
    machine.setattr(tcx, "is_here", lambda: False)
    assert "attach by cls_bpf" in about(doctor.machine())["ebpf"].text


def test_an_old_kernel(machine: pytest.MonkeyPatch) -> None:
    release(machine, "5.10.0-28-amd64")
    kernel = about(doctor.machine())["kernel"]
    assert (kernel.level, kernel.remedy) == ("bad", "Linux 5.12 is needed")


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOENT, "modprobe tun"), (errno.EACCES, "run as root")]
)
def test_no_tun(machine: pytest.MonkeyPatch, number: int, remedy: str) -> None:
    tun(machine, number)
    found = about(doctor.machine())["tun"]
    assert (found.level, found.remedy) == ("bad", remedy)


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        (0, "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF missing"),
        (1 << 13 | 1 << 39, "CAP_NET_ADMIN missing"),
        (1 << 12 | 1 << 13, "CAP_BPF missing"),
        (1 << 12 | 1 << 13 | 1 << 21, None),  # CAP_SYS_ADMIN includes CAP_BPF
    ],
)
def test_capabilities(machine: pytest.MonkeyPatch, capabilities: int, missing: str | None) -> None:
    status(machine, capabilities)
    found = about(doctor.machine())["capabilities"]
    assert (found.level == "bad") == (missing is not None)
    assert missing is None or found.text == missing


def test_a_kernel_that_damages_large_packets(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(doctor, "offload_fault", lambda: "an offload packet for IPv4 arrives with other bytes")
    offload = about(doctor.machine())["offload"]
    assert offload.level == "note"
    assert "tun.offload = false" in str(offload.remedy)


def test_a_kernel_that_cannot_rewrite_is_used_without(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(doctor, "rewriting_fault", lambda: "a packet of 52 bytes for IPv4 does not arrive")
    ebpf = about(doctor.machine())["ebpf"]
    assert (ebpf.level, ebpf.text) == ("note", "a packet of 52 bytes for IPv4 does not arrive")
    assert 'dataplane.mode = "tun"' in str(ebpf.remedy)


def test_a_kernel_that_takes_no_program_is_of_no_use(machine: pytest.MonkeyPatch) -> None:
    """What leaves by the TUN devices is chosen by programs as well."""
    machine.setattr(doctor, "steering_fault", lambda: "neither tcx nor cls_bpf takes a program")
    machine.setattr(doctor, "rewriting_fault", lambda: pytest.fail("there is nothing to try"))
    ebpf = about(doctor.machine())["ebpf"]
    assert ebpf.level == "bad"
    assert "modprobe cls_bpf" in str(ebpf.remedy)


def test_pinning(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(pins, "fault", lambda directory: None)
    assert doctor.pinning(Path("/run/a")).level == "good"
    machine.setattr(pins, "fault", lambda directory: "this is a container")
    found = about(iter([doctor.pinning(Path("/run/a"))]))["bpffs"]
    assert (found.level, found.text) == ("note", "this is a container")
    assert "/run/a/bpf" in str(found.remedy)


def test_devices(machine: pytest.MonkeyPatch) -> None:
    assert [one.level for one in doctor.devices(["eth0", "eth1"])] == ["good", "good"]
    absent = about(doctor.devices(["wlan0"]))["wlan0"]
    assert (absent.level, absent.remedy) == ("bad", "agent.underlay: choose of eth0, eth1")
    machine.setattr(
        Links,
        "devices",
        [("eth0", 1500, False, True), ("eth1", 9000, True, False), ("eth2", 1000, True, True)],
    )
    found = about(doctor.devices(["eth0", "eth1", "eth2"]))
    assert found["eth0"].remedy == "ip link set eth0 up"
    assert found["eth1"].remedy == "ip address add ADDRESS/LENGTH dev eth1"
    assert found["eth2"].remedy == "ip link set eth2 mtu 1280"
    assert found["mtu"].text == "eth0 1500, eth1 9000, eth2 1000: sessions are clamped to the smallest"


def test_what_a_device_has_switched_off(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(doctor, "_feature", lambda device, command: False)
    assert about(doctor.devices(["eth0"]))["eth0"].remedy == "ethtool -K eth0 tso on gro on"
    machine.setattr(Links, "kind", "veth")
    assert about(doctor.devices(["eth0"]))["eth0"].remedy == "ethtool -K eth0 tso on"
    machine.setattr(doctor, "_feature", lambda device, command: None)  # it does not say
    assert about(doctor.devices(["eth0"]))["eth0"].level == "good"


@pytest.mark.parametrize("kernel_box", [False, True])
@pytest.mark.parametrize("value", ["0", "1", "2"])
def test_reverse_paths(machine: pytest.MonkeyPatch, kernel_box: bool, value: str) -> None:
    machine.setattr(doctor, "_firewall", lambda tun: iter(()))
    switch(machine, rp_filter=value)
    found = about(doctor.switches(kernel_box=kernel_box, session_tun="dysco0"))["rp_filter"]
    assert found.level == "good"
    assert ("the agent moves it" in found.text) == (kernel_box and value != "0")


def test_forwarding(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(doctor, "_firewall", lambda tun: iter(()))
    assert about(doctor.switches(kernel_box=True, session_tun="dysco0"))["forwarding"].level == "good"
    assert "forwarding" not in about(doctor.switches(kernel_box=False, session_tun="dysco0"))
    switch(machine, force_forwarding="")
    found = about(doctor.switches(kernel_box=True, session_tun="dysco0"))["forwarding"]
    assert (found.level, "accept_ra = 2" in str(found.remedy)) == ("note", True)
    switch(machine, force_forwarding="", forwarding="")  # a kernel without IPv6
    assert "forwarding" not in about(doctor.switches(kernel_box=True, session_tun="dysco0"))


DROPS = b"""{"nftables": [{"metainfo": {}}, {"chain": {"family": "inet", "table": "fw", "name": "f", "hook": "forward",
"policy": "drop"}}, {"chain": {"family": "ip", "table": "fw", "name": "i", "hook": "input", "policy": "drop"}}]}"""


@pytest.mark.parametrize(
    ("status_", "output", "error", "level", "words"),
    [
        (0, DROPS, b"", "note", "nft add rule inet fw f iifname dysco0 accept"),
        (0, b"", b"", "good", ""),
        (1, b"", b"not permitted", "note", "run dysco doctor as root"),
        (None, b"", b"", "note", "install nftables"),
    ],
)
def test_firewalls(
    machine: pytest.MonkeyPatch, status_: int | None, output: bytes, error: bytes, level: str, words: str
) -> None:
    def nft(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        if status_ is None:
            raise FileNotFoundError
        return subprocess.CompletedProcess([], status_, output, error)

    machine.setattr(subprocess, "run", nft)
    found = about(doctor.switches(kernel_box=True, session_tun="dysco0"))["nftables"]
    assert found.level == level
    assert words in str(found.remedy)


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (Arrival.WHOLE, "good", ""),
        (Arrival.STRIPPED, "bad", "allows no data in SYNs"),
        (Arrival.DROPPED, "bad", "allows no data in SYNs"),
        (Arrival.SERVED, "note", "leave TCP port 2016 free"),
        (Arrival.SILENT, "note", "rejects, not drops"),
        (HostError("no route"), "note", "as root, with a route"),
        (PermissionDeniedError("raw sockets"), "note", "as root, with a route"),
    ],
)
def test_syns_with_payload(
    machine: pytest.MonkeyPatch, answer: Arrival | HostError, level: str, words: str
) -> None:
    def probe(address: bytes, port: int) -> Arrival:
        assert (address, port) == (bytes((10, 0, 0, 2)), 2016)
        if isinstance(answer, HostError):
            raise answer
        return answer

    machine.setattr(doctor, "syn_with_payload", probe)
    found = about(doctor.peers([Neighbour("b", bytes((10, 0, 0, 2)))], 2016))["b (10.0.0.2)"]
    assert found.level == level
    assert words in str(found.remedy)
