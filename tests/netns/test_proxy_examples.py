"""The proxies of configs/proxies leave real downloads once they have done their work: bytes and wires are looked at."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dysco.lab import Lab
from netns.conftest import MakeLab
from netns.labs import MEGABYTE, ask, lab_text, log_of, put_file, sessions, until, url
from netns.test_changes import Download, seen, watch

EXAMPLES = Path(__file__).resolve().parents[2] / "configs" / "proxies"
SIZE = 40 * MEGABYTE
RATE = 64 * MEGABYTE  # the client reads faster than the server sends

HOST = """
[[host]]
name = "b"
[[host.config.policy]]
name = "behind"
match = "dst port 80"
hops = []
SECTION
[[host.program]]
name = "proxy"
argv = ["env", "DYSCO_SOCKET=${dir}/agent.sock", "PYTHON", "PROGRAM", "PORT"MORE]
listen = [PORT]
"""
GENERIC = """
[[host.config.proxy]]
name = "socks"
adapter = "generic"
port = 1080
remove = "chosen"
every = 0.2
"""


def proxy_lab(program: str, port: int, section: str = "", *more: str) -> str:
    """Client a, an example on b, web server d; two chains of one hop each."""
    words = {
        "SECTION": section,
        "PYTHON": sys.executable,
        "PROGRAM": str(EXAMPLES / program),
        "PORT": str(port),
        "MORE": "".join(f', "{one}"' for one in more),
    }
    text = HOST
    for word, value in words.items():
        text = text.replace(word, value)
    whole = lab_text("example", text, hops="[]", match=f"dst port {port}")
    return whole.replace("listen 80;", "listen 80; limit_rate 8m;")


def at(lab: Lab, family: int, node: str, port: int) -> str:
    """An address and a port as curl takes them."""
    address = lab.address(node, family)
    return f"[{address}]:{port}" if family == 6 else f"{address}:{port}"


@contextlib.contextmanager
def download(lab: Lab, *words: str) -> Iterator[Download]:
    """Begin a download of `file` to a with curl, and wait until it is under way."""
    running = Download(lab.command("a", ["curl", "-sS", "-f", "-N", *words]), SIZE, RATE)
    try:
        until("nothing arrives", lambda: running.arrived > MEGABYTE)
        yield running
    finally:
        running.end()


def sockets(lab: Lab) -> str:
    """TCP sockets of the proxy's host that are not listening."""
    return lab.exec("b", ["ss", "-Htan", "state", "all", "exclude", "listening"]).stdout.strip()


def leaves(lab: Lab, *words: str) -> None:
    """See a download to its end, without the proxy's host from some moment on."""
    watch(lab, "b")
    wanted = put_file(lab, SIZE)
    with download(lab, *words) as running:
        until("the proxy's host has left", lambda: sessions(lab, "b") == [])
        before = seen(lab, "passing")
        assert running.arrived < SIZE
        assert running.digest() == wanted
    assert seen(lab, "passing") == before
    assert seen(lab, "resets") == 0
    until("its sockets have ended", lambda: sockets(lab) == "")
    assert log_of(lab, "b", "proxy.log") == ""


@pytest.mark.parametrize(("mode", "family"), [("tun", 6), ("ebpf", 4)], indirect=["mode"])
def test_a_socks_proxy_leaves_after_connecting(make_lab: MakeLab, family: int) -> None:
    """It knows nothing of it: the agent has seen what was for the proxy, and pairs it by its first bytes."""
    lab = make_lab(proxy_lab("socks.py", 1080, GENERIC))
    lab.up()
    leaves(lab, "--socks5", at(lab, family, "b", 1080), url(lab, family))
    assert ask(lab, "b", "proxies")[0]["removed"] == 1


@pytest.mark.parametrize(("mode", "family"), [("tun", 4), ("ebpf", 6)], indirect=["mode"])
def test_a_balancer_leaves_after_choosing(make_lab: MakeLab, family: int) -> None:
    server = "${d.ipv4}:80" if family == 4 else "${d.ipv6}:80"
    lab = make_lab(proxy_lab("balancer.py", 8080, "", server))
    lab.up()
    leaves(lab, url(lab, family, node="b", port=8080))


@pytest.mark.parametrize(("mode", "family"), [("tun", 6), ("ebpf", 4)], indirect=["mode"])
def test_a_proxy_that_has_answered_itself_says_how_much(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(proxy_lab("connect.py", 3128))
    lab.up()
    leaves(lab, "--proxytunnel", "--proxy", f"http://{at(lab, family, 'b', 3128)}", url(lab, family))


@pytest.mark.parametrize(("mode", "family"), [("tun", 4), ("ebpf", 6)], indirect=["mode"])
def test_what_was_for_a_socks_proxy_is_known_by_the_first_bytes(make_lab: MakeLab, family: int) -> None:
    lab = make_lab(proxy_lab("socks.py", 1080, GENERIC.replace("chosen", "never")))
    lab.up()
    put_file(lab, SIZE)
    with download(lab, "--socks5", at(lab, family, "b", 1080), url(lab, family)):
        pairs: list[dict[str, object]] = []

        def is_safe() -> bool:
            pairs[:] = ask(lab, "b", "proxies")[0]["pairs"]
            return [one["safe"] for one in pairs] == [True]

        until("it is not known what was for the proxy", is_safe)
        [pair] = pairs
        assert str(pair["why"]).endswith("SOCKS exchange taken off")
        address = 4 if family == 4 else 16
        assert pair["added_left"] == 2 + 10  # the method, and an answer with an IPv4 address
        assert int(str(pair["added_right"])) <= -(3 + 6 + address)  # curl offers more than one method
