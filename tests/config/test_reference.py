"""The examples load, the reference page is fresh, and differences say what a reload does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dysco import config
from dysco.errors import ConfigError
from dysco.wire.tuples import FiveTuple

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "configs").glob("host-*.toml"))


def test_the_reference_page_is_fresh() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == config.render_reference()


def test_every_key_is_described() -> None:
    for section in config.HostConfig.model_fields:
        model = getattr(config, section.capitalize())
        for key, field in model.model_fields.items():
            assert field.description, f"{section}.{key}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load(path: Path) -> None:
    loaded, findings = config.check(path)
    assert loaded is not None, findings
    assert findings == []


def test_examples_agree_with_each_other() -> None:
    """Hosts of one network give each other the same names and addresses."""
    named: dict[str, tuple[object, ...]] = {}
    for path in EXAMPLES:
        loaded = config.load(path)
        for name, addresses in [
            (loaded.agent.name, loaded.agent.addresses),
            *((peer.name, peer.addresses) for peer in loaded.peer),
        ]:
            assert named.setdefault(name, addresses) == addresses


def test_the_client_example_decides() -> None:
    policies = config.policy_set(config.load(ROOT / "configs" / "host-client.toml"))
    choice = policies.decide(FiveTuple.parse("192.0.2.10:5000 > 198.51.100.40:443"), 0.0)
    assert choice is not None
    assert choice.policy == "web"
    assert choice.hops[0].address == bytes([192, 0, 2, 20])
    assert choice.hops[1].box == config.box_tag("suricata")
    assert choice.hops[2].address == bytes([198, 51, 100, 40])
    assert policies.decide(FiveTuple.parse("192.0.2.10:5000 > 198.51.100.40:25"), 0.0) is None


BASE = """\
[agent]
name = "a"
[keys]
certificate = "a.pem"
key = "a.key"
ca = "ca.pem"
[[peer]]
name = "fw"
addresses = ["10.0.0.2"]
[[policy]]
name = "web"
match = "ip and port 80"
hops = ["fw"]
[[policy]]
name = "ssh"
match = "ip and port 22"
hops = ["fw"]
"""


def load(text: str) -> config.HostConfig:
    loaded, findings = config.check_bytes(text.encode(), "host.toml", Path("/etc/dysco"))
    assert loaded is not None, findings
    return loaded


def test_nothing_differs_from_itself() -> None:
    assert config.diff(load(BASE), load(BASE)) == []


def test_differences_say_what_waits_for_a_restart() -> None:
    after = BASE.replace('name = "a"\n', 'name = "b"\non_stop = "keep"\n')
    after = after.replace("port 80", "port 80 or 443").replace("10.0.0.2", "10.0.0.3")
    after = after.replace('[[policy]]\nname = "ssh"\nmatch = "ip and port 22"\nhops = ["fw"]\n', "")
    after += '[[box]]\nname = "n"\nkind = "kernel"\n[[group]]\nname = "g"\nmembers = ["fw"]\n'
    assert [str(one) for one in config.diff(load(BASE), load(after))] == [
        'agent.name: "a" -> "b" (needs a restart)',
        'agent.on_stop: "reset" -> "keep"',
        'peer[fw].addresses: ["10.0.0.2"] -> ["10.0.0.3"]',
        "box[n]: added (needs a restart)",
        "group[g]: added",
        'policy[web].match: "ip and port 80" -> "ip and port 80 or 443"',
        "policy[ssh]: removed",
    ]


def test_a_reload_brings_what_it_can_into_force() -> None:
    after = BASE.replace('name = "a"\n', 'name = "b"\non_stop = "keep"\ncontrol_port = 7\n').replace(
        "port 80", "port 81"
    )
    merged = config.reloaded(load(BASE), load(after + '[[box]]\nname = "n"\nkind = "kernel"\n'))
    assert (merged.agent.name, merged.agent.on_stop, merged.agent.control_port) == ("a", "keep", 2016)
    assert merged.policy[0].match == "ip and port 81"
    assert merged.box == ()
    assert config.diff(load(BASE), merged) == [
        one for one in config.diff(load(BASE), load(after)) if not one.restart
    ]


def test_a_file_that_makes_sense_only_with_a_restart_is_refused() -> None:
    after = BASE.replace('name = "a"\n', 'name = "b"\n') + '[[box]]\nname = "n"\nkind = "kernel"\n'
    after = after.replace('hops = ["fw"]', 'hops = ["b/n"]')
    with pytest.raises(ConfigError, match=r"needs a restart of the agent.*no peer is called 'b'"):
        config.reloaded(load(BASE), load(after))


def test_the_order_of_policies_is_a_difference() -> None:
    head, first, second = BASE.partition('[[policy]]\nname = "web"')[0], *BASE.split("[[policy]]\n")[1:]
    swapped = f"{head}[[policy]]\n{second}[[policy]]\n{first}"
    assert [str(one) for one in config.diff(load(BASE), load(swapped))] == [
        'policy order: ["web", "ssh"] -> ["ssh", "web"]'
    ]


def test_hops_that_a_family_cannot_take_are_warned_of() -> None:
    _, findings = config.check_bytes(BASE.replace("ip and port 80", "port 80").encode(), "h", Path("/"))
    assert [str(one) for one in findings] == [
        "h:13:9: warning: policy[web].hops[1]: peer 'fw' has no IPv6 address: IPv6 sessions of this policy "
        "fail as on_fail says (add `ip` to match if they are not meant)"
    ]


def test_errors_of_match_tell_the_column() -> None:
    _, findings = config.check_bytes(BASE.replace("port 80", "prot 80").encode(), "h", Path("/"))
    assert [str(one) for one in findings] == [
        "h:12:1: policy[web].match: column 8: 'prot' is no keyword; did you mean 'port'?"
    ]


def test_whole_configurations_in_the_documentation_load() -> None:
    blocks = [
        (page.name, block)
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
        if "[agent]" in block
    ]
    assert blocks
    for page, block in blocks:
        loaded, findings = config.check_bytes(block.encode(), page, Path("/etc/dysco"))
        assert loaded is not None, findings
