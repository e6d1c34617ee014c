"""`tools/fuzz`: mutate without an end, coverage-guided where atheris is installed, and keep what fails."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import random
import sys
import time

from fuzz.corpus import DIRECTORY, found, seeds
from fuzz.mutate import mutate
from fuzz.targets import TARGETS


def main() -> int:
    """Fuzz what the command line names; 1 if an input failed."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="what to fuzz (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default %(default)s)")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is not None and len(options.target) == 1:
        return _guided(options.target[0], options.seconds)
    sys.stdout.write("atheris is not installed or several targets are wanted: mutations without coverage\n")
    return max(_plain(name, options.seconds) for name in options.target or TARGETS)


def _plain(name: str, seconds: float) -> int:
    rng, pool, rounds, failed = random.Random(), [*seeds(name), *found(name)], 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and not failed:
        for _ in range(200):
            data = mutate(rng, pool)
            rounds += 1
            try:
                TARGETS[name](data)
            except Exception as error:
                failed = 1
                _keep(name, data, error)
                break
    sys.stdout.write(f"{name}: {rounds} inputs, {'one failed' if failed else 'none failed'}\n")
    return failed


def _guided(name: str, seconds: float) -> int:
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", str(DIRECTORY / name)], TARGETS[name])
    atheris.Fuzz()
    return 0


def _keep(name: str, data: bytes, error: Exception) -> None:
    place = DIRECTORY / name
    place.mkdir(parents=True, exist_ok=True)
    (place / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    sys.stdout.write(f"{name}: {error!r}\n{data.hex()}\n")


if __name__ == "__main__":
    sys.exit(main())
