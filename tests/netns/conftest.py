"""What tests on real kernels share: they are marked, they need root, and they leave nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dysco.lab import Lab, Nursery, models
from netns.worlds import Space, delete, make

HERE = Path(__file__).parent
MakeLab = Callable[[str | Path], Lab]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory, so that `-m "not netns"` leaves them out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    """Fail, and never skip, where these tests cannot run."""
    if os.geteuid() != 0:
        pytest.fail(
            'tests in network namespaces need root; leave them out with -m "not netns"', pytrace=False
        )
    if not Path("/dev/net/tun").exists():
        pytest.fail("tests in network namespaces need /dev/net/tun (modprobe tun)", pytrace=False)


@pytest.fixture
def spaces() -> Iterator[list[Space]]:
    """Give two empty namespaces with names, each with a pair of veth devices that are up."""
    made = [make(f"ho-{os.getpid()}-{number}") for number in range(2)]
    yield made
    for space in made:
        delete(space)


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> str:
    """Who moves packets in the labs of a test; `labs.both_modes` runs a test with each."""
    return str(getattr(request, "param", os.environ.get("DYSCO_TEST_MODE", "auto")))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the agents of all labs of this process are started."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def make_lab(tmp_path: Path, mode: str, nursery: Nursery) -> Iterator[MakeLab]:
    """Give a function that loads a lab from a file or from its text; what was brought up is taken down."""
    root = Path(f"/run/dysco/tests-{os.getpid()}")
    made: list[Lab] = []

    def make(source: str | Path) -> Lab:
        if isinstance(source, str):
            path = tmp_path / f"lab-{len(made)}.toml"
            path.write_text(source)
            source = path
        file = models.read(source)
        if file.lab.mode is None:
            file = file.model_copy(update={"lab": file.lab.model_copy(update={"mode": mode})})
        made.append(Lab(file, source.parent, prefix=f"t{os.getpid()}", root=root, nursery=nursery))
        return made[-1]

    yield make
    for lab in made:
        for log in sorted(lab.directory.glob("*/agent.log")):
            sys.stdout.write(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-4000:]}")
        lab.down()
