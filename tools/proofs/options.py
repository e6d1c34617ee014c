"""The command line of the proofs that have rows: which of them, on what, how large."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable


def rows(prog: str, about: str | None, names: Iterable[str]) -> argparse.Namespace:
    """Read it: rows, quick, mode, family and prefix; ends with status 2 if a row is none of `names`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(names)
    parser.add_argument("rows", nargs="*", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="the same, smaller")
    parser.add_argument(
        "--mode", action="append", choices=("ebpf", "tun"), help="who moves packets (default: both)"
    )
    parser.add_argument("--family", action="append", type=int, choices=(4, 6), help="(default: both)")
    parser.add_argument("--prefix", default=f"prove{os.getpid()}", help="of the names of namespaces")
    options = parser.parse_args()
    for name in options.rows:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    options.rows = [name for name in known if not options.rows or name in options.rows]
    options.mode = options.mode or ["ebpf", "tun"]
    options.family = options.family or [4, 6]
    return options
