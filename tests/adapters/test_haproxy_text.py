"""What is read from the runtime API's answers, as HAProxy 2.6 gave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.adapters.haproxy import HAProxy, parse, stays
from dysco.errors import HostError

RECORDED = (Path(__file__).parent / "recorded" / "haproxy-2.6.txt").read_text()


def test_a_stream_is_read() -> None:
    streams = list(parse(RECORDED))
    six, line, filtered, command = streams
    assert six.addresses[0] == "::1:7001"
    assert six.modes == ("tcp", "tcp")
    assert (six.frontend, six.server) == ("t", "tb/s1")
    assert six.front is not None
    assert six.front[:3] == ("tcpv6", "RAW", "PASS")
    assert six.back is not None
    assert (six.front.descriptor, six.back.descriptor) == (17, 20)
    assert six.request is not None
    assert (six.request.total, six.request.waiting, six.request.passed) == (30, 0, 30)
    assert line.response is not None
    assert line.response.total == 93
    assert [stays(stream) for stream in (six, line)] == [None, None]
    assert stays(filtered) == "a rule or filter still looks at the requests (analysers 0x60000)"
    assert command.back is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(id=2 mode=tcp)", "(id=2 mode=http)", "mode http"),
        ("xprt=RAW", "xprt=SSL", "TLS ends here on the client's side"),
        ("xprt=RAW", "xprt=HANDSHK", "a handshake"),
        ("mux=PASS", "mux=H1", "HAProxy speaks H1 with the client"),
        ("state=EST endp=CONN", "state=CLO endp=CONN", "not connected yet, or one side is closed"),
        ("an=0x0 pipe=0 tofwd=-1", "an=0x0 pipe=0 tofwd=100", "still looks at the requests"),
        ("req=0x", "rex=0x", "unknown version"),
    ],
)
def test_it_stays_where_it_does_something(old: str, new: str, reason: str) -> None:
    assert old in RECORDED
    stream = next(parse(RECORDED.replace(old, new, 1)))
    assert reason in (stays(stream) or "")


def test_what_waits_in_buffers_and_pipes_is_not_passed() -> None:
    text = RECORDED.replace("pipe=0 tofwd=-1", "pipe=7 tofwd=-1", 1).replace("o=0 p=0 i=0", "o=5 p=0 i=3", 1)
    request = next(parse(text)).request
    assert request is not None
    assert (request.waiting, request.passed) == (15, 15)


def test_unsigned_for_ever() -> None:
    """HAProxy before 2.0 showed the same number without a sign."""
    request = next(parse(RECORDED.replace("tofwd=-1", "tofwd=4294967295"))).request
    assert request is not None
    assert request.for_ever


def test_other_text_gives_no_stream() -> None:
    assert list(parse("")) == []
    assert list(parse("Unknown command.\n")) == []
    (odd,) = parse("0x1: nonsense\nmore")
    assert stays(odd) == "HAProxy does not say enough of it (is this an unknown version?)"


async def test_no_haproxy(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is HAProxy running"):
        await HAProxy(tmp_path / "none.sock").pairs()
