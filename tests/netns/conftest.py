"""What tests on real kernels share: they are marked, they need root, and they leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns.worlds import Space, delete, make

HERE = Path(__file__).parent


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
