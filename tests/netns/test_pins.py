"""What an agent has in the kernel is pinned: it outlives the agent, is taken over, and goes when it shall."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dysco.dataplane import steer, tcx
from dysco.dataplane.bpf import call, object_info, pin, pinned
from dysco.dataplane.steer import LEAST_ENTRIES, SPECS, Steering
from dysco.errors import HostError
from dysco.host import Transaction, clean, for_agent, pins, run_in
from dysco.host import links as host_links
from dysco.host.pins import MountBpf, directory_of, fault, link_name, reach
from dysco.lab import Lab
from netns import program
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, fetch, kill, lab_text, put_file, until, until_said, url
from netns.test_fast import Client
from netns.worlds import Space, attached

BOX = """
[[host]]
name = "b"
[host.config]
box = [{ name = "plain", kind = "kernel" }]
"""
NODES = ("a", "b", "d")
INSIDE = """
[[host]]
name = "b"
namespaces = ["box"]
[host.config]
box = [{ name = "inside", kind = "namespace", namespace = "${ns.box}", left = "left", right = "right" }]
"""


@pytest.fixture(autouse=True)
def _outlives(tmp_path: Path) -> None:
    """Where nothing can be mounted that outlives an agent, nothing is pinned, and there is nothing to see."""
    if why := fault(tmp_path / "bpf"):
        pytest.skip(why)


def identity(path: Path) -> int:
    """The number that the kernel has given to what is pinned there."""
    descriptor = pinned(path)
    try:
        # struct bpf_map_info, bpf_prog_info, bpf_link_info: type, id
        return int.from_bytes(object_info(descriptor).raw[4:8], sys.byteorder)
    finally:
        os.close(descriptor)


def identities(place: Path) -> dict[str, int]:
    """The numbers of all that is pinned, by room and name."""
    return {f"{path.parent.name}/{path.name}": identity(path) for path in sorted(place.glob("*/*"))}


def mounted(directory: Path) -> bool:
    """Whether something is mounted at a directory."""
    return f" {directory} " in Path("/proc/self/mountinfo").read_text()


def of(lab: Lab, node: str) -> Path:
    """Where the agent of a node pins."""
    return lab.directory / node / "run" / "bpf"


def down(lab: Lab, node: str) -> None:
    """`dysco tun down` from the mount namespace of the tests."""
    config = str(lab.directory / node / "host.toml")
    lab.exec(node, [sys.executable, "-m", "dysco.cli", "tun", "down", "--config", config])


def alive(kind: str, numbers: set[int]) -> set[int]:
    """Those of the maps, programs or links with these numbers that the kernel still has."""
    found = set()
    for number in numbers:
        command = {"maps": 14, "programs": 13, "links": 30}[kind]  # BPF_*_GET_FD_BY_ID
        with contextlib.suppress(HostError):
            os.close(call(command, number.to_bytes(4, sys.byteorder), "gone"))
            found.add(number)
    return found


def gone(before: dict[str, int]) -> bool:
    """Whether the kernel has nothing any more of what was pinned."""
    kinds = {name.split("/")[0] for name in before}
    return not any(
        alive(kind, {number for name, number in before.items() if name.startswith(kind)}) for kind in kinds
    )


def test_from_up_over_a_crash_to_down(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("pins", BOX, hops='["b"]'))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    device = next(name for name in run_in(lab.netns("b"), attached) if "dysco_egress" in name).split()[0]
    first = identities(of(lab, "b"))
    assert {name for name in first if name.startswith("maps/")} == {
        f"maps/{spec.name}" for spec in SPECS if spec.name != "stages"
    }
    assert {"programs/egress", "programs/ingress", "programs/inject"} <= set(first)
    assert {f"links/{device}-egress", f"links/{device}-ingress", "links/dysco1-ingress"} <= set(first)
    with Client(lab, 4) as client:
        assert client.fetch() == wanted
        kill(lab, "b")
        assert identities(of(lab, "b")) == first
        assert client.fetch() == wanted
        lab.start_agent("b")
        lab.wait_for_agents()
        second = identities(of(lab, "b"))
        for kind, stays in (("maps", True), ("links", True), ("programs", False)):
            names = {name for name in first if name.startswith(f"{kind}/")}
            assert all((second[name] == first[name]) == stays for name in names), kind
        assert client.fetch() == wanted
    until_said(lab, "b", "agent.log", "sessions_restored", "why_not_pinned=None")
    kill(lab, "b")
    assert mounted(of(lab, "b"))
    assert len(run_in(lab.netns("b"), attached)) >= 3
    down(lab, "b")
    assert not mounted(of(lab, "b"))
    assert not of(lab, "b").exists()
    assert run_in(lab.netns("b"), attached) == []
    until("something is left in the kernel", lambda: gone(first | second))
    # Those of the others were never touched.
    for node in ("a", "d"):
        assert len(identities(of(lab, node))) == len(first)


def test_a_box_in_a_namespace_has_links_of_its_own(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("boxpins", INSIDE, hops='["b"]'))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    assert fetch(lab, url(lab, 4)) == wanted
    links = {path.name for path in (of(lab, "b") / "links").iterdir()}
    inside = lab.netns("b", "box")
    assert {"dysco-b0-ingress", f"{inside}:dysco-b0-ingress", f"{inside}:left-egress"} <= links
    kill(lab, "b")
    lab.start_agent("b")
    lab.wait_for_agents()
    assert fetch(lab, url(lab, 4)) == wanted
    assert {path.name for path in (of(lab, "b") / "links").iterdir()} == links


def test_a_lab_that_is_deleted_under_killed_agents_leaves_no_mount(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("underneath", BOX, hops='["b"]'))
    lab.up()
    before = {node: identities(of(lab, node)) for node in NODES}
    kill(lab, *NODES)
    lab.down()
    assert str(lab.directory) not in Path("/proc/self/mountinfo").read_text()
    assert not lab.directory.exists()
    until("something is left in the kernel", lambda: all(map(gone, before.values())))


class Rig:
    """An agent's kernel side in one namespace."""

    def __init__(self, space: Space, directory: Path) -> None:
        self.space = space
        self.run_directory = directory / "run"
        self.bpffs = directory_of(self.run_directory)
        self.locks = directory / "locks"

    def up(
        self, *, bpffs: bool = True, by_tcx: bool | None = None, entries: int = LEAST_ENTRIES
    ) -> tuple[Steering, Transaction]:
        """Bring it up; the calling thread stands in the namespace."""
        where = self.bpffs if bpffs else None
        steering = Steering.open("dysco1", lambda: reach(where) if where is not None else None, entries)
        plan = for_agent(underlay=["eth0"], programs=steering.programs(), by_tcx=by_tcx, bpffs=where)
        it = Transaction(plan, self.run_directory, name="test", locks=self.locks)
        it.up()
        return steering, it

    def maps(self, steering: Steering) -> dict[str, int]:
        """The numbers of the maps."""
        return {
            name: int.from_bytes(object_info(one.fd).raw[4:8], sys.byteorder)
            for name, one in steering.maps.items()
            if name != "stages"
        }

    def links(self) -> list[int]:
        """The numbers of the links at eth0; 0 for a program without one."""
        index = socket.if_nametoindex("eth0")
        sides: tuple[tcx.Direction, ...] = ("ingress", "egress")
        return [one.link for side in sides for one in tcx._attached(index, side)]


@pytest.fixture
def rig(spaces: list[Space], tmp_path: Path) -> Iterator[Rig]:
    made = Rig(spaces[0], tmp_path)
    yield made
    run_in(made.space.name, lambda: clean(made.run_directory, locks=made.locks))
    assert not mounted(made.bpffs)


@pytest.mark.parametrize("bpffs", [True, False])
def test_maps_of_another_layout_are_not_taken_over(
    rig: Rig, bpffs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        with monkeypatch.context() as before:
            before.setattr(steer, "SPECS", tuple(replace(spec, layout="0ld0") for spec in steer.SPECS))
            steering, it = rig.up(bpffs=bpffs)
            maps = rig.maps(steering)
            steering.close()
            it.leave()
        steering, it = rig.up(bpffs=bpffs)
        assert not steering.taken_over
        assert not set(rig.maps(steering).values()) & set(maps.values())
        steering.close()
        it.leave()
        steering, it = rig.up(bpffs=bpffs)
        assert steering.taken_over
        steering.close()
        it.down()

    run_in(rig.space.name, work)


@pytest.mark.parametrize("bpffs", [True, False])
def test_a_table_of_flows_of_another_size_is_taken_over(rig: Rig, bpffs: bool) -> None:
    def work() -> None:
        steering, it = rig.up(bpffs=bpffs, entries=64)
        maps = rig.maps(steering)
        steering.close()
        it.leave()
        steering, it = rig.up(bpffs=bpffs, entries=128)
        assert steering.taken_over
        assert steering.room == 64
        assert rig.maps(steering) == maps
        steering.close()
        it.down()

    run_in(rig.space.name, work)


def test_attachments_of_an_earlier_version_get_links(rig: Rig) -> None:
    def work() -> None:
        steering, it = rig.up(bpffs=False)
        maps = rig.maps(steering)
        names = attached()
        steering.close()
        it.leave()
        assert rig.links() == [0, 0]
        steering, it = rig.up()
        assert steering.taken_over
        assert rig.maps(steering) == maps == {
            name.removeprefix("maps/"): number
            for name, number in identities(rig.bpffs).items()
            if name.startswith("maps/")
        }  # fmt: skip
        links = rig.links()
        assert all(links)
        assert attached() == names
        steering.close()
        assert it.down() == []
        assert attached() == []

    run_in(rig.space.name, work)


def test_an_agent_that_does_not_reach_the_pins_goes_on_with_the_links(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stands in another mount namespace than the one before it, and has no way to that of process 1."""

    def work() -> None:
        steering, it = rig.up()
        maps, links = rig.maps(steering), rig.links()
        steering.close()
        it.leave()
        with monkeypatch.context() as patch:
            for module in (pins, host_links):
                patch.setattr(module, "reach", lambda directory: None)
            steering = Steering.open("dysco1", lambda: None)
            assert fault(rig.bpffs) is None
            plan = for_agent(underlay=["eth0"], programs=steering.programs(), bpffs=rig.bpffs)
            it = Transaction(plan, rig.run_directory, name="test", locks=rig.locks)
            it.up()
            assert steering.taken_over
            assert rig.maps(steering) == maps
            assert rig.links() == links
            steering.close()
            it.leave()

    run_in(rig.space.name, work)


def test_a_device_that_was_made_anew_gets_a_new_link(rig: Rig) -> None:
    def work() -> None:
        steering, it = rig.up()
        first = identities(rig.bpffs)
        steering.close()
        it.leave()
        subprocess.run(["ip", "link", "delete", "eth0"], check=True)
        assert tcx.is_defunct(rig.bpffs / "links" / "eth0-ingress")
        subprocess.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"], check=True)
        steering, it = rig.up()
        assert steering.taken_over
        second = identities(rig.bpffs)
        assert second["links/eth0-ingress"] != first["links/eth0-ingress"]
        assert second["links/dysco1-ingress"] == first["links/dysco1-ingress"]
        assert not tcx.is_defunct(rig.bpffs / "links" / "eth0-ingress")
        steering.close()
        assert it.down() == []
        assert not rig.bpffs.exists()

    run_in(rig.space.name, work)


def test_cls_bpf_holds_programs_by_itself(rig: Rig) -> None:
    def work() -> None:
        steering, it = rig.up(by_tcx=False)
        first = identities(rig.bpffs)
        assert not [name for name in first if name.startswith("links/")]
        steering.close()
        it.leave()
        steering, it = rig.up(by_tcx=False)
        assert steering.taken_over
        second = identities(rig.bpffs)
        assert second["maps/flows_4"] == first["maps/flows_4"]
        assert second["programs/ingress"] != first["programs/ingress"]
        steering.close()
        assert it.down() == []

    run_in(rig.space.name, work)


def test_pins_of_a_namespace_that_is_gone_are_not_taken_for_ones_own(rig: Rig, spaces: list[Space]) -> None:
    def work() -> dict[str, int]:
        steering, it = rig.up()
        assert not steering.taken_over
        maps = rig.maps(steering)
        steering.close()
        it.leave()
        return maps

    first = run_in(spaces[0].name, work)
    second = run_in(spaces[1].name, work)
    assert not set(first.values()) & set(second.values())
    rig.space = spaces[1]


def test_somebody_elses_bpffs_stays_and_is_emptied(rig: Rig) -> None:
    rig.bpffs.mkdir(parents=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", str(rig.bpffs)], check=True)
    try:
        (rig.bpffs / "theirs").mkdir()

        def work() -> None:
            steering, it = rig.up()
            assert identities(rig.bpffs)
            steering.close()
            assert it.down() == []

        run_in(rig.space.name, work)
        # Beside it is what some kernels put into each bpffs.
        assert {"theirs"} == {path.name for path in rig.bpffs.iterdir() if path.is_dir()}
    finally:
        subprocess.run(["umount", str(rig.bpffs)], check=True)


AGENT = """
import json, os, sys, time
from pathlib import Path
from dysco.dataplane.steer import OUT, Steering
from dysco.host import Transaction, for_agent, pins
from dysco.wire.tuples import FiveTuple

pins.FIRST = Path(sys.argv[2])
run = Path(sys.argv[1])
bpffs = pins.directory_of(run)
assert pins.fault(bpffs) is None, pins.fault(bpffs)
steering = Steering.open("dysco1", lambda: pins.reach(bpffs))
plan = for_agent(underlay=["eth0"], programs=steering.programs(), bpffs=bpffs)
Transaction(plan, run, name="test", locks=run.parent / "locks").up()
entries = len(steering.entries())
steering.add(FiveTuple.parse(f"10.1.1.1:{1000 + entries} > 10.1.1.2:80"), OUT)
maps = pins.reach(bpffs) / "maps" / "flows_4"
print(json.dumps([steering.taken_over, entries, str(maps), Path(f"/proc/self/ns/mnt").stat().st_ino]), flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def apart(rig: Rig, first: str) -> Iterator[list[object]]:
    """An agent in a mount namespace of its own, to be killed; gives what it says.

    The tests' process plays process 1: the real one may let nobody in, and has them in its namespace.
    """
    argv = ["nsenter", f"--net=/run/netns/{rig.space.name}", "unshare", "--mount", "--propagation", "private"]
    argv += [sys.executable, "-c", AGENT, str(rig.run_directory), first]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_agents_in_mount_namespaces_that_end_with_them(rig: Rig) -> None:
    first = f"/proc/{os.getpid()}"
    with apart(rig, first) as said:
        one_taken, one_entries, one_path, one_space = said
    assert (one_taken, one_entries) == (False, 0)
    assert one_path == f"{first}/root{rig.bpffs}/maps/flows_4"
    assert mounted(rig.bpffs)  # here, although made from there
    before = identities(rig.bpffs)
    assert {"links/eth0-egress", "links/eth0-ingress", "links/dysco1-ingress"} <= set(before)
    assert len(run_in(rig.space.name, attached)) == 3
    with apart(rig, first) as said:
        two_taken, two_entries, _, two_space = said
    assert (two_taken, two_entries) == (True, 1)
    assert Path("/proc/self/ns/mnt").stat().st_ino not in (one_space, two_space)
    after = identities(rig.bpffs)
    assert after["maps/flows_4"] == before["maps/flows_4"]
    assert after["links/eth0-egress"] == before["links/eth0-egress"]
    assert len(run_in(rig.space.name, attached)) == 3
    assert run_in(rig.space.name, lambda: clean(rig.run_directory, locks=rig.locks)) == []
    assert not mounted(rig.bpffs)
    assert not rig.bpffs.exists()
    assert run_in(rig.space.name, attached) == []
    until("something is left in the kernel", lambda: gone(before | after))


def test_down_from_a_mount_namespace_where_process_1_cannot_be_reached(rig: Rig) -> None:
    """Its directory is enough."""

    def work() -> None:
        steering, it = rig.up()
        steering.close()
        it.leave()

    run_in(rig.space.name, work)
    before = identities(rig.bpffs)
    script = (
        "import sys; from pathlib import Path; from dysco.host import clean, pins; pins.FIRST = Path('/proc/none')\n"
        f"print(clean(Path({str(rig.run_directory)!r}), locks=Path({str(rig.locks)!r})))"
    )
    argv = ["nsenter", f"--net=/run/netns/{rig.space.name}", "unshare", "--mount", "--propagation", "private"]
    done = subprocess.run(
        [*argv, sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "[]\n"
    assert not mounted(rig.bpffs)
    assert not rig.bpffs.exists()
    until("something is left in the kernel", lambda: gone(before))


def test_without_the_right_to_mount_nothing_is_pinned(make_lab: MakeLab) -> None:
    """An agent works as well then: in a mount namespace that ends with it, and without a way to that of process 1."""
    lab = make_lab(lab_text("unpinned", BOX, hops='["b"]'))
    lab.up(agents=False)
    for node in ("a", "d"):
        lab.start_agent(node)
    config = lab.directory / "b" / "host.toml"
    script = (
        "from pathlib import Path; from dysco.host import pins; pins.FIRST = Path('/proc/none')\n"
        "from dysco.cli import main; main()"
    )
    argv = [sys.executable, "-c", script, "tun", "up", "-c", str(config)]
    shown = lab.exec("b", [*argv, "--dry-run"]).stdout
    assert "mount -t bpf" not in shown
    assert "# nothing is pinned: a bpffs cannot be mounted where process 1 stands" in shown
    process = lab.start("b", argv, name="agent")
    (lab.directory / "b" / "agent.pid").write_text(f"{process.pid}\n")
    until_said(lab, "b", "agent.log", "agent_started", 'why_not_pinned="a bpffs cannot be mounted')
    assert not mounted(of(lab, "b"))
    wanted = put_file(lab, MEGABYTE)
    lab.wait_for_agents()
    with Client(lab, 4) as client:
        assert client.fetch() == wanted
        process.kill()
        process.wait()
        assert client.fetch() == wanted
        lab.start_agent("b")
        lab.wait_for_agents()
        assert client.fetch() == wanted
    assert identities(of(lab, "b"))


def test_what_is_mounted_is_shown_before(rig: Rig) -> None:
    def work() -> list[str]:
        return for_agent(underlay=["eth0"], bpffs=rig.bpffs).show()

    assert run_in(rig.space.name, work)[0] == (
        f"mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf {rig.bpffs}"
    )
    assert not rig.bpffs.exists()


def test_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault(tmp_path / "run" / "bpf") is None
    assert not (tmp_path / "run").exists()
    assert not mounted(tmp_path / "run" / "bpf")
    monkeypatch.setattr(pins, "_OF_THE_MACHINE", 1)
    assert "container" in (fault(tmp_path) or "")


def test_names_of_links() -> None:
    assert link_name(None, "eth0", "ingress") == "eth0-ingress"
    assert link_name(None, "eth0.100", "egress") == "eth0%2E100-egress"
    assert link_name("/run/x", "eth0", "egress") == "%2Frun%2Fx:eth0-egress"


def test_a_directory_with_a_blank(rig: Rig, tmp_path: Path) -> None:
    directory = tmp_path / "a b" / "bpf"
    change = MountBpf(directory=str(directory))
    change.apply(None, {"there": False})  # type: ignore[arg-type]
    assert reach(directory) == directory
    change.apply(None, {"there": False})  # type: ignore[arg-type]
    descriptor = program.load("dysco_test")
    pin(descriptor, directory / "programs" / "test")
    os.close(descriptor)
    assert change.undo(None, {"there": False}) is None  # type: ignore[arg-type]
    assert change.undo(None, {"there": False}) is None  # type: ignore[arg-type]
    assert not directory.exists()
