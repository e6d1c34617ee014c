"""Tracker entries as bytes: what is written is read, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dysco.errors import RemoteError, WireError
from dysco.host import tracked
from dysco.host.tracked import CLOSE_INIT, SACK_PERM, WINDOW_SCALE, Entry
from dysco.wire.tuples import FiveTuple

SESSION = FiveTuple.parse("10.0.0.1:40000 > 10.0.0.9:80")
SESSION6 = FiveTuple.parse("[fd00::1]:40000 > [fd00::9]:80")
ENTRY = Entry(
    SESSION,
    SESSION.reversed(),
    scales=(7, 9),
    flags=(WINDOW_SCALE | SACK_PERM, WINDOW_SCALE | CLOSE_INIT),
    timeout_s=432_000,
    mark=0x01020304,
    labels=bytes(range(16)),
)
tuples = st.one_of(
    st.binary(min_size=12, max_size=12).map(FiveTuple), st.binary(min_size=36, max_size=36).map(FiveTuple)
)
sides = st.tuples(st.integers(0, 14), st.integers(0, 7)).map(
    lambda side: (side[0] if side[1] & WINDOW_SCALE else 0, side[1])
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    original = draw(tuples)
    length = len(original)
    reply = draw(st.binary(min_size=length, max_size=length).map(FiveTuple))
    left, right = draw(sides), draw(sides)
    return Entry(
        original,
        reply,
        draw(st.integers(3, 7)),
        draw(st.booleans()),
        draw(st.booleans()),
        (left[0], right[0]),
        (left[1], right[1]),
        draw(st.integers(1, tracked.MAX_TIMEOUT_S)),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.binary(min_size=16, max_size=16)),
    )


@given(entries())
def test_what_is_written_is_read(entry: Entry) -> None:
    assert tracked.decode(tracked.encode(entry)) == entry


def test_the_layout_is_that_of_the_protocol_page() -> None:
    assert tracked.encode(ENTRY).hex() == (
        "44594354" "01" "04" "03" "03" "07" "09" "03" "05" "00069780" "01020304"
        "000102030405060708090a0b0c0d0e0f"
        "0a0000010a0000099c400050"
        "0a0000090a00000100509c40"
    )  # fmt: skip


@given(st.binary(max_size=120))
def test_any_bytes_are_an_entry_or_one_error(data: bytes) -> None:
    try:
        entry = tracked.decode(data)
    except WireError:
        return
    assert tracked.encode(entry) == data


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, 0x45),  # magic
        (4, 2),  # version
        (5, 6),  # a family that does not go with the length
        (5, 5),
        (6, 2),  # SYN_RECV: not established
        (6, 8),  # CLOSE
        (7, 0x08),  # CONFIRMED, which only the kernel says
        (8, 15),  # RFC 7323: at most 14
        (10, 0x08),  # BE_LIBERAL: never at a peer's word
        (10, SACK_PERM),  # a scale without window scaling
        (12, 0x7F),  # four years
    ],
)
def test_values_that_are_not_allowed_are_refused(offset: int, value: int) -> None:
    data = bytearray(tracked.encode(ENTRY))
    data[offset] = value
    with pytest.raises(WireError):
        tracked.decode(bytes(data))


def test_every_other_length_is_refused() -> None:
    for entry in (ENTRY, Entry(SESSION6, SESSION6.reversed())):
        data = tracked.encode(entry)
        for length in range(len(data)):
            with pytest.raises(WireError):
                tracked.decode(data[:length])
        with pytest.raises(WireError):
            tracked.decode(data + b"\0")


def test_only_the_tuples_of_the_session_are_accepted() -> None:
    other = FiveTuple.parse("10.0.0.1:40001 > 10.0.0.9:80")
    translated = FiveTuple.parse("192.0.2.1:1024 > 10.0.0.9:80")
    back = SESSION.reversed()
    tracked.check(Entry(SESSION, back), SESSION, SESSION)
    tracked.check(Entry(back, SESSION), SESSION, SESSION)  # first seen in its backward direction
    tracked.check(Entry(SESSION, translated.reversed()), SESSION, translated)
    for original, reply, right in (
        (other, other.reversed(), SESSION),
        (SESSION, other.reversed(), SESSION),
        (other, back, SESSION),
        (SESSION, translated.reversed(), SESSION),
        (SESSION, back, translated),
    ):
        with pytest.raises(RemoteError):
            tracked.check(Entry(original, reply), SESSION, right)
