"""What is easily forgotten: Fast Open, plain packets behind the chain, traffic that is nobody's business, bad links."""

from __future__ import annotations

import sys

import pytest

from netns.conftest import MakeLab
from netns.labs import (
    MEGABYTE,
    ask,
    both_modes,
    counters,
    fetch,
    lab_text,
    log_of,
    nft_counter,
    put_file,
    sessions,
    until,
    until_said,
    url,
)
from netns.test_middleboxes import COUNTER, FAMILIES, boxes

TALKER = """
import socket, sys
what, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM) as s:
    if what == "serve":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        s.bind((address, port))
        s.listen()
        while True:
            client, _ = s.accept()
            with client:
                data = b""
                while not data.endswith(b"!"):
                    data += client.recv(4096)
                client.sendall(data)
    else:
        data = b"early data" * int(sys.argv[4]) + b"!"
        s.settimeout(10)
        s.sendto(data, socket.MSG_FASTOPEN, (address, port))
        back = b""
        while not back.endswith(b"!"):
            back += s.recv(4096)
        assert back == data, (len(back), len(data))
"""


@both_modes
@FAMILIES
@pytest.mark.parametrize("size", [3, 130])
def test_fast_open_data_arrive_once_and_whole(make_lab: MakeLab, family: int, size: int) -> None:
    lab = make_lab(lab_text("early", boxes(COUNTER), hops='["c"]', match="dst port 7777"))
    lab.up()
    for node in "ad":
        lab.exec(node, ["sysctl", "-qw", "net.ipv4.tcp_fastopen=1543"])  # both sides, without a cookie
        (lab.directory / node / "talk.py").write_text(TALKER)
    address = lab.address("d", family)
    lab.start("d", ["python3", "talk.py", "serve", address, "7777"], name="talk")
    until("nobody listens", lambda: "7777" in lab.exec("d", ["ss", "-Hltn"]).stdout)
    script = str(lab.directory / "a" / "talk.py")
    lab.exec("a", ["python3", script, "talk", address, "7777", str(size)], timeout_s=15)
    assert address in log_of(lab, "c", "counter.txt")


@both_modes
@FAMILIES
def test_native_egress_to_a_server_behind_the_last_agent(make_lab: MakeLab, family: int) -> None:
    last = """
[[host]]
name = "b"
forward = true
copy = ["BOXES/counter.py"]
[host.config]
box = [{ name = "counter", kind = "packet", python = "counter.py:Counter" }]
peer = [{ name = "a", may_use = "dst port 80" }]
[[link]]
between = ["b", "router"]
[[link]]
between = ["b", "d"]
"""
    lab = make_lab(lab_text("native", boxes(last), hops='["b"]', more='egress = "native"', agent=False))
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    assert "begins" in log_of(lab, "b", "counter.txt")
    until_said(lab, "d", "access.log", lab.address("a", family))


@both_modes
@FAMILIES
def test_what_no_policy_names_passes_untouched(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("plain", boxes(COUNTER), hops='["c"]', match="dst port 81"))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    # Large pings are fragmented; they are not TCP either.
    lab.exec("a", ["ping", "-n", "-c", "2", "-i", "0.05", "-s", "4000", lab.address("d", family)])
    assert sessions(lab, "a") == sessions(lab, "d") == []
    assert counters(lab, "a")["syn"] == 0


KNOCK = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM) as s:
    s.setblocking(False)
    s.connect_ex((sys.argv[1], int(sys.argv[2])))
"""


@both_modes
@FAMILIES
def test_a_syn_to_a_reserved_port_that_is_no_chains_is_seen_once(make_lab: MakeLab, family: int) -> None:
    """A port scan, say: each packet of it is one packet of work for the agent, and nothing answers."""
    lab = make_lab(lab_text("knock", boxes(COUNTER), hops='["c"]'))
    lab.up()

    def steered(node: str, what: str) -> int:
        steering: dict[str, int] = ask(lab, node, "status")["steering"]
        return steering.get(what, 0)

    for node in "cd":
        captured, kept_back = steered(node, "captured_in"), steered(node, "reset_kept_back")
        # The second one comes after the first has had the time of a program's start to come round again.
        for number in (1, 2):
            lab.exec(
                "router", [sys.executable, "-c", KNOCK, lab.address(node, family), "62000"], timeout_s=10
            )
            until("the SYN is not seen", lambda: counters(lab, node)["syn_without_header"] >= number)  # noqa: B023
        assert counters(lab, node)["syn_without_header"] == 2
        assert steered(node, "captured_in") == captured + 2
        until("no RST is kept back", lambda: steered(node, "reset_kept_back") == kept_back + 2)  # noqa: B023


@both_modes
@FAMILIES
def test_users_own_rules_do_not_break_a_chain(make_lab: MakeLab, family: int) -> None:
    rules = (
        "add table inet user; "
        "add chain inet user out { type nat hook postrouting priority srcnat; }; "
        'add rule inet user out oifname "eth0" masquerade; '
        "add counter inet user web; "
        "add chain inet user in { type filter hook input priority 0; policy drop; }; "
        "add rule inet user in ct state established,related accept; "
        'add rule inet user in iifname "lo" accept; '
        "add rule inet user in meta l4proto { icmp, ipv6-icmp } accept; "
        "add rule inet user in udp dport 2016 accept; "
        'add rule inet user in iifname "eth0" tcp dport 80 counter name web accept'
    )
    lab = make_lab(lab_text("rules", boxes(COUNTER), hops='["c"]'))
    lab.up(agents=False)
    for node in "acd":
        lab.exec(node, ["nft", rules])
        lab.exec(node, ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"])
        lab.start_agent(node)
    lab.wait_for_agents()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    assert "begins" in log_of(lab, "c", "counter.txt")
    assert nft_counter(lab, "d", "user", "web") > 0


@both_modes
@FAMILIES
def test_a_bad_link_and_agents_without_offload(make_lab: MakeLab, family: int) -> None:
    bad = """
[[link]]
between = ["a", "router"]
delay_ms = 3
jitter_ms = 1
loss = 0.01
duplicate = 0.01
reorder = 0.02
seed = 7
"""
    text = lab_text("bad", boxes(COUNTER), bad, hops='["c"]')
    for node in "acd":
        if node == "c":
            text = text.replace(
                '[host.config]\nbox = [{ name = "counter"',
                '[host.config]\ntun = { offload = false }\nbox = [{ name = "counter"',
                1,
            )
        else:
            text = text.replace(f'name = "{node}"\n', f'name = "{node}"\nconfig.tun.offload = false\n', 1)
    lab = make_lab(text)
    lab.up()
    wanted = put_file(lab, 2 * MEGABYTE)
    assert fetch(lab, url(lab, family), timeout_s=40) == wanted
