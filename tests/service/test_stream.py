"""Stream boxes between modelled endpoints: what arrives is what the box makes of the whole stream."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dysco.sim.endpoint import Profile
from dysco.sim.link import Fault
from service.stream_rig import BACKWARD, FORWARD, V4, V6, Blocks, Change, Each, Rig, Same

GROW = {ord("a"): b"elephant", ord("b"): b""}


def changes() -> st.SearchStrategy[Change]:
    return st.one_of(
        st.builds(Same),
        st.sampled_from(
            [{}, GROW, dict.fromkeys(range(256), b""), {x: bytes((x, x, x)) for x in range(256)}]
        ).map(Each),
        st.builds(
            Blocks,
            st.integers(1, 5000),
            st.binary(max_size=20),
            st.sampled_from([b"", b"-- end", b"z" * 4000]),
        ),
    )


PROFILES = st.builds(
    Profile,
    mss=st.sampled_from([536, 1220, 1460, 8960]),
    wscale=st.sampled_from([None, 0, 2, 7]),
    timestamps=st.booleans(),
    sack=st.booleans(),
    buffer=st.sampled_from([600, 3000, 20000, 65535]),
    burst=st.sampled_from([1, 1, 4, 40]),
)
FAULTS = st.builds(
    Fault,
    delay_s=st.sampled_from([0.001, 0.02]),
    jitter_s=st.sampled_from([0.0, 0.01]),
    loss=st.sampled_from([0.0, 0.05, 0.2]),
    repeat=st.sampled_from([0.0, 0.1]),
    late=st.sampled_from([0.0, 0.1]),
)
ISNS = st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 3000, 2**32 - 1))


def stream(seed: int, size: int) -> bytes:
    return bytes(random.Random(seed).choices(b"abcdefgh\n", k=size))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    forward=changes(),
    backward=changes(),
    session=st.sampled_from([V4, V6]),
    profiles=st.tuples(PROFILES, PROFILES),
    faults=st.tuples(FAULTS, FAULTS),
    isns=st.tuples(ISNS, ISNS),
    sizes=st.tuples(*[st.sampled_from([0, 1, 700, 6000])] * 2),
)
def test_streams_arrive_as_the_box_makes_them(
    seed: int,
    forward: Change,
    backward: Change,
    session: object,
    profiles: tuple[Profile, Profile],
    faults: tuple[Fault, Fault],
    isns: tuple[int, int],
    sizes: tuple[int, int],
) -> None:
    rig = Rig(seed, {FORWARD: forward, BACKWARD: backward}, session, profiles, faults, isns)  # type: ignore[arg-type]
    left, right = stream(seed, sizes[0]), stream(seed + 1, sizes[1])
    rig.run(left, right)
    rig.check(left, right)
    assert rig.box.is_settled


@pytest.mark.parametrize("rate", [2000.0, 200_000.0])
@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_slow_reader_behind_a_box_that_grows(rate: float, loss: float, seed: int) -> None:
    rig = Rig(
        seed,
        {FORWARD: Each({x: bytes((x, x, x)) for x in range(256)}), BACKWARD: Each(GROW)},
        profiles=(Profile(buffer=4000, wscale=0), Profile(buffer=3000, wscale=2)),
        faults=(Fault(loss=loss), Fault(loss=loss)),
        rates=(rate, rate),
    )
    left, right = stream(seed, 6000), stream(seed + 1, 6000)
    rig.run(left, right)
    rig.check(left, right)


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_grows_tenfold_through_a_path_that_loses_much(seed: int) -> None:
    # Bytes under way must stay within the sender's window: outside of it, it repeats one byte at a time.
    rig = Rig(
        seed,
        {FORWARD: Each({x: bytes((x,)) * 10 for x in range(256)}), BACKWARD: Same()},
        profiles=(Profile(mss=536, wscale=None, burst=40), Profile(mss=8960, wscale=2)),
        faults=(
            Fault(delay_s=0.02, jitter_s=0.01, loss=0.05),
            Fault(delay_s=0.02, jitter_s=0.01, loss=0.3, repeat=0.1, late=0.2),
        ),
    )
    left, right = stream(seed, 60000), stream(seed + 1, 6000)
    rig.run(left, right, limit_s=60.0)
    rig.check(left, right)


@pytest.mark.parametrize("at", [0.03, 0.06, 0.09])
@pytest.mark.parametrize("seed", range(4))
def test_a_settled_session_passes_bytes_unchanged_and_its_sums_are_final(seed: int, at: float) -> None:
    fault = Fault(delay_s=0.01, loss=0.05)
    rig = Rig(seed, {FORWARD: Each(GROW), BACKWARD: Each({ord("c"): b""})}, faults=(fault, fault))
    left, right = stream(seed, 60_000), stream(seed + 1, 60_000)
    taken: dict[object, int] = {}
    sums: list[tuple[int, int] | None] = []

    def settle() -> None:
        if rig.box.half(BACKWARD) is None:
            assert rig.box.settle() is None  # the handshake is not over: ask again
            rig.clock.call_at(rig.clock.now + 0.01, settle)
            return
        sums.append(rig.box.settle())
        for way, isn in ((FORWARD, rig.isns[0]), (BACKWARD, rig.isns[1])):
            half = rig.box.half(way)
            taken[way] = 0 if half is None else half.map.in_end - isn - 1

    rig.clock.call_at(rig.clock.now + at, settle)
    rig.run(left, right)
    assert sums[0] is not None
    assert min(taken.values()) < len(left)
    for received, sent, way in ((rig.right.received, left, FORWARD), (rig.left.received, right, BACKWARD)):
        assert received == rig.changes[way].data(sent[: taken[way]]) + sent[taken[way] :]
    assert rig.box.settle() == sums[0]
