"""`python -m dysco.sim`: run scenarios by seed, say how fast, and show the dialogue of one that fails."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from dysco.sim.scenario import Verdict, run


def main() -> int:
    """Run the seeds that the command line names; 0 if every verdict is without fault."""
    parser = argparse.ArgumentParser(prog="python -m dysco.sim", description=__doc__)
    parser.add_argument(
        "--seeds", default="0:1000", help="FIRST:END, END not included, or one seed (default %(default)s)"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    parser.add_argument("--dialogue", action="store_true", help="print every packet and message of the seeds")
    options = parser.parse_args()
    first, separator, last = options.seeds.partition(":")
    try:
        seeds = range(int(first), int(last) if separator else int(first) + 1)
    except ValueError:
        parser.error(f"--seeds: {options.seeds!r} is not FIRST:END")
    began = time.monotonic()
    failed = 0
    total = Verdict(-1)
    with ProcessPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(run, seeds, chunksize=8):
            total.sessions += verdict.sessions
            total.completed += verdict.completed
            total.bytes += verdict.bytes
            total.outcomes += verdict.outcomes
            if verdict.faults:
                failed += 1
                sys.stdout.write(f"seed {verdict.seed}: " + "; ".join(verdict.faults) + "\n")
    if options.dialogue:
        for seed in seeds:
            sys.stdout.write("\n".join(run(seed, record=True).dialogue) + "\n")
    elapsed = time.monotonic() - began
    sys.stdout.write(
        f"{len(seeds)} seeds, {total.sessions} sessions, {total.bytes} bytes, "
        f"changes {dict(sorted(total.outcomes.items()))}, {failed} failed, {len(seeds) / elapsed:.1f} seeds/s\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
