"""Random bytes by the page."""

from __future__ import annotations

import os

import pytest

from dysco.service.entropy import Entropy


def test_every_byte_is_given_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    given = bytearray()

    def urandom(count: int) -> bytes:
        given.extend(page := os.getrandom(count))
        return page

    monkeypatch.setattr("dysco.service.entropy.os.urandom", urandom)
    draw = Entropy()
    got = [draw(count) for count in [4] * 1024 + [16]]
    assert b"".join(got) == bytes(given[: 4 * 1024 + 16])
    assert [len(one) for one in (draw(5000), draw(0), draw(4))] == [5000, 0, 4]
    assert draw(32) != draw(32)
