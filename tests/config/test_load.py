"""host.toml is accepted whole, or refused with everything that is wrong at its line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco import config
from dysco.errors import ExitStatus
from dysco.wire.tuples import FiveTuple

HEAD = '[agent]\nname = "a"\n[keys]\ncertificate = "a.pem"\nkey = "a.key"\nca = "ca.pem"\n'
PEERS = """\
[[peer]]
name = "fw"
addresses = ["10.0.0.2", "2001:db8::2"]
[[peer]]
name = "ids"
addresses = ["10.0.0.3", "2001:db8::3"]
"""


def findings(text: str) -> list[str]:
    """Give the findings as lines, without the file's name."""
    _, found = config.check_bytes(text.encode(), "host.toml", Path("/etc/dysco"))
    return [str(one).removeprefix("host.toml:") for one in found]


def accept(text: str) -> config.HostConfig:
    loaded, found = config.check_bytes(text.encode(), "host.toml", Path("/etc/dysco"))
    assert loaded is not None, found
    return loaded


def test_the_smallest_file_has_all_defaults() -> None:
    loaded = accept('[agent]\nname = "a"\n[keys]\ncertificate = "c"\nkey = "k"\n')
    assert loaded.agent.control_port == 2016
    assert loaded.agent.port_range == (61000, 65535)
    assert loaded.agent.underlay == ("eth0",)
    assert str(loaded.socket) == "/run/dysco/a.sock"
    assert str(loaded.run_directory) == "/run/dysco/a"
    assert loaded.timers.established == 8100
    assert loaded.default_box is None


def test_relative_paths_begin_at_the_file() -> None:
    loaded = accept(
        HEAD + '[[box]]\nname = "p"\nkind = "packet"\npython = "boxes/p.py:P"\n'
        '[[box]]\nname = "q"\nkind = "packet"\npython = "mine.boxes:Q"\n'
    )
    assert str(loaded.keys.certificate) == "/etc/dysco/a.pem"
    assert loaded.box[0].python == "/etc/dysco/boxes/p.py:P"
    assert loaded.box[1].python == "mine.boxes:Q"


def test_everything_that_is_wrong_is_told_at_once() -> None:
    text = """\
[agent]
name = "a"
lop = "uvloop"
port_range = [1, 2]
control_port = "abc"
[tun]
  mtu = 99
[[peer]]
addresses = ["10.0.0.1", "127.0.0.1", 5]
[[box]]
name = "x"
kind = "kernl"
match = ["tupel"]
"""
    assert findings(text) == [
        "3:1: agent.lop: unknown key; did you mean 'loop'?",
        "4:1: agent.port_range: [1, 2]: ports of subsessions lie between 1024 and 65535",
        "5:1: agent.control_port: expected a whole number, not 'abc'",
        "7:3: tun.mtu: 99 is below 576",
        "8:3: peer[1].name: is missing (Name of the peer, as in its certificate)",
        "9:26: peer[1].addresses[2]: '127.0.0.1' is a loopback address: agents are reached by addresses that "
        "other hosts can route",
        "9:39: peer[1].addresses[3]: expected an address in quotes, not 5",
        "12:1: box[x].kind: 'kernl' is not one of 'kernel', 'namespace', 'packet', 'stream', 'proxy'; "
        "did you mean 'kernel'?",
        "13:10: box[x].match[1]: 'tupel' is not one of 'tuple', 'tag', 'fingerprint', 'api'; "
        "did you mean 'tuple'?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[agent\n", "1:7: expected ']' at the end of a table declaration"),
        ("a = 1\na = 2\n", "2:6: cannot overwrite a value"),
        ("a = [1,", "1:8: invalid value at the end of the file"),
        ("a = " + "[" * 5000, "1:1: is nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml(text: str, line: str) -> None:
    assert findings(text) == [line]


def test_bytes_that_are_no_utf8() -> None:
    loaded, found = config.check_bytes(b"[agent]\nname = '\xff'", "h", Path("/"))
    assert loaded is None
    assert [str(one) for one in found] == ["h:2:9: byte 0xff is not UTF-8"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigErrors, match="cannot be read: No such file") as caught:
        config.load(tmp_path / "host.toml")
    assert caught.value.exit_status == ExitStatus.USAGE
    assert len(caught.value.findings) == 1


POLICY = '[[policy]]\nname = "web"\nmatch = "ip and tcp dst port 80"\n'
AT = HEAD.count("\n") + PEERS.count("\n")  # lines before what a case adds


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        (POLICY + 'hops = ["fv"]\n', "4:9: policy[web].hops[1]: no peer is called 'fv'; did you mean 'fw'?"),
        (
            POLICY + 'hops = ["10.0.0.9"]\n',
            "4:9: policy[web].hops[1]: 10.0.0.9 is an address of no peer; did you mean",
        ),
        (
            POLICY + 'hops = ["fw", "ids/"]\n',
            "4:15: policy[web].hops[2]: 'ids/': the name of a box is missing",
        ),
        (POLICY + 'hops = [{ group = "g" }]\n', "4:11: policy[web].hops[1].group: no group is called 'g'"),
        (POLICY + 'hops = [{ to = "fw", pick = "hash" }]\n', "4:9: policy[web].hops[1]: pick is for groups"),
        (POLICY + "hops = [5]\n", "4:9: policy[web].hops[1]: a hop is a peer, 'peer/box', an address"),
        (
            POLICY + "hops = [" + '"fw",' * 16 + "]\n",
            "4:1: policy[web].hops: 16 hops and the final host are 17",
        ),
        (POLICY + "hops = [" + '"fw",' * 17 + "]\n", "4:1: policy[web].hops: 17 are too many: at most 16"),
        (POLICY + 'hops = []\negress = "nat"\n', "4:1: policy[web].hops: egress = 'nat' needs a hop"),
        (
            '[[peer]]\nname = "fw"\naddresses = ["10.0.0.8"]\n',
            "2:1: peer[fw].name: 'fw' is the name of two peers",
        ),
        (
            '[[peer]]\nname = "x"\naddresses = ["10.0.0.2"]\n',
            "3:14: peer[x].addresses[1]: 10.0.0.2 is an address of peer",
        ),
        (
            '[[peer]]\nname = "a"\naddresses = ["10.0.0.8"]\n',
            "2:1: peer[a].name: 'a' is the name of this agent",
        ),
        ('[[group]]\nname = "g"\nmembers = []\n', "3:1: group[g].members: must not be empty"),
        (
            '[[group]]\nname = "g"\nmembers = ["fw"]\ndrained = ["f"]\n',
            "4:12: group[g].drained[1]: 'f' is no member",
        ),
        ('[[group]]\nname = "fw"\nmembers = ["fw"]\n', "2:1: group[fw].name: 'fw' is the name of a peer too"),
        (
            '[[group]]\nname = "g"\nmembers = ["fw", "fw"]\n',
            "3:18: group[g].members[2]: 'fw' stands here twice",
        ),
        (POLICY + 'hops = ["a"]\n', "4:9: policy[web].hops[1]: 'a' is this agent, and it has no box"),
        (POLICY + "hops = [{}]\n", "4:9: policy[web].hops[1]: a hop is a peer, 'peer/box', an address"),
        (
            POLICY + 'hops = [{ to = "fw", group = "g" }]\n',
            "4:9: policy[web].hops[1]: a hop is a peer, 'peer/box'",
        ),
        (
            POLICY + 'hops = ["fw"]\npriority = 1.5\n',
            "5:1: policy[web].priority: expected a whole number, not 1.5",
        ),
        (POLICY + 'hops = "fw"\n', "4:1: policy[web].hops: expected a list, not 'fw'"),
        (POLICY + 'hops = ["fw"]\nenabled = 1\n', "5:1: policy[web].enabled: expected true or false, not 1"),
        ("[tun]\nmtu = true\n", "2:1: tun.mtu: expected a whole number, not true"),
        ("[tun]\nmtu = 70000\n", "2:1: tun.mtu: 70000 is above 65535"),
        ('[tun]\noffload = "yes"\n', "2:1: tun.offload: expected true or false, not 'yes'"),
        ('[tun]\nunderlay = "dysco0"\n', "2:1: tun.underlay: 'dysco0' is the session device too"),
        ('[tun]\nsession = "a/b"\n', "2:1: tun.session: 'a/b' is not a device name"),
        ("[timers]\nestablished = inf\n", "2:1: timers.established: inf is not a finite number"),
        (
            "[timers]\nestablished = 1979-05-27\n",
            "2:1: timers.established: expected a number, not 1979-05-27",
        ),
        ("[timer]\n", "1:2: timer: unknown key; did you mean 'timers'?"),
        (
            '[[peer]]\nname = "x"\naddresses = ["10.0.0.7", "10.0.0.7"]\n',
            "3:26: peer[x].addresses[2]: 10.0.0.7 stands",
        ),
        ('[[peer]]\nname = "x y"\naddresses = ["10.0.0.7"]\n', "2:1: peer[x y].name: 'x y' is not a name"),
        (
            '[[peer]]\nname = "x"\naddresses = ["fe80::1%eth0"]\n',
            "3:14: peer[x].addresses[1]: 'fe80::1%eth0': an addr",
        ),
        (
            '[[peer]]\nname = "x"\naddresses = ["10.0.0"]\n',
            "3:14: peer[x].addresses[1]: '10.0.0' is not an IPv4 or",
        ),
        (
            '[[peer]]\nname = "x"\naddresses = ["10.0.0.7"]\nfingerprint = "ab:cd"\n',
            "4:1: peer[x].fingerprint: 'ab:cd' is not a SHA-256 fingerprint",
        ),
        (
            '[[peer]]\nname = "x"\naddresses = ["10.0.0.7"]\nnext_hops = ["idz"]\n',
            "4:14: peer[x].next_hops[1]: no peer is called 'idz'; did you mean 'ids'?",
        ),
        (
            '[[peer]]\nname = "x"\naddresses = ["10.0.0.7"]\naccept = false\nmay_use = "tcp"\n',
            "5:1: warning: peer[x].may_use: has no effect: accept = false",
        ),
        (
            '[[box]]\nname = "b"\nkind = "kernel"\n[[box]]\nname = "c"\nkind = "kernel"\n',
            "6:1: box[c].kind: there is one 'kernel' box a host at most",
        ),
        (
            '[[box]]\nname = "b"\nkind = "kernel"\ndefault = true\n'
            '[[box]]\nname = "c"\nkind = "packet"\ndefault = true\n',
            "8:1: box[c].default: another box is the default already",
        ),
        (
            '[[box]]\nname = "b"\nkind = "stream"\nchanges_tuple = true\n',
            "4:1: box[b].changes_tuple: a stream box sees bytes",
        ),
        (
            '[[box]]\nname = "b"\nkind = "packet"\nmatch = ["tag", "tag"]\n',
            "4:1: box[b].match: one way stands here twice",
        ),
        (
            '[[box]]\nname = "b"\nkind = "namespace"\nnamespace = "n"\nleft = "x"\nright = "x"\n',
            "6:1: box[b].right: 'x' is the left device too",
        ),
        (
            '[[box]]\nname = "b"\nkind = "namespace"\nnamespace = "n"\nleft = "dysco0"\n',
            "5:1: box[b].left: 'dysco0' is tun.session already",
        ),
        ('[[box]]\nname = "b"\nkind = "namespace"\n', "1:3: box[b]: namespace is missing"),
        (
            '[[box]]\nname = "b"\nkind = "kernel"\nleft = "l"\n',
            "4:1: box[b].left: a box of kind 'kernel' has none",
        ),
        ('[[box]]\nname = "b"\nkind = "packet"\npython = "x"\n', "4:1: box[b].python: 'x' is neither"),
        (
            '[[box]]\nname = "b"\nkind = "kernel"\nchanges_tuple = true\nmatch = ["tuple"]\n',
            "5:1: box[b].match: 'tuple' alone never finds",
        ),
    ],
)
def test_what_does_not_fit_together(addition: str, expected: str) -> None:
    line, rest = expected.split(":", 1)
    found = findings(HEAD + PEERS + addition)
    assert len(found) == 1, found
    assert found[0].startswith(f"{AT + int(line)}:{rest}")


def test_boxes_whose_numbers_collide_are_refused() -> None:
    # Found by search: SHA-256 of both names begins with the same four bytes.
    first, second = "b82486", "b131142"
    assert config.box_tag(first) == config.box_tag(second)
    text = HEAD + "".join(
        f'[[box]]\nname = "{n}"\nkind = "packet"\npython = "m:C"\n' for n in (first, second)
    )
    assert "choose another name" in findings(text)[0]


def test_no_peer_without_proof_of_identity() -> None:
    assert findings('[agent]\nname = "a"\n' + PEERS) == [
        "1:1: keys: certificate and key are missing: agents prove to each other who they are",
        "3:3: peer[fw]: neither a fingerprint here nor keys.ca: the peer could not prove who it is",
        "6:3: peer[ids]: neither a fingerprint here nor keys.ca: the peer could not prove who it is",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('socket = "/' + "x" * 120 + '"', "agent.socket: '/x"),
        ('socket = ""', "agent.socket: '' is not a path"),
        ("socket = 5", "agent.socket: expected a path in quotes, not 5"),
        ('metrics = "localhost:80"', "agent.metrics: 'localhost:80' is not ADDRESS:PORT"),
        ("port_range = [61000]", "agent.port_range: [61000] is not a pair of ports"),
        (
            "port_range = [62000, 61000]",
            "agent.port_range: [62000, 61000]: the first port must be below the last",
        ),
        ("port_range = 5", "agent.port_range: expected a list, not 5"),
        ("port_range = [64000, 64009]", "warning: agent.port_range: 10 ports are few"),
        ("port_range = [50000, 65535]", "warning: agent.port_range: reaches below 61000"),
        ("underlay = []", "agent.underlay: must not be empty"),
        ('underlay = ["eth0", "eth0"]', "agent.underlay[2]: 'eth0' stands here twice"),
        ('underlay = ["dysco1"]', "agent.underlay[1]: 'dysco1' is a device that the agent makes itself"),
        ('addresses = ["10.0.0.2"]', "peer[fw].addresses[1]: 10.0.0.2 is an address of this agent too"),
        ('addresses = ["10.0.0.1", "10.0.0.1"]', "agent.addresses[2]: 10.0.0.1 stands here twice"),
        ("control_port = 0", "agent.control_port: 0 is below 1"),
    ],
)
def test_what_is_wrong_with_the_agent(line: str, expected: str) -> None:
    found = findings(HEAD.replace("[keys]", line + "\n[keys]") + PEERS)
    assert len(found) == 1, found
    assert found[0].split(": ", 1)[1].startswith(expected)


def test_sections_of_the_wrong_kind() -> None:
    assert findings("agent = 5\npeer = {}\nbox = [1]\n") == [
        "1:1: agent: expected a table, not 5",
        "2:1: peer: expected a list, not a table",
        "3:8: box[1]: expected a table, not 1",
    ]


def test_a_certificate_needs_its_key() -> None:
    assert findings('[agent]\nname = "a"\n[keys]\ncertificate = "x"\n') == [
        "3:2: keys: certificate without key"
    ]


def test_two_boxes_in_one_namespace_need_devices_of_their_own() -> None:
    text = "".join(f'[[box]]\nname = "{n}"\nkind = "namespace"\nnamespace = "x"\n' for n in "bc")
    assert [line.split(": ", 1)[1] for line in findings(HEAD + text)] == [
        "box[c].left: 'dysco-left' in this namespace belongs to box 'b'",
        "box[c].right: 'dysco-right' in this namespace belongs to box 'b'",
    ]


def test_how_a_box_finds_its_syns() -> None:
    boxes = accept(
        HEAD
        + '[[box]]\nname = "b"\nkind = "kernel"\n[[box]]\nname = "c"\nkind = "packet"\nchanges_tuple = true\n'
        '[[box]]\nname = "d"\nkind = "packet"\nmatch = ["api"]\ndefault = true\n'
    )
    assert [box.matching for box in boxes.box] == [("tuple",), ("tag", "fingerprint"), ("api",)]
    assert boxes.default_box is boxes.box[2]


def test_policies_may_name_this_host_and_addresses() -> None:
    loaded = accept(
        HEAD.replace("[keys]", 'addresses = ["10.0.0.1", "2001:db8::1"]\n[keys]')
        + PEERS
        + '[[box]]\nname = "b"\nkind = "kernel"\n'
        + POLICY
        + 'hops = ["a/b", "10.0.0.2", { group = "g", pick = "least-sessions" }]\n'
        + '[[group]]\nname = "g"\nmembers = ["ids"]\n'
    )
    choice = config.policy_set(loaded).decide(FiveTuple.parse("10.0.0.1:5 > 10.0.0.9:80"), 0.0)
    assert choice is not None
    assert [(hop.address[-1], hop.box) for hop in choice.hops] == [
        (1, config.box_tag("b")),
        (2, 0),
        (3, 0),
        (9, 0),
    ]
    own = HEAD.replace("[keys]", 'addresses = ["10.0.0.1"]\n[keys]') + PEERS
    for name in ("a", "10.0.0.1"):
        [found] = findings(own + '[[box]]\nname = "b"\nkind = "kernel"\n' + POLICY + f'hops = ["{name}/c"]\n')
        assert found.endswith("no box here is called 'c'")
    assert findings(
        HEAD + PEERS + '[[box]]\nname = "bees"\nkind = "kernel"\n' + POLICY + 'hops = ["a/bee"]\n'
    )[0].endswith("no box here is called 'bee'; did you mean 'bees'?")


def test_no_chain_goes_through_a_proxy() -> None:
    proxy = '[[box]]\nname = "web"\nkind = "proxy"\n'
    [found] = findings(HEAD + PEERS + proxy + POLICY + 'hops = ["fw", "a/web"]\n')
    assert found.startswith(
        "19:15: policy[web].hops[2]: box 'web' is a proxy, which ends sessions and opens others"
    )
    [found] = findings(HEAD + PEERS + proxy + POLICY + 'hops = ["a"]\n')
    assert found.endswith("'a' is this agent, and it has no box that a chain goes through")
    [found] = findings(HEAD + proxy + "default = true\n")
    assert "box[web].default: a box of kind 'proxy' has none" in found
    kernel = '[[box]]\nname = "fw"\nkind = "kernel"\n'
    loaded = accept(HEAD + PEERS + proxy + kernel + POLICY + 'hops = ["a"]\n')
    assert loaded.default_box is loaded.box[1]


@pytest.mark.parametrize(
    ("box", "lines"),
    [
        ('kind = "kernel"\nstate = "conntrack"', []),
        ('kind = "packet"\nstate = "python"\nstate_limit = 10', []),
        ('kind = "kernel"\nstate = "command"\nstate_command = ["/bin/move", "-v"]\nstate_timeout = 0.5', []),
        (
            'kind = "kernel"\nstate = "python"',
            ["10:1: box[b].state: 'python' is for boxes of kind 'packet' or 'stream', not 'kernel'"],
        ),
        (
            'kind = "stream"\nstate = "conntrack"',
            ["10:1: box[b].state: 'conntrack' is for boxes of kind 'kernel' or 'namespace', not 'stream'"],
        ),
        (
            'kind = "proxy"\nstate = "command"\nstate_command = ["/bin/move"]',
            ["10:1: box[b].state: a proxy's sessions end there; its state cannot go to another host"],
        ),
        (
            'kind = "kernel"\nstate = "command"',
            ["7:3: box[b]: state_command is missing: what moves the state?"],
        ),
        (
            'kind = "kernel"\nstate = "command"\nstate_command = ["move"]',
            ["11:1: box[b].state_command: 'move' is not an absolute path"],
        ),
        (
            'kind = "kernel"\nstate_timeout = 1',
            ["10:1: warning: box[b].state_timeout: has no effect: state = 'none'"],
        ),
    ],
)
def test_how_the_state_of_a_box_moves(box: str, lines: list[str]) -> None:
    assert findings(HEAD + f'[[box]]\nname = "b"\n{box}\n') == lines
