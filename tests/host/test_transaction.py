"""Order, rollback and takeover of transactions, with changes to a dictionary instead of a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.errors import HostError
from dysco.host import changes
from dysco.host.changes import Change, ReservePorts, SetSysctl, State, from_record
from dysco.host.journal import Journal
from dysco.host.links import AddRoute, AddRule, AttachClassifier, AttachProgram, CreateTun, LinkUp
from dysco.host.lock import Lock
from dysco.host.netns import Kernel, prefix
from dysco.host.plan import Plan
from dysco.host.transaction import Transaction, clean

WORLD: dict[str, str] = {}
REFUSED: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Put(Change):
    """Put a value into the world."""

    key: str
    value: str

    def command(self) -> str:
        return f"put {self.key}={self.value}"

    def look(self, kernel: Kernel) -> State:
        return {"value": WORLD.get(self.key)}

    def apply(self, kernel: Kernel, before: State) -> None:
        if self.key in REFUSED:
            raise HostError(f"{self.show()}: refused")
        WORLD[self.key] = self.value

    def undo(self, kernel: Kernel, before: State) -> str | None:
        now = WORLD.get(self.key)
        if now not in (self.value, before["value"]):
            return f"{self.key} is {now} now"
        if before["value"] is None:
            WORLD.pop(self.key, None)
        else:
            WORLD[self.key] = before["value"]
        return None


@dataclass(frozen=True, kw_only=True)
class Keep(Put):
    """Put one that the next agent keeps."""

    outlives_agent: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def _world() -> None:
    WORLD.clear()
    WORLD.update({"a": "old"})
    REFUSED.clear()


def puts(**values: str) -> Plan:
    return Plan(tuple(Put(key=key, value=value) for key, value in values.items()))


def transaction(plan: Plan, tmp_path: Path, name: str = "run") -> Transaction:
    return Transaction(plan, tmp_path / name, name=name, locks=tmp_path / "locks")


def test_up_and_down(tmp_path: Path) -> None:
    it = transaction(puts(a="1", b="2"), tmp_path)
    it.up()
    assert WORLD == {"a": "1", "b": "2"}
    assert it.down() == []
    assert WORLD == {"a": "old"}
    assert not any((tmp_path / "run").iterdir())
    assert not any((tmp_path / "locks").iterdir())


def test_locks_of_namespaces_whose_agents_were_killed_do_not_pile_up(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.mkdir()
    held = Lock(locks / "netns-1.lock", "an agent that lives")
    held.take()
    (locks / "netns-2.lock").write_text("one that was killed (process 1)\n")
    (locks / "other.lock").touch()
    it = transaction(puts(a="1"), tmp_path)
    it.up()
    left = {path.name for path in locks.iterdir()}
    assert {"netns-1.lock", "other.lock"} < left
    assert "netns-2.lock" not in left
    assert it.down() == []
    held.release()
    assert {path.name for path in locks.iterdir()} == {"other.lock"}


def test_an_error_undoes_what_was_done_before_it(tmp_path: Path) -> None:
    REFUSED.add("c")
    with pytest.raises(HostError, match="put c=3: refused"):
        transaction(puts(a="1", b="2", c="3", d="4"), tmp_path).up()
    assert WORLD == {"a": "old"}
    assert not (tmp_path / "run" / "host.journal").exists()


def test_what_somebody_else_changed_stays_and_is_told(tmp_path: Path) -> None:
    it = transaction(puts(a="1", b="2"), tmp_path)
    it.up()
    WORLD["a"] = "theirs"
    assert it.down() == ["a is theirs now"]
    assert WORLD == {"a": "theirs"}


def test_the_next_one_takes_over_and_remembers_the_first_state(tmp_path: Path) -> None:
    first = transaction(puts(a="1", b="2", c="3"), tmp_path)
    first.up()
    first.leave()
    second = transaction(puts(a="1", c="30", d="4"), tmp_path)
    second.up()
    assert WORLD == {"a": "1", "c": "30", "d": "4"}
    assert second.down() == []
    assert WORLD == {"a": "old"}


def test_the_next_one_keeps_what_outlives_an_agent_and_undoes_it_at_its_end(tmp_path: Path) -> None:
    kept = Keep(key="k", value="1")
    first = transaction(puts(a="1", b="2"), tmp_path)
    first.up()
    first.extend([kept])
    first.leave()
    for _ in range(2):
        second = transaction(puts(a="1"), tmp_path)
        second.up()
        assert WORLD == {"a": "1", "k": "1"}
        assert kept in second.made()
        second.leave()
    third = transaction(puts(a="1"), tmp_path)
    third.up()
    third.withdraw([kept])
    assert WORLD == {"a": "1"}
    third.extend([kept])
    assert third.down() == []
    assert WORLD == {"a": "old"}


def test_clean_needs_the_journal_alone(tmp_path: Path) -> None:
    first = transaction(puts(a="1", b="2"), tmp_path)
    first.up()
    with pytest.raises(HostError, match="is at work here"):
        clean(tmp_path / "run", locks=tmp_path / "locks")
    first.leave()
    assert clean(tmp_path / "run", locks=tmp_path / "locks") == []
    assert WORLD == {"a": "old"}
    assert clean(tmp_path / "run", locks=tmp_path / "locks") == []
    assert clean(tmp_path / "nowhere", locks=tmp_path / "locks") == []


def test_two_agents_of_one_namespace_are_refused(tmp_path: Path) -> None:
    first = transaction(puts(a="1"), tmp_path, "one")
    first.up()
    with pytest.raises(HostError, match=r"one .* is at work here"):
        transaction(puts(b="2"), tmp_path, "two").up()
    assert WORLD == {"a": "1"}
    first.down()
    second = transaction(puts(b="2"), tmp_path, "two")
    second.up()
    second.down()


def test_a_journal_of_an_earlier_boot_is_forgotten(tmp_path: Path) -> None:
    first = transaction(puts(a="1"), tmp_path)
    first.up()
    first.leave()
    journal = Journal(tmp_path / "run")
    header, *rest = journal.read()
    journal.begin([{**header, "boot": "another"}, *rest])
    journal.close()
    assert clean(tmp_path / "run", locks=tmp_path / "locks") == []
    assert WORLD == {"a": "1"}


def test_a_namespace_that_is_gone_needs_nothing(tmp_path: Path) -> None:
    first = transaction(puts(a="1"), tmp_path)
    first.up()
    first.leave()
    journal = Journal(tmp_path / "run")
    records = journal.read()
    journal.begin([{**record, "cookie": 2**63, "inode": 1} for record in records])
    journal.close()
    assert clean(tmp_path / "run", locks=tmp_path / "locks") == []
    assert WORLD == {"a": "1"}


def test_damage_in_the_journal_is_told(tmp_path: Path) -> None:
    first = transaction(puts(a="1", b="2"), tmp_path)
    first.up()
    first.leave()
    path = tmp_path / "run" / "host.journal"
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"Put", b"Pot")
    path.write_bytes(b"\n".join(lines))
    (said,) = clean(tmp_path / "run", locks=tmp_path / "locks")
    assert "1 damaged records" in said
    assert WORLD == {"a": "1"}


def test_every_kind_comes_back_from_its_record() -> None:
    for change in (
        SetSysctl(key="net/ipv4/conf/eth0.7/forwarding", value="1"),
        ReservePorts(first=61000, last=65535),
        CreateTun(device="dysco0"),
        LinkUp(netns="box", device="left", mtu=1500, queue=1000),
        AddRule(family="inet6", device="left", table=7, preference=8),
        AddRoute(netns="/proc/1/ns/net", family="inet", device="left", table=7),
        AttachClassifier(
            device="eth0", direction="egress", name="x", preference=1, handle=2, program=lambda: 0
        ),
        AttachProgram(device="eth0", direction="egress", name="x", program=lambda: 0),
    ):
        assert from_record(change.record()) == change
        assert change.show().startswith(prefix(change.netns))
    with pytest.raises(HostError):
        from_record({"kind": "Nothing"})
    with pytest.raises(HostError):
        from_record({"kind": "Put", "wrong": 1})


def test_what_a_person_would_type() -> None:
    assert SetSysctl(key="net/ipv4/conf/a/forwarding", value="1").show() == (
        "sysctl -w net.ipv4.conf.a.forwarding=1"
    )
    assert SetSysctl(netns="box", key="net/ipv4/conf/a.1/forwarding", value="1").show() == (
        "ip netns exec box sysctl -w net/ipv4/conf/a.1/forwarding=1"
    )
    assert AddRule(netns="/n", family="inet6", device="l", table=7, preference=8).show() == (
        "nsenter --net=/n ip -6 rule add pref 8 iif l lookup 7"
    )


@given(st.sets(st.integers(1, 65535), max_size=40))
def test_port_lists(ports: set[int]) -> None:
    assert changes._parse_ports(changes._format_ports(ports)) == ports
