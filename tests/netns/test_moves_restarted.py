"""The agent of a host that has moved is killed and begins again, and the sessions and those after them go on.

The old device is gone. What arrives is compared by SHA-256.
"""

from __future__ import annotations

import re

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, SlowClient, both_modes, fetch, kill, put_file, url
from netns.test_changes import FAMILIES
from netns.test_moves import lab_of_movers
from netns.test_moves_back import Site, addresses, first_site, go, move, second_site


def begin_again(lab: Lab, node: str) -> None:
    """Kill an agent and start another one, which knows its peers when this returns."""
    kill(lab, node)
    lab.start_agent(node)
    lab.wait_for_agents()


def write(lab: Lab, node: str, home: Site, away: Site) -> None:
    """Have a host's file say where it is."""
    path = lab.directory / node / "host.toml"
    text = path.read_text().replace(f'underlay = ["{home.device}"]', f'underlay = ["{away.device}"]')
    path.write_text(re.sub(r"^addresses = .*$", f'addresses = ["{away.address}"]', text, count=1, flags=re.M))


@both_modes
@FAMILIES
@pytest.mark.parametrize("mover", ["a", "d"])
def test_sockets_keep_the_address_that_was_left_when_the_agent_begins_again(
    make_lab: MakeLab, family: int, mover: str
) -> None:
    lab = make_lab(lab_of_movers("restarted"))
    lab.up()
    wanted = put_file(lab, 64 * MEGABYTE)
    home, away = first_site(lab, mover, family), second_site(lab, mover, family)
    with SlowClient(lab, family) as client:
        go(lab, mover, family, home, away)
        move(lab, mover, away.address)
        write(lab, mover, home, away)
        begin_again(lab, mover)
        assert [one["local"] for one in addresses(lab, mover, family, "dysco0")] == [home.address]
        go(lab, mover, family, away, home)  # and on, which is back
        move(lab, mover, home.address)
        assert client.digest() == wanted


@both_modes
@FAMILIES
def test_new_sessions_find_a_middlebox_whose_agent_has_begun_again_at_home(
    make_lab: MakeLab, family: int
) -> None:
    lab = make_lab(lab_of_movers("athome"))
    lab.up()
    small = put_file(lab, MEGABYTE, "small")
    put_file(lab, 64 * MEGABYTE)
    home, away = first_site(lab, "b", family), second_site(lab, "b", family)
    with SlowClient(lab, family):
        go(lab, "b", family, home, away)
        move(lab, "b", away.address)
        assert fetch(lab, url(lab, family, "small")) == small
        go(lab, "b", family, away, home)
        write(lab, "b", home, home)  # it has lost its other address with the device
        begin_again(lab, "b")
        assert fetch(lab, url(lab, family, "small")) == small
