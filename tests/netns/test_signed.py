"""TCP that must not be touched: signed segments (RFC 2385, RFC 5925) and Multipath TCP (RFC 8684).

A chain rewrites addresses, ports and numbers, which signatures cover and Multipath TCP repeats inside its options. So
these SYNs pass as they are, whatever the policy says, and are counted.
"""

from __future__ import annotations

from dysco.lab import Lab
from dysco.wire.packet import SYN, build_tcp
from dysco.wire.tuples import FiveTuple
from netns.conftest import MakeLab
from netns.labs import both_modes, counters, lab_text, sessions, until
from netns.test_middleboxes import COUNTER, FAMILIES, boxes

TALKER = """
import socket, struct, sys
what, kind, own, other, port = *sys.argv[1:5], int(sys.argv[5])
family = socket.AF_INET6 if ":" in own else socket.AF_INET
MPTCP, TCP_MD5SIG, TCP_IS_MPTCP = 262, 14, 43

def sign(s):
    # struct tcp_md5sig: the peer's address, flags, length of prefix, length of key, interface, key
    if family == socket.AF_INET:
        address = struct.pack("=HH4s", family, 0, socket.inet_aton(other))
    else:
        address = struct.pack("=HHI16s", family, 0, 0, socket.inet_pton(family, other))
    key = struct.pack("=BBHi80s", 0, 0, 6, 0, b"secret")
    s.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, address.ljust(128, b"\\0") + key)

s = socket.socket(family, socket.SOCK_STREAM, MPTCP if kind == "mptcp" else 0)
s.settimeout(15)
if what == "serve":
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((own, port))
    if kind == "md5":
        sign(s)
    s.listen()
    client, _ = s.accept()
    client.settimeout(15)
    data = b""
    while part := client.recv(65536):
        data += part
    client.sendall(data[::-1])
    client.shutdown(socket.SHUT_WR)
else:
    if kind == "md5":
        sign(s)
    s.bind((own, 0))
    s.connect((other, port))
    if kind == "mptcp":
        assert s.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP), "fell back to ordinary TCP"
    sent = bytes(range(256)) * 2000
    s.sendall(sent)
    s.shutdown(socket.SHUT_WR)
    back = b""
    while part := s.recv(65536):
        back += part
    assert back == sent[::-1]
"""

RAW = """
import socket, sys
packet = bytes.fromhex(sys.argv[1])
if packet[0] >> 4 == 4:
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
else:
    s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))
"""


KINDS = {"md5": 7777, "mptcp": 7778, "ordinary": 7779}


def unchained(make_lab: MakeLab) -> Lab:
    """A lab whose policy would take everything to the ports of KINDS."""
    lab = make_lab(lab_text("signed", boxes(COUNTER), hops='["c"]', match="dst portrange 7777-7779"))
    lab.up()
    for node in "ad":
        (lab.directory / node / "talk.py").write_text(TALKER)
    return lab


@both_modes
@FAMILIES
def test_connections_that_must_not_be_touched(make_lab: MakeLab, family: int) -> None:
    """The kernels check signatures, and say if Multipath TCP has fallen back; an ordinary connection is chained."""
    lab = unchained(make_lab)
    client, server = lab.address("a", family), lab.address("d", family)
    for kind, port in KINDS.items():
        own = ["talk.py", "serve", kind, server, client, str(port)]
        lab.start("d", ["python3", *own], name=kind)
        until("nobody listens", lambda port=port: f":{port} " in lab.exec("d", ["ss", "-Hltn"]).stdout)  # type: ignore[misc]
        talker = [str(lab.directory / "a" / "talk.py"), "talk", kind, client, server, str(port)]
        lab.exec("a", ["python3", *talker], timeout_s=20)
        found = counters(lab, "a")
        assert (found["tcp_signed"], found["mptcp"]) == (1, int(kind != "md5"))
        chained = int(kind == "ordinary")
        assert [counters(lab, node)["opened"] for node in "acd"] == [chained] * 3
        assert chained or [sessions(lab, node) for node in "acd"] == [[], [], []]


@both_modes
@FAMILIES
def test_a_syn_with_the_authentication_option(make_lab: MakeLab, family: int) -> None:
    """Made by hand, for few kernels are built with TCP-AO; what arrives is compared with what was sent."""
    lab = unchained(make_lab)
    client, server = lab.address("a", family), lab.address("d", family)
    left, right = (f"[{one}]" if family == 6 else one for one in (client, server))
    option = bytes((29, 16, 1, 1)) + bytes(range(12))
    packet = build_tcp(FiveTuple.parse(f"{left}:4000 > {right}:7777"), 1, 0, SYN, 1000, option)
    table = "add table inet seen; add counter inet seen signed; add chain inet seen in"
    lab.exec("d", ["nft", table + " { type filter hook prerouting priority -300; }"])
    # Bytes 20 to 35 of the TCP header: the option as it was sent.
    lab.exec(
        "d",
        ["nft", f"add rule inet seen in tcp sport 4000 @th,160,128 0x{option.hex()} counter name signed"],
    )
    lab.exec("a", ["python3", "-c", RAW, bytes(packet.data).hex()])
    until("the SYN does not arrive", lambda: "packets 1" in lab.exec("d", ["nft", "list", "counters"]).stdout)
    assert counters(lab, "a")["tcp_signed"] == 1
    assert sessions(lab, "a") == []
