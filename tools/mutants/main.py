"""`tools/mutations`: put one defect at a time into a copy of the protocol, and see who notices.

The ladder, cheapest first: tests of locks, tables and paths; the exhaustive checker; the simulator. A defect is caught
by the first that fails. Exit status 1 if less than 95 of 100 are caught, 2 if one does not fit the code any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutants.catalogue import MUTATIONS, Mutation

ROOT: Final = Path(__file__).resolve().parents[2]
LEAST: Final = 0.95
PATIENCE_S: Final = 600
CHECKED: Final = ("one", "insert", "same-2", "nested-3", "overlapping-4")


def ladder(seeds: str) -> dict[str, tuple[str, ...]]:
    """Who looks, and the command of each; without the name of the interpreter."""
    tests = (str(ROOT / "tests/protocol" / name) for name in ("test_locks.py", "test_paths.py"))
    check = ("-m", "dysco.sim.check", *CHECKED)
    return {
        "tests": ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *tests),
        "checker": (*check, "--slack", "1", "--data", "3", "--first"),
        "checker with a fault": (
            *check,
            "--slack",
            "0",
            "--faults",
            "1",
            "--kinds",
            "lose,repeat,overtake,early",
            "--first",
        ),
        "simulator": ("-m", "dysco.sim", "--seeds", seeds, "--jobs", "1"),
    }


def misfits() -> list[str]:
    """What does not fit the code, or is there twice."""
    found = [
        one.name for one in MUTATIONS if (ROOT / "src/dysco" / one.file).read_text().count(one.text) != 1
    ]
    names = [one.name for one in MUTATIONS]
    return found + [f"{name}: there twice" for name in set(names) if names.count(name) > 1]


def caught_by(mutation: Mutation | None, seeds: str) -> str:
    """Who notices a defect first; empty if nobody does. None: no defect, nobody must object."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            file = source / "dysco" / mutation.file
            file.write_text(file.read_text().replace(mutation.text, mutation.instead))
        path = os.pathsep.join((str(source), str(ROOT / "tests")))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        for who, arguments in ladder(seeds).items():
            try:
                done = subprocess.run(
                    (sys.executable, *arguments),
                    cwd=place, env=environment, capture_output=True, timeout=PATIENCE_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"{who} (never ended)"
            if done.returncode:
                return who
    return ""


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="tools/mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of those to try (default: all)")
    parser.add_argument("--fit", action="store_true", help="only see whether all fit the code")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th of them, from the N-th on")
    parser.add_argument("--seeds", default="0:200", help="of the simulator (default %(default)s)")
    options = parser.parse_args()
    wrong = misfits()
    if wrong:
        print("\n".join(("These do not stand in the code exactly once:", *wrong)))
        return 2
    chosen = [
        one for one in MUTATIONS if not options.names or any(part in one.name for part in options.names)
    ]
    first, of = map(int, options.part.split("/"))
    chosen = chosen[first - 1 :: of]
    if options.fit:
        print(f"{len(chosen)} mutations fit")
        return 0
    objection = caught_by(None, options.seeds)
    if objection:
        print(f"without any defect, the {objection} object already")
        return 2
    caught = 0
    for number, mutation in enumerate(chosen, 1):
        who = caught_by(mutation, options.seeds)
        caught += bool(who)
        print(f"{number:3}/{len(chosen)} {mutation.name} ({mutation.file}): {who or 'SURVIVED'}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught >= LEAST * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
