"""Middleboxes in Python between real programs: streams that grow and shrink, a chooser, a small IDS."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import (
    MEGABYTE,
    both_modes,
    counters,
    fetch,
    kill,
    lab_text,
    log_of,
    put_file,
    sessions,
    until,
    until_said,
    url,
)
from netns.test_life import MORE_THAN_BUFFERS, download

FAMILIES = pytest.mark.parametrize("family", [4, 6])
BOXES = Path(__file__).resolve().parents[2] / "configs" / "boxes"

STREAM = """
[[host]]
name = "b"
copy = ["BOXES/replace.py"]
[host.config]
tun = { offload = OFFLOAD }
box = [{ name = "replace", kind = "stream", python = "replace.py:CLASS" }]
"""

SENDER = """
[[host.program]]
name = "sender"
argv = ["socat", "-b", "65536", "-U", "TCP6-LISTEN:8000,ipv6only=0,reuseaddr,fork", "OPEN:stream,rdonly"]
listen = [8000]
"""

CHOOSER = """
[[host]]
name = "b"
copy = ["BOXES/chooser.py"]
[host.config]
box = [{ name = "chooser", kind = "packet", python = "chooser.py:Chooser" }]
[[host]]
name = "c"
copy = ["BOXES/counter.py"]
[host.config]
box = [{ name = "counter", kind = "packet", python = "counter.py:Counter" }]
"""

IDS = """
[[host]]
name = "b"
copy = ["BOXES/ids.py"]
[host.config]
box = [{ name = "ids", kind = "packet", python = "ids.py:Ids" }]
"""


def boxes(text: str) -> str:
    """Fill in where the example boxes of the repository are."""
    return text.replace("BOXES", str(BOXES))


def stream_box(by: str, offload: str = "true") -> str:
    """Host b with a class of replace.py as its box."""
    return STREAM.replace("CLASS", by).replace("OFFLOAD", offload)


def stream_lab(make_lab: MakeLab, by: str, offload: str = "true", link: str = "") -> Lab:
    """A lab in which d sends a file on port 8000 to whoever connects, through a box on b."""
    text = boxes(stream_box(by, offload))
    return make_lab(lab_text("stream", text, link, hops='["b"]', match="dst port 8000") + SENDER)


def words(size: int) -> bytes:
    """Bytes in which the word stands often, also at all places relative to packets."""
    noise = os.urandom(size // 64).hex().encode()
    return b"".join(noise[i : i + 96] + b"sheepshee" + noise[i : i + 7] for i in range(0, len(noise), 8))


def receive(lab: Lab, family: int, timeout_s: float = 60.0) -> str:
    """Read the stream to its end on host a; returns its SHA-256."""
    address = lab.address("d", family)
    target = f"TCP6:[{address}]:8000" if family == 6 else f"TCP4:{address}:8000"
    arrived = lab.directory / "a" / "arrived"
    lab.exec("a", ["socat", "-u", target, f"CREATE:{arrived}"], timeout_s=timeout_s)
    return hashlib.sha256(arrived.read_bytes()).hexdigest()


@both_modes
@pytest.mark.parametrize(
    ("family", "offload", "by", "new"),
    [
        (4, "true", "Replace", b"elephant"),
        (6, "true", "Remove", b""),
        (4, "false", "Remove", b""),
        (6, "false", "Replace", b"elephant"),
    ],
)
def test_a_stream_grows_and_shrinks(
    make_lab: MakeLab, family: int, offload: str, by: str, new: bytes
) -> None:
    lab = stream_lab(make_lab, by, offload)
    data = words(2 * MEGABYTE)
    lab.up()
    (lab.directory / "d" / "stream").write_bytes(data)
    wanted = hashlib.sha256(data.replace(b"sheep", new)).hexdigest()
    assert receive(lab, family) == wanted
    assert receive(lab, family) == wanted
    assert len(sessions(lab, "b")) == 2


@both_modes
@FAMILIES
def test_a_stream_box_behind_a_bad_link(make_lab: MakeLab, family: int) -> None:
    links = """
[[link]]
between = ["a", "router"]
delay_ms = 3
loss = 0.02
seed = 3
[[link]]
between = ["d", "router"]
delay_ms = 3
loss = 0.02
reorder = 0.02
seed = 4
"""
    lab = stream_lab(make_lab, "Replace", link=links)
    lab.up()
    data = words(MEGABYTE)
    (lab.directory / "d" / "stream").write_bytes(data)
    assert receive(lab, family) == hashlib.sha256(data.replace(b"sheep", b"elephant")).hexdigest()


@both_modes
def test_an_agent_that_comes_back_resets_what_its_stream_box_had(make_lab: MakeLab) -> None:
    lab = make_lab(lab_text("lost", boxes(stream_box("Replace")), hops='["b"]'))
    lab.up()
    put_file(lab, MORE_THAN_BUFFERS)
    with download(lab, 4) as process:
        kill(lab, "b")
        lab.start_agent("b")
        lab.wait_for_agents()
        _, errors = process.communicate(timeout=40)
        assert process.returncode == 56, errors  # curl: failure in receiving network data
    wanted = put_file(lab, 12 * MEGABYTE)
    assert fetch(lab, url(lab, 4)) == wanted


@both_modes
@FAMILIES
def test_a_box_chooses_the_hops_behind_it(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("choose", boxes(CHOOSER), hops='["b"]'))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    for port in (40000, 40001, 40002):
        assert fetch(lab, url(lab, family), "--local-port", str(port)) == wanted
    assert len(sessions(lab, "b")) == 3
    assert len(sessions(lab, "c")) == 2
    assert log_of(lab, "c", "counter.txt").count("begins") == 2


@both_modes
@FAMILIES
def test_an_ids_cuts_a_session_off(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(lab_text("ids", boxes(IDS), hops='["b"]'))
    lab.up()
    wanted = put_file(lab, MEGABYTE)
    (lab.directory / "d" / "www" / "bad").write_bytes(b"x" * 5000 + b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR" * 2)
    assert fetch(lab, url(lab, family)) == wanted
    done = lab.exec("a", ["curl", "-sS", "-m", "5", url(lab, family, "bad")], check=False)
    assert done.returncode == 28, done.stderr  # curl's "timed out"
    until_said(lab, "b", "alerts.txt", "pattern seen backward")
    until("the second session is known", lambda: len(sessions(lab, "b")) == 2)
    assert counters(lab, "b")["established"] == 2
