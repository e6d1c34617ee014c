"""Python middleboxes as devices: how a class is found, what a box may return, and what its faults cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dysco.errors import ConfigError
from dysco.middlebox import Direction, Middlebox, Session, StreamMiddlebox
from dysco.service.boxes import PacketDevice, StreamDevice, device, load
from dysco.wire.icmp import make_fragmentation_needed, parse_error
from dysco.wire.packet import ACK, FIN, PSH, RST, SYN, Located, Packet, build_tcp, complete, locate, verify
from dysco.wire.tuples import FiveTuple

V4 = FiveTuple.parse("10.0.0.1:1234 > 10.0.0.9:80")
V6 = FiveTuple.parse("[fd00::1]:1234 > [fd00::9]:80")
LEFT, RIGHT = 8, 9
CLIENT_ISN, SERVER_ISN = 0xFFFFFFF0, 5000
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


class Logging:
    """What every box of these tests writes down."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.hops: list[str] | None = None

    def opened(self, session: Session) -> None:
        self.calls.append("opened")

    def choose(self, session: Session) -> list[str] | None:
        self.calls.append("choose")
        return self.hops

    def closed(self, session: Session) -> None:
        self.calls.append("closed")


class PacketBox(Logging, Middlebox):
    """Returns what `answer` makes of a packet."""

    def __init__(self, answer: Callable[[Packet], object]) -> None:
        super().__init__()
        self.answer = answer

    def packet(self, session: Session, direction: Direction, packet: Packet) -> Packet | list[Packet] | None:
        return self.answer(packet)  # type: ignore[return-value]


class StreamBox(Logging, StreamMiddlebox):
    """Returns what `change` makes of a chunk."""

    def __init__(self, change: Callable[[bytes], object], last: bytes = b"") -> None:
        super().__init__()
        self.change = change
        self.last = last

    def data(self, session: Session, direction: Direction, chunk: bytes) -> bytes:
        return self.change(chunk)  # type: ignore[return-value]

    def end(self, session: Session, direction: Direction) -> bytes:
        return self.last


class Bench:
    """A device by itself; `out` has what came out of it: (port, packet)."""

    def __init__(self, box: Middlebox | StreamMiddlebox, session: FiveTuple = V4) -> None:
        self.session = session
        self.out: list[tuple[int, Packet]] = []
        self.chosen: list[tuple[FiveTuple, list[str]]] = []
        self.device = device(
            "box",
            box,
            LEFT,
            lambda port, packet: self.out.append((port, packet)),
            lambda session, hops: self.chosen.append((session, hops)),
        )

    def send(
        self,
        way: Direction,
        flags: int,
        seq: int,
        ack: int,
        payload: bytes = b"",
        *,
        window: int = 60000,
        options: bytes = b"",
        gso: int = 0,
    ) -> list[tuple[int, Packet, Located]]:
        """Put a packet in; return what came out, complete and checked."""
        self.out.clear()
        tuple_ = self.session if way is FORWARD else self.session.reversed()
        packet = build_tcp(tuple_, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, window, options, payload)
        packet.gso_size = gso
        (self.device.from_left if way is FORWARD else self.device.from_right)(packet)
        return self.results()

    def results(self) -> list[tuple[int, Packet, Located]]:
        found = []
        for port, packet in self.out:
            assert verify(packet)
            complete(packet)
            assert verify(packet)
            at = locate(packet)
            assert at is not None
            assert at.five_tuple == (self.session if port == RIGHT else self.session.reversed())
            found.append((port, packet, at))
        return found

    def handshake(self, *, mss: int = 1000, window: int = 60000) -> None:
        announced = bytes((2, 4, mss >> 8, mss & 0xFF))
        self.send(FORWARD, SYN, CLIENT_ISN, 0, options=announced, window=window)
        self.send(BACKWARD, SYN | ACK, SERVER_ISN, CLIENT_ISN + 1, options=announced, window=window)
        self.send(FORWARD, ACK, CLIENT_ISN + 1, SERVER_ISN + 1, window=window)

    def up(
        self, offset: int, payload: bytes = b"", flags: int = ACK | PSH, ack: int = 0, gso: int = 0
    ) -> list[tuple[int, Packet, Located]]:
        """A packet of the client; offset and ack count bytes of the streams."""
        return self.send(FORWARD, flags, CLIENT_ISN + 1 + offset, SERVER_ISN + 1 + ack, payload, gso=gso)

    def down(
        self, offset: int, payload: bytes = b"", flags: int = ACK | PSH, ack: int = 0, window: int = 60000
    ) -> list[tuple[int, Packet, Located]]:
        """A packet of the server."""
        return self.send(
            BACKWARD, flags, SERVER_ISN + 1 + offset, CLIENT_ISN + 1 + ack, payload, window=window
        )


def payload_of(packet: Packet, at: Located) -> bytes:
    return bytes(packet.data[at.payload_offset : at.total_len])


def offset(at: Located, isn: int) -> int:
    return (at.seq - isn - 1) & 0xFFFFFFFF


def acked(at: Located, isn: int) -> int:
    return (at.ack - isn - 1) & 0xFFFFFFFF


# Loading.


def test_a_class_is_loaded_from_a_file_and_from_a_module(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import dysco\nclass Box(dysco.StreamMiddlebox):\n    pass\n")
    assert isinstance(load(f"{file}:Box", "box b"), StreamMiddlebox)
    assert type(load("dysco.middlebox:Middlebox", "box b")) is Middlebox


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("class Box(:", "Box", "cannot be loaded"),
        ("import no_such_module_of_anybody", "Box", "cannot be loaded"),
        ("1 / 0", "Box", "ZeroDivisionError"),
        ("", "Box", "cannot be loaded"),
        ("class Box:\n    def __init__(self, more): ...", "Box", "cannot be loaded"),
        ("class Box: ...", "Box", "neither a dysco.Middlebox nor a dysco.StreamMiddlebox"),
        ("Box = 5", "Box", "cannot be loaded"),
    ],
)
def test_a_class_that_cannot_be_made_is_a_fault_of_the_configuration(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(f"{file}:{name}", "box b")
    assert str(caught.value).startswith("box b: ")


@pytest.mark.parametrize(
    "reference", ["/nowhere/at_all.py:Box", "no_such_module_of_anybody:Box", "Box", ":Box"]
)
def test_a_class_that_is_not_there(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"box b: .* cannot be loaded"):
        load(reference, "box b")


def test_each_kind_of_box_gets_its_device() -> None:
    assert isinstance(Bench(PacketBox(lambda packet: packet)).device, PacketDevice)
    assert isinstance(Bench(StreamBox(lambda chunk: chunk)).device, StreamDevice)


# Packet boxes.


@pytest.mark.parametrize("session", [V4, V6])
def test_packets_pass_in_both_directions(session: FiveTuple) -> None:
    box = PacketBox(lambda packet: packet)
    bench = Bench(box, session)
    assert [port for port, _, _ in bench.send(FORWARD, SYN, CLIENT_ISN, 0)] == [RIGHT]
    assert [port for port, _, _ in bench.send(BACKWARD, SYN | ACK, SERVER_ISN, CLIENT_ISN + 1)] == [LEFT]
    assert box.calls == ["opened", "choose"]
    bench.send(FORWARD, SYN, CLIENT_ISN, 0)
    assert box.calls == ["opened", "choose"], "a repeated SYN opens nothing"
    bench.device.forget(session)
    bench.device.forget(session)
    assert box.calls == ["opened", "choose", "closed"]
    assert len(bench.device) == 0


@pytest.mark.parametrize(
    ("answer", "count"), [(lambda packet: None, 0), (lambda packet: [packet, packet.copy()], 2)]
)
def test_a_packet_box_drops_and_multiplies(answer: Callable[[Packet], object], count: int) -> None:
    bench = Bench(PacketBox(answer))
    assert len(bench.send(FORWARD, SYN, CLIENT_ISN, 0)) == count


@pytest.mark.parametrize("wrong", ["text", 5, [b"bytes"], [None], object()])
def test_what_is_no_packet_costs_the_packet_only(wrong: object) -> None:
    bench = Bench(PacketBox(lambda packet: wrong))
    assert bench.send(FORWARD, SYN, CLIENT_ISN, 0) == []
    assert bench.device.counters["errors"] == 1


@pytest.mark.parametrize("method", ["opened", "choose", "closed", "packet"])
def test_a_packet_box_that_raises_costs_at_most_the_packet(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the box is broken")

    box = PacketBox(lambda packet: packet)
    monkeypatch.setattr(box, method, fail)
    bench = Bench(box)
    assert len(bench.send(FORWARD, SYN, CLIENT_ISN, 0)) == (method != "packet")
    bench.device.forget(V4)
    assert bench.device.counters["errors"] == 1
    assert len(bench.device) == 0


@pytest.mark.parametrize("box", [PacketBox(lambda packet: packet), StreamBox(lambda chunk: chunk)])
def test_hops_are_chosen_before_the_syn_leaves(box: PacketBox | StreamBox) -> None:
    box.hops = ["ids"]
    bench = Bench(box)
    bench.device._receive = lambda port, packet: bench.out.append((len(bench.chosen), packet))
    bench.device.from_left(build_tcp(V4, 1, 0, SYN, 1000))
    assert bench.chosen == [(V4, ["ids"])]
    assert [count for count, _ in bench.out] == [1]


# Stream boxes.


@pytest.mark.parametrize("session", [V4, V6])
def test_numbers_follow_what_the_box_adds(session: FiveTuple) -> None:
    bench = Bench(StreamBox(lambda chunk: b"<" + chunk + b">"), session)
    bench.handshake()
    [(port, packet, at)] = bench.up(0, b"hello")
    assert (port, offset(at, CLIENT_ISN), payload_of(packet, at)) == (RIGHT, 0, b"<hello>")
    [(port, packet, at)] = bench.down(0, b"abc", ack=7)
    assert (port, acked(at, CLIENT_ISN), payload_of(packet, at)) == (LEFT, 5, b"<abc>")
    [(port, packet, at)] = bench.up(5, b"x", ack=5)
    assert (offset(at, CLIENT_ISN), acked(at, SERVER_ISN), payload_of(packet, at)) == (7, 3, b"<x>")


def test_a_repetition_brings_all_that_the_bytes_became_and_nothing_that_has_arrived() -> None:
    made: list[bytes] = []

    def change(chunk: bytes) -> bytes:
        made.append(chunk)
        return chunk * 10

    bench = Bench(StreamBox(change))
    bench.handshake(mss=100)
    chunk = bytes(range(50))
    first = bench.up(0, chunk)
    assert [at.payload_len for _, _, at in first] == [100] * 5
    again = bench.up(0, chunk)
    assert [payload_of(p, at) for _, p, at in again] == [payload_of(p, at) for _, p, at in first]
    assert made == [chunk], "the box sees each byte once"
    bench.down(0, ack=200, flags=ACK)
    rest = bench.up(0, chunk)
    assert [offset(at, CLIENT_ISN) for _, _, at in rest] == [200, 300, 400]


def test_the_last_byte_is_acknowledged_with_the_last_that_it_became() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk * 10))
    bench.handshake()
    bench.up(0, b"abcde")
    seen = [
        acked(at, CLIENT_ISN) for ack in (9, 10, 49, 50) for _, _, at in bench.down(0, ack=ack, flags=ACK)
    ]
    assert max(seen[:-1]) < 5
    assert seen[-1] == 5


def test_what_is_swallowed_is_acknowledged_here() -> None:
    bench = Bench(StreamBox(lambda chunk: b""))
    bench.handshake()
    [(port, _, at)] = bench.up(0, b"hello")
    assert (port, acked(at, CLIENT_ISN), at.payload_len) == (LEFT, 5, 0)
    [(port, _, at)] = bench.up(0, b"hello")
    assert (port, acked(at, CLIENT_ISN)) == (LEFT, 5), "its acknowledgement was lost"


def test_what_is_swallowed_waits_for_what_came_before() -> None:
    bench = Bench(StreamBox(lambda chunk: b"" if chunk == b"gone" else chunk))
    bench.handshake()
    bench.up(0, b"stay")
    assert [port for port, _, _ in bench.up(4, b"gone")] == []
    [(_, _, at)] = bench.down(0, ack=4, flags=ACK)
    assert acked(at, CLIENT_ISN) == 8


def test_fin_comes_behind_what_the_box_held_back() -> None:
    bench = Bench(StreamBox(lambda chunk: b"", last=b"the end"))
    bench.handshake()
    bench.up(0, b"hello")
    out = bench.up(5, flags=ACK | FIN)
    data = b"".join(payload_of(p, at) for port, p, at in out if port == RIGHT)
    last = [at for port, _, at in out if port == RIGHT][-1]
    assert data == b"the end"
    assert last.flags & FIN
    assert offset(last, CLIENT_ISN) + last.payload_len == 7
    bench.down(0, ack=7, flags=ACK)
    [(_, _, at)] = bench.up(5, flags=ACK | FIN)
    assert (offset(at, CLIENT_ISN), at.flags & FIN) == (7, FIN), "FIN alone is missing"
    [(_, _, at)] = bench.down(0, ack=8, flags=ACK)
    assert acked(at, CLIENT_ISN) == 6


def test_what_waits_for_the_window_leaves_when_it_opens() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk * 10))
    bench.handshake(mss=100, window=150)
    out = bench.up(0, b"x" * 30)
    sent = sum(at.payload_len for port, _, at in out if port == RIGHT)
    assert 0 < sent <= 150
    arrived = sent
    for _ in range(20):
        out = bench.down(0, ack=arrived, flags=ACK, window=150)
        arrived += sum(at.payload_len for port, _, at in out if port == RIGHT)
    assert arrived == 300


def test_a_probe_of_a_closed_window_reaches_the_receiver() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk * 10))
    bench.handshake(mss=100, window=100)
    bench.up(0, b"x" * 20)
    bench.down(0, ack=100, flags=ACK, window=0)
    for out in (bench.up(10, b"x"), bench.up(9, flags=ACK)):
        assert [port for port, _, _ in out if port == RIGHT], "the receiver must be asked"
    out = bench.down(0, ack=100, flags=ACK, window=100)
    assert sum(at.payload_len for port, _, at in out if port == RIGHT) == 100


def test_a_keepalive_reaches_the_receiver() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk + b"!"))
    bench.handshake()
    bench.up(0, b"hello")
    bench.down(0, ack=6, flags=ACK)
    for payload in (b"", b"\0"):
        [(port, _, at)] = [one for one in bench.up(4, payload, flags=ACK) if one[0] == RIGHT]
        assert (port, offset(at, CLIENT_ISN), at.payload_len) == (RIGHT, 5, 0)


def test_bytes_ahead_of_a_hole_are_kept_and_asked_for() -> None:
    made: list[bytes] = []

    def change(chunk: bytes) -> bytes:
        made.append(chunk)
        return chunk

    bench = Bench(StreamBox(change))
    bench.handshake()
    [(port, _, at)] = bench.up(5, b"world")
    assert (port, acked(at, CLIENT_ISN)) == (LEFT, 0)
    out = bench.up(0, b"hello")
    assert b"".join(payload_of(p, at) for port, p, at in out if port == RIGHT) == b"helloworld"
    assert b"".join(made) == b"helloworld"


def test_an_offload_packet_is_taken_whole_and_leaves_with_segments_that_fit() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk + chunk))
    bench.handshake(mss=1000)
    whole = bytes(range(256)) * 100
    out = bench.up(0, whole, gso=1000)
    assert b"".join(payload_of(p, at) for _, p, at in out) == whole + whole
    assert all((p.gso_size or at.payload_len) <= 1000 for _, p, at in out)
    assert all(at.total_len <= 65535 for _, _, at in out)
    assert [bool(at.flags & PSH) for _, _, at in out][:-1] == [False] * (len(out) - 1)


def test_data_of_a_syn_is_left_to_be_repeated() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk))
    [(_, _, at)] = bench.send(FORWARD, SYN, CLIENT_ISN, 0, b"early")
    assert at.payload_len == 0


def test_a_reset_has_the_number_that_the_receiver_expects() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk * 3))
    bench.handshake()
    bench.up(0, b"hello")
    bench.down(0, ack=15, flags=ACK)
    [(port, _, at)] = bench.up(5, flags=RST | ACK)
    assert (port, offset(at, CLIENT_ISN), at.flags & RST) == (RIGHT, 15, RST)


@pytest.mark.parametrize("wrong", [None, 7, "text"])
def test_a_stream_box_that_fails_ends_its_session_with_resets(wrong: object) -> None:
    def change(chunk: bytes) -> object:
        if chunk == b"ok":
            return chunk * 4
        if wrong is None:
            raise RuntimeError("the box is broken")
        return wrong

    box = StreamBox(change)
    bench = Bench(box)
    bench.handshake()
    bench.up(0, b"ok")
    bench.down(0, ack=8, flags=ACK)
    out = bench.up(2, b"bad")
    assert sorted(port for port, _, _ in out) == [LEFT, RIGHT]
    assert all(at.payload_len == 0 for _, _, at in out)
    assert bench.device.counters["errors"] == 1
    [client] = [at for port, _, at in out if port == LEFT]
    assert (client.seq, client.flags & RST) == (SERVER_ISN + 1, RST)
    # The receiver counts otherwise; it is made to say what it expects, and is given that.
    out = bench.down(0, ack=8, flags=ACK)
    assert 8 in [offset(at, CLIENT_ISN) for port, _, at in out if port == RIGHT and at.flags & RST]
    bench.device.forget(V4)
    assert box.calls == ["opened", "choose", "closed"]
    assert len(bench.device) == 0


def test_a_session_that_began_before_is_ended_on_both_sides() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk))
    out = bench.up(0, b"hello")
    assert all(at.payload_len == 0 for _, _, at in out), "bytes that the box has not seen must not pass"
    assert [at.seq for port, _, at in out if port == LEFT and at.flags & RST] == [SERVER_ISN + 1]
    assert [port for port, _, _ in out if port == RIGHT], "the receiver is made to say what it expects"
    out = bench.down(0, ack=700, flags=ACK)
    assert 700 in [offset(at, CLIENT_ISN) for port, _, at in out if port == RIGHT and at.flags & RST]
    out = bench.up(0, flags=RST)
    assert [port for port, _, _ in out] == [RIGHT], "a reset passes and is answered by none"


def test_a_tuple_is_used_again() -> None:
    box = StreamBox(lambda chunk: chunk + b"!")
    bench = Bench(box)
    bench.handshake()
    bench.up(0, b"hello")
    bench.up(5, flags=RST)
    bench.send(FORWARD, SYN, 77, 0)
    assert box.calls == ["opened", "choose", "closed", "opened", "choose"]
    bench.send(BACKWARD, SYN | ACK, 99, 78)
    [(_, packet, at)] = bench.send(FORWARD, ACK, 78, 100, b"again")
    assert (at.seq, payload_of(packet, at)) == (78, b"again!")
    bench.device.forget(V4)
    assert len(bench.device) == 1, "the first session's end is not the second's"
    bench.device.forget(V4)
    assert len(bench.device) == 0


def test_an_error_about_a_rewritten_packet_comes_back_with_the_senders_number() -> None:
    bench = Bench(StreamBox(lambda chunk: b"some more: " + chunk))
    bench.handshake()
    bench.up(0, b"a")
    bench.down(0, ack=12, flags=ACK)
    [(_, packet, at)] = bench.up(1, b"b")
    assert offset(at, CLIENT_ISN) == 12
    bench.out.clear()
    bench.device.from_right(make_fragmentation_needed(packet, 1200, src=bytes((192, 0, 2, 1)), dst=V4.src))
    [(port, error)] = bench.out
    quoted = parse_error(error)
    assert port == LEFT
    assert quoted is not None
    assert (quoted.seq - CLIENT_ISN - 1) & 0xFFFFFFFF == 1
    assert quoted.mtu == 1200
    out = bench.up(2, b"c" * 900 + b"d" * 900, gso=900)
    assert all((p.gso_size or at.payload_len) <= 1160 for _, p, at in out)


def test_the_kind_must_be_that_of_the_class(tmp_path: Path) -> None:
    path = tmp_path / "box.py"
    path.write_text("import dysco\nclass Box(dysco.StreamMiddlebox): pass\n")
    assert isinstance(load(f"{path}:Box", "box x", "stream"), StreamMiddlebox)
    with pytest.raises(ConfigError, match=r'^box x: kind = "packet", but .* is a box of kind "stream"$'):
        load(f"{path}:Box", "box x", "packet")


def test_a_window_that_was_promised_is_never_taken_back() -> None:
    bench = Bench(StreamBox(lambda chunk: chunk * 10))
    bench.handshake(mss=500, window=3000)
    edges = []
    arrived = 0
    for start in range(0, 3000, 500):
        out = bench.up(start, b"x" * 500)
        # The receiver acknowledges the first packet of each chunk only, and its window stays as it is.
        arrived += next((at.payload_len for port, _, at in out if port == RIGHT and at.payload_len), 0)
        out = bench.down(0, ack=arrived, flags=ACK, window=3000)
        edges += [acked(at, CLIENT_ISN) + at.window for port, _, at in out if port == LEFT]
    assert len(edges) > 1
    assert edges[0] >= 3000
    assert edges == sorted(edges)
