"""`tools/mutations`: put one defect at a time into a copy of the protocol, and see who notices.

The ladder, cheapest first: the tests nearest to the file; all tests of the protocol; the exhaustive checker; the
simulator. A defect is caught by the first that fails. Who does not end in time has caught nothing: that is shown and
somebody must look. Exit status 1 if less than 95 of 100 are caught, 2 if one does not fit the code any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutants.catalogue import MUTATIONS, Mutation

ROOT: Final = Path(__file__).resolve().parents[2]
LEAST: Final = 0.95
PATIENCE_S: Final = 600
CHECKED: Final = ("one", "insert", "same-2", "nested-3", "overlapping-4")


NEAREST: Final = {
    "protocol/locks.py": ("protocol/test_locks.py", "protocol/test_guards.py"),
    "protocol/paths.py": ("protocol/test_paths.py",),
    "protocol/chain.py": ("protocol/test_paths.py", "protocol/test_guards.py"),
    "wire/edit.py": ("wire/test_edit.py", "protocol/test_paths.py"),
}
NEAREST_TO_OTHERS: Final = (
    "protocol/test_locks.py",
    "protocol/test_guards.py",
    "protocol/test_joining.py",
    "protocol/test_moves.py",
)
RUNGS: Final = ("nearest tests", "tests", "checker", "checker with a fault", "simulator")


def pytest(*tests: str) -> tuple[str, ...]:
    """The command that runs tests, by their paths below tests/, up to the first that fails."""
    paths = (str(ROOT / "tests" / test) for test in tests)
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *paths)


def ladder(file: str, seeds: str) -> dict[str, tuple[str, ...]]:
    """Who looks at a defect in a file, and the command of each; without the name of the interpreter."""
    check = ("-m", "dysco.sim.check", *CHECKED)
    fault = ("--slack", "0", "--faults", "1", "--kinds", "lose,repeat,overtake,early", "--first")
    commands = (
        pytest(*NEAREST.get(file, NEAREST_TO_OTHERS)),
        pytest("protocol"),
        (*check, "--slack", "1", "--data", "3", "--first"),
        (*check, *fault),
        ("-m", "dysco.sim", "--seeds", seeds, "--jobs", "1"),
    )
    return dict(zip(RUNGS, commands, strict=True))


def misfits() -> list[str]:
    """What does not fit the code, or is there twice."""
    found = [
        one.name for one in MUTATIONS if (ROOT / "src/dysco" / one.file).read_text().count(one.text) != 1
    ]
    names = [one.name for one in MUTATIONS]
    return found + [f"{name}: there twice" for name in set(names) if names.count(name) > 1]


def caught_by(mutation: Mutation | None, rungs: Sequence[str], seeds: str) -> tuple[str, list[str]]:
    """Who notices a defect first (empty if nobody does), and who did not end. None: no defect, nobody must object."""
    late: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            file = source / "dysco" / mutation.file
            file.write_text(file.read_text().replace(mutation.text, mutation.instead))
        path = os.pathsep.join((str(source), str(ROOT / "tests")))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        commands = ladder(mutation.file if mutation is not None else "", seeds)
        for who in rungs:
            try:
                done = subprocess.run(
                    (sys.executable, *commands[who]),
                    cwd=place, env=environment, capture_output=True, timeout=PATIENCE_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                late.append(who)
                continue
            if done.returncode:
                return who if done.returncode == 1 else f"{who} (exit status {done.returncode})", late
    return "", late


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="tools/mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of those to try (default: all)")
    parser.add_argument("--fit", action="store_true", help="only see whether all fit the code")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th of them, from the N-th on")
    parser.add_argument("--seeds", default="0:200", help="of the simulator (default %(default)s)")
    parser.add_argument(
        "--rungs", default=",".join(RUNGS), help="who is asked, with commas between (default: %(default)s)"
    )
    options = parser.parse_args()
    rungs = options.rungs.split(",")
    if unknown := [who for who in rungs if who not in RUNGS]:
        parser.error(f"no such rung: {', '.join(unknown)}")
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
    objection, late = caught_by(None, rungs, options.seeds)
    if objection or late:
        print(
            f"without any defect, these object already or do not end: {', '.join(filter(None, (objection, *late)))}"
        )
        return 2
    caught = 0
    for number, mutation in enumerate(chosen, 1):
        who, late = caught_by(mutation, rungs, options.seeds)
        caught += bool(who)
        unended = f"; LOOK, never ended: {', '.join(late)}" if late else ""
        print(
            f"{number:3}/{len(chosen)} {mutation.name} ({mutation.file}): {who or 'SURVIVED'}{unended}",
            flush=True,
        )
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught >= LEAST * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
