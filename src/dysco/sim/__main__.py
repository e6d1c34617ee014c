"""`python -m dysco.sim`: run scenarios by seed, say how fast, and show the dialogue of one that fails."""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Final

from dysco.sim import deaths, proxied, scenario
from dysco.sim.scenario import Verdict

_BATCH: Final = 64
_SHOWN: Final = 400
"""Lines of a failed seed's dialogue that are shown, the last ones; the command that is printed shows all."""
_GARBAGE: Final = 50_000
"""Objects between two looks for garbage: a scenario is thrown away whole, looking for parts of it costs a tenth."""


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
    parser.add_argument(
        "--of",
        metavar="TEXT",
        help="with --fresh: those that belong to a text, such as the id of a commit's tree; the same text has the same",
    )
    parser.add_argument("--seconds", type=float, help="begin no more seeds after this time")
    parser.add_argument("--dialogue", action="store_true", help="print every packet and message of the seeds")
    parser.add_argument("--proxy", action="store_true", help="scenarios with a proxy that is taken out")
    parser.add_argument(
        "--dead-proxy", action="store_true", help="scenarios with a proxy whose host dies meanwhile"
    )
    parser.add_argument(
        "--calm", action="store_true", help="no host moves or dies, as else in two seeds of five"
    )
    parser.add_argument(
        "--mixed", action="store_true", help="one scenario in eight with a proxy that is taken out"
    )
    options = parser.parse_args()
    chosen = next((one for one in KINDS if one and getattr(options, one.replace("-", "_"))), "")
    run = mixed if options.mixed else KINDS[chosen]
    first, separator, last = options.seeds.partition(":")
    try:
        seeds = range(int(first), int(last) if separator else int(first) + 1)
    except ValueError:
        parser.error(f"--seeds: {options.seeds!r} is not FIRST:END")
    if options.fresh is not None:
        first = first_of(options.of) if options.of else time.time_ns() // 1_000_000
        seeds = range(first, first + options.fresh)
        sys.stdout.write(f"seeds {first}:{first + options.fresh}\n")
        sys.stdout.flush()
    began = time.monotonic()
    failed = ran = 0
    total = Verdict(-1)
    with ProcessPoolExecutor(options.jobs, initializer=gc.set_threshold, initargs=(_GARBAGE,)) as pool:
        for verdict in in_time(pool, partial(judged, run), seeds, options.seconds):
            ran += 1
            total.sessions += verdict.sessions
            total.completed += verdict.completed
            total.bytes += verdict.bytes
            total.outcomes += verdict.outcomes
            if verdict.faults:
                failed += 1
                kind = kind_of(verdict.seed) if options.mixed else chosen
                show(verdict, judged(run, verdict.seed, record=True).dialogue, kind)
    if options.dialogue:
        for seed in seeds:
            sys.stdout.write("\n".join(run(seed, record=True).dialogue) + "\n")
    elapsed = time.monotonic() - began
    sys.stdout.write(
        f"{ran} seeds, {total.sessions} sessions, {total.bytes} bytes, "
        f"changes {dict(sorted(total.outcomes.items()))}, {failed} failed, {ran / elapsed:.1f} seeds/s\n"
    )
    return 1 if failed else 0


KINDS: Final[dict[str, Callable[..., Verdict]]] = {
    "dead-proxy": deaths.run,
    "proxy": proxied.run,
    "calm": partial(scenario.run, restless=False),
    "": scenario.run,
}
"""Scenarios by the option that asks for them."""


def kind_of(seed: int) -> str:
    """Of what kind a seed is among others."""
    return "proxy" if seed % 8 == 0 else ""


def mixed(seed: int, *, record: bool = False) -> Verdict:
    """Run a seed as what it is among others."""
    return KINDS[kind_of(seed)](seed, record=record)


def judged(run: Callable[..., Verdict], seed: int, *, record: bool = False) -> Verdict:
    """The verdict of a seed; a defect that ends it is one of its faults, with its place."""
    try:
        return run(seed, record=record)
    except Exception:
        verdict = Verdict(seed)
        verdict.faults.append(traceback.format_exc())
        return verdict


def first_of(text: str) -> int:
    """The first of the seeds that belong to a text: what fails once for it fails again."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def show(verdict: Verdict, dialogue: list[str], kind: str = "") -> None:
    """Print a seed that failed: what is wrong, how to run it again, what was said."""
    replay = f"python -m dysco.sim --seeds {verdict.seed} --dialogue" + f" --{kind}" * bool(kind)
    lines = [f"seed {verdict.seed}: {'; '.join(verdict.faults)}", f"  again: {replay}"]
    if len(dialogue) > _SHOWN:
        lines.append(f"  ({len(dialogue) - _SHOWN} lines before these)")
    lines += [f"  {line}" for line in dialogue[-_SHOWN:]]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


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
