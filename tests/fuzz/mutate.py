"""Mutations: what random changes make of well-formed inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence

INTERESTING = (0, 1, 4, 5, 6, 0x0F, 0x10, 0x3C, 0x40, 0x45, 0x60, 0x7F, 0x80, 0xF0, 0xFF)


def mutate(rng: random.Random, pool: Sequence[bytes]) -> bytes:
    """One input: a member of the pool with one to eight changes, or now and then pure noise."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(pool))
    for _ in range(rng.randrange(1, 9)):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(7):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice(INTERESTING)
            case 2:
                data[at] = rng.randrange(256)
            case 3:
                del data[at:]
            case 4:
                del data[at : at + rng.randrange(1, 9)]
            case 5:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                other = rng.choice(pool)
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)
