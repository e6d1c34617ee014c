"""Change the chains of real sessions on real kernels, and prove that nobody noticed. Needs root.

Of each act: every byte arrives (SHA-256), no reset is on any wire (tcpdump), and after a box is gone nothing of the
session passes its host (tcpdump). Prints a table; exit status 1 if anything is not as said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dysco.errors import DyscoError
from proofs import acts
from proofs.acts import Act, median_ms
from proofs.moves import move
from proofs.options import rows
from proofs.world import Disproved, World, world

ACTS = {**acts.ACTS, "move": Act("both hosts move during all of these", move, 1_000_000_000, 10_000_000)}
ROW = "{:<12} {:<5} {:<5} {:>7} {:>9} {:>6}  {}"


def main() -> int:
    """Run what the command line names."""
    options = rows("tools/prove", __doc__, ACTS)
    wanted = {name: ACTS[name] for name in options.rows}
    say(ROW.format("", "mode", "IPv", "changes", "p50 ms", "s", "") + "\n")
    bad = 0
    for mode in options.mode:
        for lossy in (False, True):
            some = {name: act for name, act in wanted.items() if act.lossy is lossy}
            if some:
                bad += run(some, mode, options, lossy=lossy)
    return 1 if bad else 0


def run(wanted: dict[str, Act], mode: str, options: argparse.Namespace, *, lossy: bool) -> int:
    """Run acts in one lab; how many have failed."""
    bad = 0
    with (
        tempfile.TemporaryDirectory(prefix="dysco-prove-") as directory,
        world(Path(directory), mode, options.prefix, lossy=lossy) as made,
    ):
        for family in options.family:
            for name, act in wanted.items():
                bad += not prove(made, name, act, family, quick=options.quick)
    return bad


def prove(made: World, name: str, act: Act, family: int, *, quick: bool) -> bool:
    """Run one act and print its line."""
    made.family = family
    made.times.clear()
    began = time.monotonic()
    try:
        with made.no_resets():
            said, well = act.run(made, act.quick if quick else act.full), True
    except (Disproved, DyscoError, OSError, subprocess.SubprocessError) as error:
        said, well = f"FAILED: {error}", False
    took = f"{time.monotonic() - began:.1f}"
    say(
        ROW.format(name, made.mode, family, len(made.times), f"{median_ms(made.times):.1f}", took, said)
        + "\n"
    )
    return well


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
