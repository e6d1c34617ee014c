"""`python -m dysco.sim`: run scenarios by seed, say how fast, and show the dialogue of one that fails."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from dysco.sim import proxied, scenario
from dysco.sim.scenario import Verdict

_BATCH: Final = 256


def main() -> int:
    """Run the seeds that the command line names; 0 if every verdict is without fault."""
    parser = argparse.ArgumentParser(prog="python -m dysco.sim", description=__doc__)
    parser.add_argument(
        "--seeds", default="0:1000", help="FIRST:END, END not included, or one seed (default %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument(
        "--fresh",
        type=int,
        metavar="N",
        help="N seeds that nobody has run, after a first one that is printed",
    )
    parser.add_argument("--seconds", type=float, help="begin no more seeds after this time")
    parser.add_argument("--dialogue", action="store_true", help="print every packet and message of the seeds")
    parser.add_argument("--proxy", action="store_true", help="scenarios with a proxy that is taken out")
    options = parser.parse_args()
    run = proxied.run if options.proxy else scenario.run
    first, separator, last = options.seeds.partition(":")
    try:
        seeds = range(int(first), int(last) if separator else int(first) + 1)
    except ValueError:
        parser.error(f"--seeds: {options.seeds!r} is not FIRST:END")
    if options.fresh is not None:
        first = time.time_ns() // 1_000_000
        seeds = range(first, first + options.fresh)
        sys.stdout.write(f"seeds {first}:{first + options.fresh}\n")
    began = time.monotonic()
    failed = ran = 0
    total = Verdict(-1)
    with ProcessPoolExecutor(options.jobs) as pool:
        for verdict in in_time(pool, run, seeds, options.seconds):
            ran += 1
            total.sessions += verdict.sessions
            total.completed += verdict.completed
            total.bytes += verdict.bytes
            total.outcomes += verdict.outcomes
            if verdict.faults:
                failed += 1
                sys.stdout.write(f"seed {verdict.seed}: " + "; ".join(verdict.faults) + "\n")
                sys.stdout.flush()
    if options.dialogue:
        for seed in seeds:
            sys.stdout.write("\n".join(run(seed, record=True).dialogue) + "\n")
    elapsed = time.monotonic() - began
    sys.stdout.write(
        f"{ran} seeds, {total.sessions} sessions, {total.bytes} bytes, "
        f"changes {dict(sorted(total.outcomes.items()))}, {failed} failed, {ran / elapsed:.1f} seeds/s\n"
    )
    return 1 if failed else 0


def in_time(
    pool: ProcessPoolExecutor, run: Callable[[int], Verdict], seeds: range, seconds: float | None
) -> Iterator[Verdict]:
    """Verdicts of the seeds, a batch at a time, until the time is over."""
    began = time.monotonic()
    for at in range(0, len(seeds), _BATCH):
        if seconds is not None and time.monotonic() - began > seconds:
            return
        yield from pool.map(run, seeds[at : at + _BATCH], chunksize=8)


if __name__ == "__main__":
    sys.exit(main())
