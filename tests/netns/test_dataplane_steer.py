"""The kernel programs, run on single frames by the kernel itself (BPF_PROG_TEST_RUN): what is diverted, what not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import pytest

from dysco.dataplane.fast import TO_WIRE, pack
from dysco.dataplane.steer import AT_ONCE, IN, MAX_CLAUSES, OUT, SteeringConfig
from dysco.policy.clauses import Clause
from dysco.protocol.flow import HOST, UNDERLAY, Flow
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, build_tcp
from dysco.wire.tuples import FiveTuple
from netns.programs import DIVERT, DROP, OWN4, OWN6, PASS, Programs

OUR_MARK: Final = 0x64797363

SESSION = {
    4: FiveTuple.parse("10.0.0.1:40000 > 10.0.0.9:80"),
    6: FiveTuple.parse("[fd00::1]:40000 > [fd00::9]:80"),
}
SUB = {
    4: FiveTuple.parse("10.0.0.2:61000 > 10.0.0.1:61001"),
    6: FiveTuple.parse("[fd00::2]:61000 > [fd00::1]:61001"),
}
OTHER = {
    4: FiveTuple.parse("10.0.0.1:40001 > 10.0.0.9:80"),
    6: FiveTuple.parse("[fd00::1]:40001 > [fd00::9]:80"),
}


@pytest.fixture
def programs() -> Iterator[Programs]:
    made = Programs()
    yield made
    made.steering.close()


def tcp(match: FiveTuple, flags: int = ACK, options: bytes = b"") -> bytearray:
    return build_tcp(match, 1, 1, flags, 1000, options, b"payload").data


def extended(packet: bytearray, *kinds: int) -> bytearray:
    """Put IPv6 extension headers of eight bytes between IP and TCP."""
    headers = bytearray()
    for number, _ in enumerate(kinds):
        headers += bytes((kinds[number + 1] if number + 1 < len(kinds) else 6, 0)) + bytes(6)
    return packet[:6] + bytes((kinds[0],)) + packet[7:40] + headers + packet[40:]


def quoting(quoted: FiveTuple, kind: int | None = None, protocol: int | None = None) -> bytes:
    """An ICMP error about a packet with this tuple, from a router."""
    inner = bytes(tcp(quoted))[: 28 if quoted.family == 4 else 48]
    if quoted.family == 4:
        body = bytes((kind or 3, 4)) + bytes(6) + inner
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol or 1, 0) + bytes(8) + body
    body = bytes((kind or 2, 0)) + bytes(6) + inner
    return struct.pack("!IHBB", 6 << 28, len(body), protocol or 58, 64) + bytes(32) + body


@pytest.mark.parametrize("family", [4, 6])
def test_only_what_is_in_the_table_leaves_by_the_agent(programs: Programs, family: int) -> None:
    programs.steering.add(SESSION[family], OUT)
    for flags in (ACK, ACK | PSH, SYN, SYN | ACK, FIN | ACK, RST):
        assert programs.run("egress", tcp(SESSION[family], flags)) == DIVERT
        assert programs.run("egress", tcp(OTHER[family], flags)) == PASS
        assert programs.run("egress", tcp(SESSION[family].reversed(), flags)) == PASS
    assert programs.run("ingress", tcp(SESSION[family])) == PASS
    assert programs.run("egress", tcp(SESSION[family]), mark=OUR_MARK) == PASS
    assert programs.run("egress", tcp(SESSION[family]), mark=1) == DIVERT
    programs.steering.remove(SESSION[family], OUT)
    assert programs.run("egress", tcp(SESSION[family])) == PASS
    assert programs.steering.counters()["captured_out"] == 7


@pytest.mark.parametrize("family", [4, 6])
def test_subsessions_arrive_at_the_agent(programs: Programs, family: int) -> None:
    for flags in (ACK, SYN, RST, FIN | ACK):
        assert programs.run("ingress", tcp(SUB[family], flags)) == DIVERT
    assert programs.run("ingress", tcp(SUB[family].reversed())) == PASS  # another host's address
    low = FiveTuple(SUB[family][:-2] + struct.pack("!H", 60999))
    assert programs.run("ingress", tcp(low)) == PASS
    high = FiveTuple(SUB[family][:-2] + b"\xff\xff")
    assert programs.run("ingress", tcp(high)) == DIVERT
    assert programs.run("egress", tcp(SUB[family])) == PASS


@pytest.mark.parametrize("family", [4, 6])
def test_native_return_paths_arrive_at_the_agent(programs: Programs, family: int) -> None:
    answer = SESSION[family].reversed()
    assert programs.run("ingress", tcp(answer)) == PASS
    programs.steering.add(answer, IN)
    assert programs.run("ingress", tcp(answer)) == DIVERT
    assert programs.run("egress", tcp(answer)) == PASS
    programs.steering.add(answer, OUT)
    programs.steering.remove(answer, IN)
    assert programs.run("ingress", tcp(answer)) == PASS
    assert programs.run("egress", tcp(answer)) == DIVERT


@pytest.mark.parametrize("family", [4, 6])
def test_own_resets_of_subsessions_are_kept_back(programs: Programs, family: int) -> None:
    """The kernel would answer a reassembled subsession packet, for it knows no socket for it."""
    reset = tcp(SUB[family].reversed(), RST | ACK)
    assert programs.run("egress", reset) == DROP
    assert programs.run("egress", reset, mark=OUR_MARK) == PASS
    assert programs.run("egress", tcp(SUB[family].reversed(), ACK)) == PASS
    assert programs.run("egress", tcp(SUB[family], RST)) == PASS
    assert programs.run("egress", tcp(OTHER[family], RST)) == PASS
    assert programs.steering.counters()["reset_kept_back"] == 1


@pytest.mark.parametrize("family", [4, 6])
def test_policies_divert_the_first_packet_alone(programs: Programs, family: int) -> None:
    dst = SESSION[family].dst
    wanted = Clause(4 if family == 4 else 6, bytes(len(dst)), 0, dst, 8 * len(dst), dport=(80, 81))
    never = Clause(wanted.family, dst, 8 * len(dst), bytes(len(dst)), 0)
    programs.steering.set_policies([*[never] * (MAX_CLAUSES - 1), wanted, *[wanted] * 5])
    assert programs.run("egress", tcp(SESSION[family], SYN)) == DIVERT
    assert programs.run("egress", tcp(SESSION[family], SYN | 0xC0)) == DIVERT  # with ECN set-up
    for flags in (ACK, SYN | ACK, FIN, RST | SYN):
        assert programs.run("egress", tcp(SESSION[family], flags)) == PASS
    for ports, verdict in (((80, 81), DIVERT), ((81, 90), PASS), ((1, 79), PASS)):
        programs.steering.set_policies(
            [Clause(wanted.family, bytes(len(dst)), 0, dst, 8 * len(dst) - 3, dport=ports)]
        )
        assert programs.run("egress", tcp(SESSION[family], SYN)) == verdict
    programs.steering.set_policies(
        [Clause(wanted.family, bytes(len(dst)), 0, bytes(len(dst)), 0, (40000, 40000))]
    )
    assert programs.run("egress", tcp(SESSION[family], SYN)) == DIVERT
    assert programs.run("egress", tcp(OTHER[family], SYN)) == PASS
    assert programs.run("egress", tcp(SESSION[10 - family], SYN)) == PASS
    programs.steering.set_policies([])
    assert programs.run("egress", tcp(SESSION[family], SYN)) == PASS


@pytest.mark.parametrize("family", [4, 6])
def test_tags_and_all_first_packets(programs: Programs, family: int) -> None:
    tag = b"\xfd\x0c\xd1\x5c" + bytes(8)
    assert programs.run("egress", tcp(SESSION[family], SYN, tag)) == DIVERT
    assert programs.run("egress", tcp(SESSION[family], SYN | ACK, tag)) == PASS
    assert programs.run("egress", tcp(SESSION[family], SYN, b"\xfd\x0c\xd1\x5d" + bytes(8))) == PASS
    programs.steering.configure(
        SteeringConfig(1, 1, 1, None, (61000, 65535), (OWN4, OWN6), capture_all_syn=True)
    )
    assert programs.run("egress", tcp(SESSION[family], SYN)) == DIVERT
    assert programs.run("egress", tcp(SESSION[family], SYN | ACK)) == PASS


@pytest.mark.parametrize("family", [4, 6])
def test_errors_about_sessions_and_subsessions(programs: Programs, family: int) -> None:
    about = quoting(SUB[family].reversed())  # what we sent comes back
    assert programs.run("ingress", about) == DIVERT
    assert programs.run("ingress", quoting(SUB[family])) == PASS
    assert programs.run("ingress", quoting(SUB[family].reversed(), kind=128 if family == 6 else 8)) == PASS
    assert programs.run("ingress", quoting(SUB[family].reversed(), protocol=17)) == PASS
    # This host says something about a session's packet that has arrived.
    programs.steering.add(SESSION[family], OUT)
    assert programs.run("egress", quoting(SESSION[family].reversed())) == DIVERT
    assert programs.run("egress", quoting(OTHER[family].reversed())) == PASS
    assert programs.run("egress", quoting(SESSION[family])) == PASS


def test_fragments_options_and_extension_headers(programs: Programs) -> None:
    programs.steering.add(SESSION[4], OUT)
    programs.steering.add(SESSION[6], OUT)
    whole = tcp(SESSION[4])
    for fragment, verdict in ((0x4000, DIVERT), (0x2000, PASS), (0x0001, PASS), (0x2001, PASS)):
        assert programs.run("egress", whole[:6] + struct.pack("!H", fragment) + whole[8:]) == verdict
    assert programs.run("egress", b"\x46" + whole[1:20] + b"\1\1\1\0" + whole[20:]) == DIVERT
    six = tcp(SESSION[6])
    for kinds in ((0,), (60,), (0, 43, 60), (0, 60, 43, 60)):
        assert programs.run("egress", extended(six, *kinds)) == DIVERT
    assert programs.run("egress", extended(six, 44)) == PASS  # a fragment
    assert programs.run("egress", extended(six, 60, 60, 60, 60, 60)) == PASS


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_cut_off_passes(programs: Programs, family: int) -> None:
    programs.steering.add(SESSION[family], OUT)
    for packet in (bytes(tcp(SESSION[family])), quoting(SESSION[family].reversed())):
        header = 20 if family == 4 else 40
        for length in range(header + 1, len(packet)):
            assert programs.run("egress", packet[:length]) in (PASS, DIVERT)
            assert programs.run("ingress", packet[:length]) == PASS
    kind = b"\x08\x06" if family == 4 else b"\x81\x00"
    assert programs.on_frame("egress", bytes(12) + kind + bytes(60)) == PASS


TELLS_AT: Final = 3  # of struct flow
ENDED_HERE: Final = 8


@pytest.mark.parametrize("number", [0, 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
def test_what_many_flows_have_carried_is_asked_at_once(programs: Programs, number: int) -> None:
    """Those that are there and those that are not, of both families; those that are over are gone when taken away."""
    matches = [
        FiveTuple.of(one.src, 1 + count, one.dst, 80) for count in range(number) for one in SESSION.values()
    ][:number]
    entries = [(match, OUT if match.sport % 2 else IN) for match in matches]
    wanted, live = [], {(OTHER[4], OUT)}
    programs.steering.add(OTHER[4], OUT)
    for count, (match, direction) in enumerate(entries):
        if count % 3:
            flow = Flow(HOST, match, UNDERLAY, match)
            flow.packets, flow.bytes = count, 1000 * count
            entry = bytearray(pack(flow, TO_WIRE))
            if count % 3 == 1:
                entry[TELLS_AT] |= ENDED_HERE
            else:
                live.add((match, direction))
            programs.steering.add(match, direction, bytes(entry))
        wanted.append((count, 1000 * count) if count % 3 else (0, 0))
    assert programs.steering.carried(entries) == wanted
    assert programs.steering.carried(entries, take_away=True) == wanted
    assert set(programs.steering.entries()) == live
    now = [carried if entry in live else (0, 0) for entry, carried in zip(entries, wanted, strict=True)]
    assert programs.steering.carried(entries) == now
