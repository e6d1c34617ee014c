"""A host.toml that was damaged is applied whole or refused whole, and nothing else is ever raised."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dysco import config

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = 2000  # files in CI; the generator takes any number
PIECES = [
    b"", b"\xff", b"\xc3\xa9", b"[", b"]", b"{", b"}", b'"', b"'", b'"""', b"=", b".", b",", b"#", b"\n",
    b"\r", b"\x00", b"-1", b"0", b"99999999999999999999", b"1e400", b"nan", b"inf", b"true", b"[]", b"{}",
    b"[[[]]]", b"1979-05-27", b'""', b'"\\u0000"', b"\\", b"[[policy]]\n", b"[agent]\n", b"[[box]]\n",
    b'match = "port 80 or ("\n', b'match = "not not not port 1"\n', b"hops = [{}]\n", b'hops = ["a/b/c"]\n',
    b"_", b"::1", b"/33", b"policy = 1\n", b"peer = {}\n", b"peer = [1]\n", b"a.b.c = 1\n",
    b"group = [[]]\n",
]  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to four places: cut, double, move, replace a piece, a byte, a line or a word."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        end = min(end, at + rng.choice((1, 4, 40)))
        lines = data.split(b"\n")
        match rng.randrange(7):
            case 0:
                data = data[:at] + data[end:]
            case 1:
                data = data[:end] + data[at:]
            case 2:
                data = data[:at] + rng.choice(PIECES) + data[at:]
            case 3:
                data = data[:at] + rng.choice(PIECES) + data[end:]
            case 4:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 5:
                first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
                lines[first], lines[second] = lines[second], lines[first]
                data = b"\n".join(lines)
            case 6:
                line = rng.randrange(len(lines))
                key, equals, _ = lines[line].partition(b"=")
                lines[line] = key + equals + b" " + rng.choice(PIECES)
                data = b"\n".join(lines)
    return data


def test_damaged_files_are_applied_whole_or_refused_whole() -> None:
    originals = [path.read_bytes() for path in sorted(CONFIGS.glob("host-*.toml"))]
    accepted = refused = 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        data = mutate(rng.choice(originals), rng)
        loaded, findings = config.check_bytes(data, "host.toml", Path("/etc/dysco"))
        errors = [one for one in findings if one.severity == "error"]
        assert (loaded is None) == bool(errors), (seed, findings)
        lines = data.count(b"\n") + 1
        for one in findings:
            assert 1 <= one.position.line <= lines, (seed, one)
            assert one.position.column >= 1, (seed, one)
            assert one.message, (seed, one)
            assert "\n" not in str(one), (seed, one)
        if loaded is None:
            refused += 1
        else:
            accepted += 1
            config.policy_set(loaded, (b"\x0a\x00\x00\x01",)).clauses()
    assert accepted > SEEDS // 50  # the test would mean little if the damage were always fatal
    assert refused > SEEDS // 4


@pytest.mark.parametrize(
    "data",
    [
        b"a = " + b"[" * 100_000,
        b"a = " + b"9" * 10_000,
        b"a" + b".a" * 1_000 + b" = 1",
        b"a" + b".a" * 20_000 + b" = 1",
        b'[agent]\nname = "a"\n[[policy]]\nname = "p"\nhops = []\nmatch = "' + b"(" * 10_000 + b'"',
        b'[agent]\nname = "a"\n[[policy]]\nname = "p"\nhops = []\nmatch = "' + b"not " * 4_000 + b'port 1"',
        b"#" * (2 << 20),
        b"",
    ],
)
def test_monstrous_files_are_refused(data: bytes) -> None:
    loaded, findings = config.check_bytes(data, "host.toml", Path("/"))
    assert loaded is None
    assert findings
