"""Each kind of middlebox in a chain, with real programs, both families, compared by SHA-256."""

from __future__ import annotations

import pytest

from netns.conftest import MakeLab
from netns.labs import (
    MEGABYTE,
    both_modes,
    counters,
    fetch,
    haproxy_host,
    lab_text,
    log_of,
    nft_counter,
    put_file,
    sessions,
    until,
    until_said,
    url,
)

FAMILIES = pytest.mark.parametrize("family", [4, 6])

COUNTER = """
[[host]]
name = "c"
copy = ["BOXES/counter.py"]
[host.config]
box = [{ name = "counter", kind = "packet", python = "counter.py:Counter" }]
"""

MASQUERADE = """
[[host]]
name = "b"
setup = [["nft", "-f", "nat.nft"]]
[host.config]
box = [{ name = "nat", kind = "kernel", changes_tuple = true MATCH }]
[host.files]
"nat.nft" = '''
table inet nat {
    counter out {}
    chain postrouting {
        type nat hook postrouting priority srcnat;
        iifname "dysco0" tcp dport 80 counter name out masquerade
    }
}
'''
"""

DNAT = """
[[host]]
name = "b"
setup = [["nft", "-f", "nat.nft"]]
[host.config]
box = [{ name = "nat", kind = "kernel", changes_tuple = true }]
[host.files]
"nat.nft" = '''
table inet nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname "dysco0" ip daddr 10.99.0.1 tcp dport 80 dnat ip to ${d.ipv4}
        iifname "dysco0" ip6 daddr fd99::1 tcp dport 80 dnat ip6 to ${d.ipv6}
    }
}
'''
"""

NAMESPACE = """
[[host]]
name = "b"
namespaces = ["box"]
setup = [["nsenter", "--net=/run/netns/${ns.box}", "--", "nft", "-f", "${dir}/firewall.nft"]]
[host.config]
box = [{ name = "firewall", kind = "namespace", namespace = "${ns.box}" }]
[host.files]
"firewall.nft" = '''
table inet firewall {
    counter web {}
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "dysco-left" oifname "dysco-right" tcp dport 80 ct state new counter name web accept
    }
}
'''
"""


def boxes(text: str) -> str:
    """Fill in where the example boxes of the repository are."""
    from pathlib import Path

    return text.replace("BOXES", str(Path(__file__).resolve().parents[2] / "configs" / "boxes"))


@both_modes
@FAMILIES
@pytest.mark.parametrize("match", ["", ', match = ["fingerprint"]'])
def test_masquerade_changes_the_source_and_the_chain_goes_on(
    make_lab: MakeLab, family: int, match: str
) -> None:
    text = lab_text("nat", MASQUERADE.replace("MATCH", match), boxes(COUNTER), hops='["b", "c"]')
    lab = make_lab(text)
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    assert nft_counter(lab, "b", "nat", "out") == 1
    assert lab.address("b", family) in log_of(lab, "c", "counter.txt")
    until_said(lab, "d", "access.log", lab.address("b", family))
    assert lab.address("a", family) not in log_of(lab, "d", "access.log")


@both_modes
@FAMILIES
def test_dnat_changes_the_destination_and_the_final_host(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("dnat", DNAT, boxes(COUNTER), hops='["b", "c"]'))
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    target = "http://10.99.0.1/file" if family == 4 else "http://[fd99::1]/file"
    assert fetch(lab, target) == wanted
    assert lab.address("d", family) in log_of(lab, "c", "counter.txt")
    assert [one["role"] for one in sessions(lab, "d")] == ["last"]


@both_modes
@FAMILIES
def test_a_box_in_its_own_namespace_sees_names_of_its_devices(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("space", NAMESPACE, hops='["b"]'))
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    assert nft_counter(lab, "b", "firewall", "web", netns="box") >= 1  # a SYN that is repeated counts again


@both_modes
@FAMILIES
def test_two_boxes_on_one_host_and_the_same_host_twice(make_lab: MakeLab, family: int) -> None:
    two = """
[[host]]
name = "b"
copy = ["BOXES/counter.py"]
[host.config]
box = [
  { name = "one", kind = "packet", python = "counter.py:Counter" },
  { name = "two", kind = "packet", python = "counter.py:Counter" },
  { name = "three", kind = "packet", python = "counter.py:Counter" },
]
"""
    lab = make_lab(lab_text("twice", boxes(two), boxes(COUNTER), hops='["b/one", "b/two", "c", "b/three"]'))
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    assert log_of(lab, "b", "counter.txt").count("begins") == 3
    assert len(sessions(lab, "b")) == 3


@both_modes
@FAMILIES
def test_haproxy_ends_one_chain_and_begins_the_next(make_lab: MakeLab, family: int) -> None:
    proxy = haproxy_host(family, hops='["c"]')
    text = lab_text("proxy", proxy, boxes(COUNTER), hops='["c"]', match="dst port 8080")
    lab = make_lab(text)
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family, node="b", port=8080)) == wanted
    assert log_of(lab, "c", "counter.txt").count("begins") == 2
    assert sorted(one["role"] for one in sessions(lab, "b")) == ["first", "last"]


@both_modes
@FAMILIES
def test_egress_nat_reaches_a_server_without_an_agent(make_lab: MakeLab, family: int) -> None:
    exit_host = """
[[host]]
name = "b"
copy = ["BOXES/counter.py"]
[host.config]
box = [{ name = "counter", kind = "packet", python = "counter.py:Counter" }]
peer = [{ name = "a", may_use = "dst port 80" }]
"""
    lab = make_lab(lab_text("egress", boxes(exit_host), hops='["b"]', more='egress = "nat"', agent=False))
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family)) == wanted
    until_said(lab, "d", "access.log", lab.address("b", family))


@both_modes
@FAMILIES
def test_a_gateway_begins_the_chain_for_hosts_without_agents(make_lab: MakeLab, family: int) -> None:
    inside = """
[[host]]
name = "x"
agent = false
[[link]]
between = ["x", "a"]
[[link]]
between = ["a", "router"]
"""
    text = lab_text("gateway", boxes(COUNTER), inside, hops='["c"]')
    lab = make_lab(text.replace('name = "a"', 'name = "a"\nforward = true', 1))
    lab.up()
    wanted = put_file(lab, 3 * MEGABYTE)
    assert fetch(lab, url(lab, family), node="x") == wanted
    assert lab.address("x", family) in log_of(lab, "c", "counter.txt")
    until_said(lab, "d", "access.log", lab.address("x", family))


@both_modes
@FAMILIES
@pytest.mark.parametrize("on_fail", ["closed", "open"])
def test_a_hop_without_an_agent_is_refused_or_left_out(make_lab: MakeLab, family: int, on_fail: str) -> None:
    absent = '[[host]]\nname = "b"\nagent = false\n'
    peer = '[[host.config.peer]]\nname = "b"\naddresses = ["${b.ipv4}", "${b.ipv6}"]\n'
    text = lab_text("fail", absent, hops='["b"]', more=f'on_fail = "{on_fail}"')
    text = text.replace("[[host.config.policy]]", f"{peer}[[host.config.policy]]", 1)
    lab = make_lab(text)
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    if on_fail == "open":
        assert fetch(lab, url(lab, family)) == wanted
        assert fetch(lab, url(lab, family)) == wanted
        assert (
            counters(lab, "a")["sent_natively"] >= 2
        )  # and a SYN that was repeated while the first one waited
    else:
        done = lab.exec("a", ["curl", "-sS", url(lab, family)], check=False, timeout_s=10)
        assert done.returncode == 7, done.stderr  # curl's "failed to connect": refused at once, not timed out
    # A SYN that was repeated while the first one waited is refused a moment later.
    until("nothing is left of it", lambda: sessions(lab, "a") == [])
