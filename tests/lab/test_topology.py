"""Addresses and routes of topologies, configurations of their hosts, and what a wrong file is told."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco import config
from dysco.errors import ConfigError
from dysco.lab import hosts, load
from dysco.lab.topology import Node, Topology

CONFIGS = Path(__file__).parents[2] / "configs"
STAR = '[lab]\nname = "t"\n[[host]]\nname = "a"\n[[host]]\nname = "b"\n'


def topology(tmp_path: Path, text: str) -> Topology:
    return load(write(tmp_path, text)).topology


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lab-t.toml"
    path.write_text(text)
    return path


def routes(node: Node) -> set[tuple[str | None, str]]:
    return {(route.destination, route.via) for route in node.routes if route.family == 4}


def test_a_star(tmp_path: Path) -> None:
    made = topology(tmp_path, STAR)
    assert list(made.nodes) == ["a", "b", "router"]
    assert made.nodes["b"].ipv4 == ["10.0.2.2"]
    assert made.nodes["b"].ipv6 == ["fd00:2::2"]
    assert made.nodes["router"].ipv4 == ["10.0.1.254", "10.0.2.254"]
    assert routes(made.nodes["a"]) == {("10.0.2.0/24", "10.0.1.254"), (None, "10.0.1.254")}
    assert routes(made.nodes["router"]) == set()
    assert [device.name for device in made.nodes["router"].devices] == ["a", "b"]


def test_a_gateway_with_hosts_behind_a_bridge(tmp_path: Path) -> None:
    text = STAR + (
        '[[host]]\nname = "x"\nagent = false\n[[host]]\nname = "y"\nagent = false\n'
        '[[bridge]]\nname = "lan"\n'
        '[[link]]\nbetween = ["b", "router"]\n[[link]]\nbetween = ["b", "lan"]\n'
        '[[link]]\nbetween = ["x", "lan"]\n[[link]]\nbetween = ["y", "lan"]\nmtu = 1280\n'
    )
    text = text.replace('name = "b"\n', 'name = "b"\nforward = true\n', 1)
    made = topology(tmp_path, text)
    assert made.nodes["b"].ipv4 == ["10.0.2.2", "10.0.3.2"]
    assert made.nodes["x"].ipv4 == ["10.0.3.3"]
    assert made.nodes["y"].ipv4 == ["10.0.3.4"]
    assert made.nodes["lan"].ipv4 == []
    assert (None, "10.0.3.2") in routes(made.nodes["x"])
    assert routes(made.nodes["router"]) == {("10.0.3.0/24", "10.0.2.2")}
    assert ("10.0.3.0/24", "10.0.1.254") in routes(made.nodes["a"])


def test_two_routers_in_a_row(tmp_path: Path) -> None:
    text = STAR + (
        '[[router]]\nname = "r"\n[[router]]\nname = "s"\n'
        '[[link]]\nbetween = ["b", "s"]\n[[link]]\nbetween = ["r", "s"]\n'
    )
    made = topology(tmp_path, text)
    assert made.nodes["r"].ipv4 == ["10.0.1.254", "10.0.3.254"]
    assert made.nodes["s"].ipv4 == ["10.0.2.253", "10.0.3.253"]
    assert routes(made.nodes["r"]) == {("10.0.2.0/24", "10.0.3.253")}
    assert ("10.0.2.0/24", "10.0.1.254") in routes(made.nodes["a"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("lab-*.toml")), ids=lambda path: path.stem)
def test_the_labs_of_the_repository(path: Path, tmp_path: Path) -> None:
    lab = load(path, root=tmp_path)
    assert lab.name in lab.graph()
    assert lab.status()["state"] == "down"
    for name, tables in lab._tables.items():
        text = hosts.to_toml(tables)
        _, found = config.check_bytes(text.encode(), f"{name}.toml", CONFIGS)
        assert not [str(one) for one in found if "No such file" not in str(one)]
        assert tomllib.loads(text) == tables


def test_the_demo() -> None:
    lab = load(CONFIGS / "lab-demo.toml")
    assert "web: a ══ b/firewall ══ c/counter ══ destination" in lab.graph()
    tables = lab._tables["a"]
    assert tables["agent"]["addresses"] == ["10.0.1.1", "fd00:1::1"]
    assert [peer["name"] for peer in tables["peer"]] == ["b", "c", "d", "e"]
    assert tables["policy"][0]["match"] == "tcp dst port 80 and (dst host 10.0.4.4 or dst host fd00:4::4)"


def test_what_a_host_says_itself_stays(tmp_path: Path) -> None:
    text = STAR.replace(
        'name = "b"\n',
        'name = "b"\nnamespaces = ["fw"]\nconfig = { agent = { control_port = 3000 }, '
        'peer = [{ name = "a", mtu = 1300 }], '
        'box = [{ name = "fw", kind = "namespace", namespace = "${ns.fw}" }] }\n',
    )
    tables = load(write(tmp_path, text))._tables["b"]
    assert tables["agent"]["control_port"] == 3000
    assert tables["agent"]["underlay"] == ["eth0"]
    assert tables["peer"] == [{"name": "a", "addresses": ["10.0.1.1", "fd00:1::1"], "mtu": 1300}]
    assert tables["box"][0]["namespace"] == "dysco-t-b-fw"


def test_a_host_toml_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('[tun]\nmtu = 1400\n[agent]\nname = "bee"\n')
    text = STAR.replace('name = "b"\n', 'name = "b"\nconfig = "b.toml"\n')
    tables = load(write(tmp_path, text))._tables["b"]
    assert tables["tun"] == {"mtu": 1400}
    assert tables["agent"]["name"] == "bee"
    with pytest.raises(ConfigError, match=r"c\.toml: No such file"):
        load(write(tmp_path, text.replace("b.toml", "c.toml")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("", ""), None),
        (('name = "b"', 'name = "a"'), "two nodes are called 'a'"),
        (('name = "b"', 'name = "B b"'), "host.1.name: 'B b': 1 to 14 small letters"),
        (('name = "b"', 'name = "b"\nfoo = 1'), "host.1.foo: Extra inputs"),
        (('name = "b"', 'name = "b"\n[[link]]\nbetween = ["a", "z"]'), "there is no node 'z'"),
        (('name = "b"', 'name = "b"\n[[link]]\nbetween = ["a", "a"]'), "link from a to itself"),
        (
            ('name = "b"', 'name = "b"\n[[link]]\nbetween = ["a", "b"]\nloss = 2.0'),
            "link.0.loss: Input should be less than or equal to 1",
        ),
        (("[lab]", "[lab"), "lab-t.toml: Expected ']'"),
        (
            ('name = "b"', 'name = "b"\nconfig = { x = "${nobody.ipv4}" }'),
            r"\$\{nobody.ipv4\}: there is no such",
        ),
    ],
)
def test_wrong_files(tmp_path: Path, change: tuple[str, str], message: str | None) -> None:
    path = write(tmp_path, STAR.replace(*change) if message else STAR)
    if message is None:
        load(path)
        return
    with pytest.raises(ConfigError, match=message):
        load(path)


PLAIN = (
    st.integers(-(2**40), 2**40)
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
)
TABLE = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6), PLAIN | st.lists(PLAIN, max_size=3)
)


@given(st.dictionaries(st.sampled_from("abc d"), PLAIN | TABLE | st.lists(TABLE, min_size=1, max_size=3)))
def test_toml_reads_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(hosts.to_toml(tables)) == tables
