"""A kernel left dirty: an agent's changes are made, killed at every point, undone; nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from dysco.dataplane import tcx
from dysco.dataplane.steer import OUT, Steering, pack_key
from dysco.errors import HostError
from dysco.host import NamespaceBox, Plan, Transaction, clean, for_agent, run_in
from dysco.host.changes import ForwardIPv6, SetSysctl
from dysco.host.netns import Namespace, enter, path_of
from dysco.host.pins import directory_of, fault
from dysco.wire.tuples import FiveTuple
from netns import program
from netns.worlds import Space, attached, dump, run


class Rig:
    """An agent's transaction in one namespace, with a box in another one."""

    def __init__(self, spaces: list[Space], directory: Path) -> None:
        self.spaces = spaces
        self.run_directory = directory / "run"
        self.locks = directory / "locks"
        self.by_tcx: bool | None = None  # as the kernel can

    def plan(self) -> Plan:
        """Compute the plan; the calling thread stands in the namespace."""
        loaded: list[int] = []

        def fresh(name: str) -> int:
            loaded.append(program.load(f"dysco_{name}"))
            if len(loaded) > 1:
                os.close(loaded[-2])
            return loaded[-1]

        box = NamespaceBox("box", self.spaces[1].name, "left", "right")
        bpffs = directory_of(self.run_directory)
        return for_agent(
            underlay=["eth0"],
            kernel_box=True,
            boxes=[box],
            programs={name: partial(fresh, name) for name in ("egress", "ingress", "inject")},
            by_tcx=self.by_tcx,
            bpffs=bpffs if fault(bpffs) is None else None,
        )

    def transaction(self, at: object = None) -> Transaction:
        """Make the transaction; the calling thread stands in the namespace."""
        more = {"at": at} if callable(at) else {}
        return Transaction(self.plan(), self.run_directory, name="test", locks=self.locks, **more)

    def dumps(self) -> list[list[str]]:
        """Dump both namespaces."""
        return [dump(space) for space in self.spaces]

    def killed(self, point: int, *, down: bool) -> bool:
        """Run up (and down) in a child that is killed at a point from 0 on; false if it came to its end."""
        child = os.fork()
        if child == 0:
            count = 0

            def at(_: str) -> None:
                nonlocal count
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

            status = 1
            try:
                enter(path_of(self.spaces[0].name))
                it = self.transaction(None if down else at)
                it.up()
                if down:
                    it._at = at
                    it.down()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)


by_tcx = pytest.mark.parametrize("by_tcx", [True, False], ids=["tcx", "cls_bpf"])


@pytest.fixture
def rig(spaces: list[Space], tmp_path: Path) -> Rig:
    for space in spaces:
        # As on Ubuntu, and with a reservation of somebody else, so that there is something to put back.
        run(["ip", "netns", "exec", space.name, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2"])
        reserved = "net.ipv4.ip_local_reserved_ports=7000,61005-61010"
        run(["ip", "netns", "exec", space.name, "sysctl", "-qw", reserved])
    return Rig(spaces, tmp_path)


@pytest.mark.slow
def test_killed_at_every_point(rig: Rig) -> None:
    """After kill -9 anywhere in up and down, the journal alone is enough to put everything back."""
    before = rig.dumps()
    points = 0
    for down in (False, True):
        point = 0
        while rig.killed(point, down=down):
            assert clean(rig.run_directory, locks=rig.locks) == []
            assert rig.dumps() == before, f"after point {point} of {'down' if down else 'up'}"
            point += 1
        assert clean(rig.run_directory, locks=rig.locks) == []
        points += point
    assert rig.dumps() == before
    assert points >= 200
    assert not any(rig.run_directory.iterdir())


@by_tcx
def test_an_agent_takes_over_what_a_killed_one_left(rig: Rig, by_tcx: bool) -> None:
    rig.by_tcx = by_tcx
    before = rig.dumps()
    assert rig.killed(70, down=False)

    def work() -> list[str]:
        it = rig.transaction()
        it.up()
        first = rig.dumps()
        it.leave()
        again = rig.transaction()
        again.up()
        assert without_numbers(rig.dumps()) == without_numbers(first)
        return again.down()

    assert run_in(rig.spaces[0].name, work) == []
    assert rig.dumps() == before


def without_numbers(dumps: list[list[str]]) -> list[list[str]]:
    """Leave out the lines about loaded programs, whose numbers grow."""
    return [[line for line in lines if "jited" not in line] for lines in dumps]


def test_what_is_there_while_it_is_up(rig: Rig) -> None:
    host, box = (space.name for space in rig.spaces)

    def work() -> None:
        it = rig.transaction()
        it.up()
        try:
            assert attached() == [
                "eth0 ingress dysco_ingress",
                "eth0 egress dysco_egress",
                "dysco1 ingress dysco_inject",
            ]
            conf = Path("/proc/sys/net/ipv4")
            assert (conf / "ip_local_reserved_ports").read_text() == "7000,61000-65535\n"
            assert (conf / "conf/all/rp_filter").read_text() == "0\n"
            assert (conf / "conf/eth0/rp_filter").read_text() == "2\n"
            assert (conf / "conf/dysco0/rp_filter").read_text() == "0\n"
            assert "inet6" not in run(["ip", "address", "show", "dev", "dysco0"])
            for family in ("-4", "-6"):
                assert "iif left lookup 201600" in run(["ip", "-n", box, family, "rule"])
                assert "dev left" in run(["ip", "-n", box, family, "route", "show", "table", "201601"])
        finally:
            it.down()

    run_in(host, work)


def test_down_from_another_namespace_finds_the_right_one(rig: Rig) -> None:
    before = rig.dumps()
    assert rig.killed(100, down=False)
    assert rig.dumps() != before
    assert run_in(rig.spaces[1].name, clean, rig.run_directory, locks=rig.locks) == []
    assert rig.dumps() == before


def test_a_namespace_that_died_meanwhile(rig: Rig) -> None:
    before = dump(rig.spaces[0])

    def work() -> None:
        it = rig.transaction()
        it.up()
        it.leave()

    run_in(rig.spaces[0].name, work)
    gone = rig.spaces[1]
    run(["ip", "netns", "delete", gone.name])
    run(["ip", "netns", "add", gone.name])  # the same name, another namespace
    fresh = dump_small(gone)
    assert clean(rig.run_directory, locks=rig.locks) == []
    assert dump(rig.spaces[0]) == before
    assert dump_small(gone) == fresh


def dump_small(space: Space) -> str:
    """Links and rules of a namespace without devices."""
    return run(["ip", "-n", space.name, "link"]) + run(["ip", "-n", space.name, "rule"])


def test_what_others_did_meanwhile_stays(rig: Rig) -> None:
    name = rig.spaces[0].name
    rig.by_tcx = False

    def work() -> list[str]:
        it = rig.transaction()
        it.up()
        conf = Path("/proc/sys/net/ipv4")
        (conf / "conf/eth0/rp_filter").write_text("1")
        (conf / "ip_local_reserved_ports").write_text("7000,8000,61000-65535")
        descriptor = program.load()
        with IPRoute() as ip:
            index = ip.link_lookup(ifname="eth0")[0]
            ip.tc("add-filter", "bpf", index, 1, parent=0xFFFFFFF2, prio=7, fd=descriptor, name="theirs")
        os.close(descriptor)
        kept = it.down()
        assert (conf / "conf/eth0/rp_filter").read_text() == "1\n"
        assert (conf / "ip_local_reserved_ports").read_text() == "7000,8000,61005-61010\n"
        return kept

    kept = run_in(name, work)
    assert len(kept) == 2
    assert "clsact of eth0 stays" in kept[0]
    assert "net.ipv4.conf.eth0.rp_filter is 1 now" in kept[1]


def test_programs_of_others_stay_where_ours_come_and_go(rig: Rig) -> None:
    """Ours is known by its name, also when it has to be replaced; one that the journal does not know is refused."""
    rig.by_tcx = True

    def work() -> None:
        index = socket.if_nametoindex("eth0")
        theirs = program.load("theirs")
        tcx.attach(index, "ingress", theirs, None)
        for _ in range(2):
            it = rig.transaction()
            it.up()
            assert [line for line in attached() if line.startswith("eth0 ingress")] == [
                "eth0 ingress theirs",
                "eth0 ingress dysco_ingress",
            ]
            it.leave()
        assert rig.transaction().plan.show()[-1].startswith("bpftool net attach tcx_")
        assert clean(rig.run_directory, locks=rig.locks) == []
        assert attached() == ["eth0 ingress theirs"]
        ours = program.load("dysco_egress")
        tcx.attach(index, "egress", ours, None)
        with pytest.raises(HostError, match="a program of this name that the journal does not know"):
            rig.transaction().up()
        for descriptor in (theirs, ours):
            os.close(descriptor)

    run_in(rig.spaces[0].name, work)


def test_foreign_things_are_refused_and_left(rig: Rig) -> None:
    name = rig.spaces[0].name
    run(["ip", "-n", name, "tuntap", "add", "dev", "dysco1", "mode", "tun"])
    before = rig.dumps()
    with pytest.raises(HostError, match="a device of this name that the journal does not know"):
        run_in(name, lambda: rig.transaction().up())
    assert rig.dumps() == before
    with pytest.raises(HostError, match="there is no device eth7 here; there are dysco1, eth0, eth1, lo"):
        run_in(name, for_agent, underlay=["eth7"])
    with pytest.raises(HostError, match="no such network namespace"):
        Namespace("ho-nowhere")


def test_two_agents_in_one_namespace(rig: Rig, tmp_path: Path) -> None:
    def work() -> None:
        first = rig.transaction()
        first.up()
        second = Transaction(rig.plan(), tmp_path / "other", name="second", locks=rig.locks)
        with pytest.raises(HostError, match=r"test \(process \d+\) is at work here"):
            second.up()
        first.down()

    run_in(rig.spaces[0].name, work)


def test_a_dry_run_touches_nothing(rig: Rig) -> None:
    before = rig.dumps()
    lines = run_in(rig.spaces[0].name, lambda: rig.plan().show())
    assert rig.dumps() == before
    assert "ip tuntap add dev dysco0 mode tun vnet_hdr" in lines
    assert not rig.run_directory.exists()


def test_forwarding_of_old_kernels(rig: Rig) -> None:
    """Without force_forwarding all devices forward, routers are still heard, and one forwarded before."""
    name = rig.spaces[0].name
    conf = Path("/proc/sys/net/ipv6/conf")

    def work() -> None:
        (conf / "eth1/forwarding").write_text("1")
        before = dump(rig.spaces[0])
        plan = Plan((ForwardIPv6(), SetSysctl(key="net/ipv4/conf/eth0/forwarding", value="1")))
        it = Transaction(plan, rig.run_directory, locks=rig.locks)
        it.up()
        assert (conf / "eth0/forwarding").read_text() == "1\n"
        assert (conf / "eth0/accept_ra").read_text() == "2\n"
        it.leave()
        it = Transaction(plan, rig.run_directory, locks=rig.locks)
        it.up()
        assert it.down() == []
        assert dump(rig.spaces[0]) == before

    run_in(name, work)


def test_the_command_line_of_a_namespace_by_path(rig: Rig) -> None:
    """A box may live in a namespace that has no name, only a process."""
    process = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"x\n"  # cat runs, so unshare has done its work
        path = f"/proc/{process.pid}/ns/net"
        box = NamespaceBox("box", path, "left", "right")
        plan = run_in(rig.spaces[0].name, lambda: for_agent(underlay=["eth0"], boxes=[box]))
        assert f"nsenter --net={path} ip tuntap add dev left mode tun vnet_hdr" in plan.show()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@by_tcx
def test_the_real_classifiers_and_their_maps_are_taken_over(rig: Rig, by_tcx: bool) -> None:
    """A restarted agent finds the maps of the programs that still run, and attaches its own to them."""
    name = rig.spaces[0].name
    run(["ip", "-n", name, "tuntap", "add", "dev", "wan0", "mode", "tun"])  # has no Ethernet header
    before = rig.dumps()
    session = FiveTuple.parse("10.1.1.1:1234 > 10.1.1.2:80")

    def open_and_attach() -> tuple[Steering, Transaction]:
        steering = Steering.open("dysco1")
        plan = for_agent(underlay=["eth0", "wan0"], programs=steering.programs(), by_tcx=by_tcx)
        it = Transaction(plan, rig.run_directory, name="test", locks=rig.locks)
        it.up()
        return steering, it

    def work() -> None:
        steering, it = open_and_attach()
        assert not steering.taken_over
        steering.add(session, OUT)
        flows = steering.flows
        key = pack_key(session, OUT)
        assert flows.get(key) is not None
        assert ("wan0 egress dysco_egress_l3" in attached()) == by_tcx
        filters = run(["tc", "filter", "show", "dev", "wan0", "egress"])
        assert ("dysco_egress_l3 direct-action" in filters) != by_tcx
        steering.close()
        it.leave()
        steering, it = open_and_attach()
        assert steering.taken_over
        assert steering.flows.get(key) is not None
        steering.close()
        assert it.down() == []

    run_in(name, work)
    assert rig.dumps() == before
