"""Associations without sockets and on a virtual clock: two ends, and a network by a seed between them."""

from __future__ import annotations

import datetime
import heapq
import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from dysco.errors import LocalError
from dysco.transport import keys, records
from dysco.transport.association import COOKIE_LIFE_S, HANDSHAKE_LIMIT_S, Association, Listener, State
from dysco.transport.identity import Identity

SOURCE = b"\x0a\x00\x00\x01\x30\x39"
BOTH = frozenset(("a", "b", "c"))


def identity(pki: Path, name: str, pins: dict[str, str] | None = None, *, ca: bool = True) -> Identity:
    return Identity(pki / f"{name}.pem", pki / f"{name}.key", pki / "ca.pem" if ca else None, pins)


@dataclass
class Network:
    """What becomes of datagrams: probabilities, and delays in seconds."""

    rng: random.Random
    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.001
    spread_s: float = 0.0

    def delays(self) -> list[float]:
        if self.rng.random() < self.loss:
            return []
        copies = 2 if self.rng.random() < self.repeat else 1
        return [self.delay_s + self.rng.random() * self.spread_s for _ in range(copies)]


class Pair:
    """A client and a listener with the association that it makes."""

    def __init__(self, client: Identity, server: Identity, expects: str, network: Network) -> None:
        self.now = 100.0
        self.accepts = BOTH
        self.network = network
        self.listener = Listener(server, self.now)
        self.client = Association.connect(client, expects, self.now)
        self.server: Association | None = None
        self.queue: list[tuple[float, int, bool, bytes]] = []
        self.order = itertools.count()
        self.wire: list[tuple[bool, bytes]] = []
        self.received: dict[bool, list[bytes]] = {True: [], False: []}
        self.collect()

    def post(self, to_server: bool, datagram: bytes) -> None:
        self.wire.append((to_server, datagram))
        for delay in self.network.delays():
            heapq.heappush(self.queue, (self.now + delay, next(self.order), to_server, datagram))

    def collect(self) -> None:
        for datagram in self.client.outgoing():
            self.post(True, datagram)
        if self.server is not None:
            for datagram in self.server.outgoing():
                self.post(False, datagram)

    def deliver(self, to_server: bool, datagram: bytes) -> None:
        assert records.sane(datagram)
        if not to_server:
            self.received[False] += self.client.receive(datagram, self.now)
        elif self.server is not None:
            self.received[True] += self.server.receive(datagram, self.now)
        elif records.is_client_hello(datagram):
            answers, self.server = self.listener.receive(datagram, SOURCE, self.accepts, self.now)
            for answer in answers:
                self.post(False, answer)
        self.collect()

    def step(self) -> bool:
        """Let the next thing happen; false if nothing will."""
        ends = [end for end in (self.client, self.server) if end is not None]
        deadlines = [d for end in ends if (d := end.next_deadline()) is not None]
        if self.queue and self.queue[0][0] <= min(deadlines, default=self.queue[0][0]):
            at, _, to_server, datagram = heapq.heappop(self.queue)
            self.now = max(self.now, at)
            self.deliver(to_server, datagram)
        elif deadlines:
            self.now = max(self.now, min(deadlines))
            for end in ends:
                end.handle_deadline(self.now)
            self.collect()
        else:
            return False
        return True

    def settle(self) -> None:
        while self.step():
            pass

    @property
    def up(self) -> bool:
        return self.server is not None and self.server.state is self.client.state is State.UP


def make(pki: Path, network: Network | None = None, *, client: str = "a", expects: str = "b") -> Pair:
    return Pair(identity(pki, client), identity(pki, "b"), expects, network or Network(random.Random(1)))


def test_handshake_names_keys_and_messages(pki: Path) -> None:
    pair = make(pki)
    pair.settle()
    assert pair.up
    assert pair.server is not None
    assert (pair.client.peer, pair.server.peer) == ("b", "a")
    assert pair.client.send_key == pair.server.receive_key
    assert pair.client.receive_key == pair.server.send_key
    assert len({pair.client.send_key, pair.client.receive_key}) == 2
    assert {len(pair.client.send_key), len(pair.client.receive_key)} == {32}
    for size in (1, 1163, 9000, records.RECORD_LIMIT):
        pair.client.send(b"x" * size)
        (datagram,) = pair.client.outgoing()
        assert len(datagram) == size + records.RECORD_OVERHEAD
        assert pair.server.receive(datagram, pair.now) == [b"x" * size]
        assert pair.server.receive(datagram, pair.now) == []  # replayed
    assert all(len(datagram) <= 548 for _, datagram in pair.wire)


def test_every_association_has_keys_of_its_own(pki: Path) -> None:
    seen = set()
    for _ in range(3):
        pair = make(pki)
        pair.settle()
        seen |= {pair.client.send_key, pair.client.receive_key}
    assert len(seen) == 6


def test_no_amplification_and_no_state_before_the_cookie(pki: Path) -> None:
    listener = Listener(identity(pki, "b"), 0.0)
    client = Association.connect(identity(pki, "a"), "b", 0.0)
    (hello,) = client.outgoing()
    for _ in range(100):
        answers, association = listener.receive(hello, SOURCE, BOTH, 0.0)
        assert association is None
        assert sum(map(len, answers)) < len(hello)
    client.receive(answers[0], 0.0)
    (proved,) = client.outgoing()
    # The cookie is good for that address and port, and for a while.
    assert listener.receive(proved, SOURCE[:-1] + b"\x00", BOTH, 0.0)[1] is None
    assert listener.receive(proved, SOURCE, BOTH, COOKIE_LIFE_S)[1] is not None
    assert listener.receive(proved, SOURCE, BOTH, 2 * COOKIE_LIFE_S)[1] is None


@pytest.mark.parametrize("seed", range(150))
def test_bad_networks_only_delay(pki: Path, seed: int) -> None:
    rng = random.Random(seed)
    network = Network(
        rng, loss=rng.choice((0.0, 0.1, 0.2)), repeat=rng.choice((0.0, 0.3)), spread_s=rng.choice((0.0, 0.3))
    )
    pair = make(pki, network)
    while pair.step() and pair.now < 100 + HANDSHAKE_LIMIT_S:
        if pair.up:
            break
    assert pair.up, (network, pair.client.reason, pair.server and pair.server.reason, pair.now)
    assert pair.server is not None
    assert pair.client.send_key == pair.server.receive_key


def test_each_single_datagram_lost(pki: Path) -> None:
    whole = make(pki)
    whole.settle()
    for lost in range(len(whole.wire)):
        pair = make(pki)
        while pair.step():
            if len(pair.wire) > lost:
                break
        _, doomed = pair.wire[lost]
        pair.queue = [entry for entry in pair.queue if entry[3] is not doomed]
        heapq.heapify(pair.queue)
        pair.settle()
        assert pair.up, lost
        assert pair.now < 101


def test_replayed_and_foreign_records_change_nothing(pki: Path) -> None:
    pair = make(pki)
    pair.settle()
    other = make(pki)
    other.settle()
    assert pair.server is not None
    pair.client.send(b"once")
    (datagram,) = pair.client.outgoing()
    assert pair.server.receive(datagram, pair.now) == [b"once"]
    recorded = [d for to_server, d in pair.wire + other.wire if to_server]
    before = pair.server.ignored
    answered = 0
    for _ in range(100):
        for old in [*recorded, datagram]:
            assert pair.server.receive(old, pair.now) == []
            answered += len(pair.server.outgoing())
    assert answered == 0
    assert pair.server.ignored > before
    assert pair.up


def test_alerts_in_clear_are_ignored(pki: Path) -> None:
    pair = make(pki)
    alert = bytes.fromhex("15fefd0000000000000001000202 28".replace(" ", ""))
    assert records.sane(alert)
    pair.client.receive(alert, pair.now)
    pair.settle()
    assert pair.up
    pair.client.receive(alert, pair.now)
    assert pair.up


@pytest.mark.parametrize("network", [Network(random.Random(1)), Network(random.Random(2), loss=0.1)])
def test_client_refuses_another_name(pki: Path, network: Network) -> None:
    pair = make(pki, network, expects="c")
    pair.settle()
    assert pair.client.state is State.CLOSED
    assert pair.client.reason == "certificate is for b, which is not expected from there"
    assert pair.server is None or pair.server.state is State.CLOSED


def test_server_refuses_a_name_that_is_not_expected_from_there(pki: Path) -> None:
    pair = make(pki)
    pair.accepts = frozenset("c")
    pair.settle()
    assert pair.server is not None
    assert pair.server.reason == "certificate is for a, which is not expected from there"
    assert pair.client.state is State.CLOSED


def test_another_authority_is_refused(pki: Path, tmp_path: Path) -> None:
    keys.init(tmp_path)
    keys.issue(tmp_path, "a")
    pair = Pair(identity(tmp_path, "a"), identity(pki, "b"), "b", Network(random.Random(1)))
    pair.settle()
    assert not pair.up
    assert pair.client.state is State.CLOSED
    assert pair.server is None or pair.server.state is State.CLOSED


def test_pinned_fingerprints_stand_for_the_authority(pki: Path, tmp_path: Path) -> None:
    keys.init(tmp_path)
    paths = keys.issue(tmp_path, "whoever")
    pins = {paths.fingerprint: "a"}
    client = Identity(paths.certificate, paths.key, pki / "ca.pem")
    pair = Pair(client, identity(pki, "b", pins), "b", Network(random.Random(1)))
    pair.settle()
    assert pair.up
    assert pair.server is not None
    assert pair.server.peer == "a"
    # Who is pinned has that certificate and no other, whatever the authority signed.
    pair = Pair(identity(pki, "a"), identity(pki, "b", pins), "b", Network(random.Random(1)))
    pair.settle()
    assert not pair.up
    assert pair.server is not None
    assert pair.server.reason == "a has another certificate than the pinned one"


def test_both_pinned_without_any_authority(pki: Path) -> None:
    prints = {keys.show(pki / f"{name}.pem").fingerprint: name for name in ("a", "b")}
    pair = Pair(
        identity(pki, "a", prints, ca=False),
        identity(pki, "b", prints, ca=False),
        "b",
        Network(random.Random(1)),
    )
    pair.settle()
    assert pair.up
    pair = Pair(
        identity(pki, "c", prints), identity(pki, "b", prints, ca=False), "b", Network(random.Random(1))
    )
    pair.settle()
    assert not pair.up


@pytest.mark.parametrize("days", [-2, 2])
def test_certificates_out_of_their_time_are_refused(
    pki: Path, tmp_path: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    for name in ("ca.pem", "ca.key"):
        (tmp_path / name).write_bytes((pki / name).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_now", lambda: shifted)
        paths = keys.issue(tmp_path, "a", days=1)
    for pins in ({}, {paths.fingerprint: "a"}):
        pair = Pair(identity(tmp_path, "a"), identity(pki, "b", pins), "b", Network(random.Random(1)))
        pair.settle()
        assert not pair.up
        assert pair.server is not None
        assert pair.server.reason is not None
        assert "not valid" in pair.server.reason


def test_a_handshake_with_nobody_ends(pki: Path) -> None:
    pair = make(pki, Network(random.Random(1), loss=1.0))
    pair.settle()
    assert pair.client.state is State.CLOSED
    assert pair.client.reason == "handshake timed out"
    assert pair.now == pytest.approx(100 + HANDSHAKE_LIMIT_S)
    assert len(pair.wire) < 12
    with pytest.raises(LocalError):
        pair.client.send(b"x")


def test_closing_reaches_the_peer(pki: Path) -> None:
    pair = make(pki)
    pair.settle()
    pair.client.close()
    pair.collect()
    pair.settle()
    assert pair.server is not None
    assert pair.server.reason == "closed by the peer"


@pytest.mark.parametrize("seed", range(20))
def test_mutilated_handshakes_never_raise(pki: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = make(pki)
    for _ in range(200):
        if not pair.queue:
            break
        at, order, to_server, datagram = pair.queue[0]
        bad = bytearray(datagram)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        bad = bad[: rng.randint(1, len(bad))]
        if records.sane(bytes(bad)):
            heapq.heapreplace(pair.queue, (at, order, to_server, bytes(bad)))
        pair.step()
    pair.settle()
    assert pair.client.state in (State.UP, State.CLOSED)
