"""The simulator's TCP endpoint where scenarios seldom come: a window that is closed, and its update that is lost."""

from __future__ import annotations

import random

from dysco.sim.endpoint import ATTEMPTS, Endpoint, Profile, State
from dysco.wire.packet import ACK, FIN, SYN, Packet, build_tcp, locate
from dysco.wire.tuples import FiveTuple

ME = FiveTuple.parse("10.0.0.1:4000 > 10.0.0.2:80")
ISN, THEIRS = 1000, 5000


class Rig:
    """An endpoint that has sent its SYN; its peer is the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sent: list[Packet] = []
        profile = Profile(wscale=None, timestamps=False, sack=False)
        self.end = Endpoint(ME, ISN, profile, self.sent.append, random.Random(1))
        self.end.open(self.now)

    def answer(self, acked: int, window: int, flags: int = ACK) -> None:
        seq = THEIRS if flags & SYN else THEIRS + 1
        self.end.receive(build_tcp(ME.reversed(), seq, ISN + acked, flags, window), self.now)

    def wait(self) -> None:
        """Let time pass until the endpoint's timer."""
        assert self.end.deadline is not None
        self.now = self.end.deadline
        self.end.handle_deadline(self.now)

    def take(self) -> list[tuple[int, bytes, int]]:
        """Relative number, payload and flags of what was sent since."""
        found = []
        for packet in self.sent:
            at = locate(packet)
            assert at is not None
            found.append((at.seq - ISN, bytes(packet.data[at.payload_offset :]), at.flags))
        self.sent.clear()
        return found


def test_a_closed_window_is_probed_until_it_opens() -> None:
    rig = Rig()
    rig.answer(1, 0, SYN | ACK)
    rig.end.write(b"hello", rig.now)
    rig.take()
    for _ in range(3 * ATTEMPTS):
        rig.wait()
        assert [(seq, data) for seq, data, _ in rig.take()] == [(1, b"h")]
        rig.answer(1, 0)
    assert rig.end.state is State.OPEN
    rig.answer(1, 100)
    rig.wait()
    assert (1, b"hello") in [(seq, data) for seq, data, _ in rig.take()]
    rig.answer(6, 100)
    assert rig.end.deadline is None
    assert rig.end.violations == []


def test_a_window_that_closes_with_nothing_in_flight_and_whose_update_is_lost() -> None:
    rig = Rig()
    rig.answer(1, 3, SYN | ACK)
    rig.take()
    rig.end.write(b"hello", rig.now)
    assert [data for _, data, _ in rig.take()] == [b"hel"]
    rig.answer(4, 0)
    assert rig.take() == []
    rig.wait()  # the update never came
    assert [(seq, data) for seq, data, _ in rig.take()] == [(4, b"l")]
    rig.answer(5, 100)
    assert [(seq, data) for seq, data, _ in rig.take()] == [(5, b"o")]


def test_probes_that_nobody_answers_end() -> None:
    rig = Rig()
    rig.answer(1, 0, SYN | ACK)
    rig.end.write(b"hello", rig.now)
    for _ in range(ATTEMPTS + 1):
        rig.wait()
    assert rig.end.state is State.FAILED
    assert rig.end.why_failed == "no answer"


def test_nothing_to_send_needs_no_timer() -> None:
    rig = Rig()
    rig.answer(1, 0, SYN | ACK)
    assert rig.end.deadline is None
    rig.take()
    rig.end.close(rig.now)  # a FIN needs no window
    assert [flags & FIN for _, _, flags in rig.take()] == [FIN]
