"""How many of the branches of `wire` and `protocol` a run of tools/coverage has walked; status 1 below the floors."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from coverage import Coverage

# ours: percent of the branches; what no test walks is either untested or cannot be, and then it need not be there
FLOORS: Final = {"wire": 100.0, "protocol": 100.0}


def main() -> int:
    """Print a line for each package."""
    data = Coverage()
    data.load()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "report.json"
        data.json_report(outfile=str(path))
        files = json.loads(path.read_text())["files"]
    walked, of = Counter[str](), Counter[str]()
    for name, found in files.items():
        package = Path(name).parent.name
        walked[package] += found["summary"]["covered_branches"]
        of[package] += found["summary"]["num_branches"]
    fine = True
    for package, floor in FLOORS.items():
        percent = 100 * walked[package] / max(of[package], 1)
        fine = fine and percent >= floor
        sys.stdout.write(
            f"{package}: {walked[package]} of {of[package]} branches, {percent:.1f} % (at least {floor} %)\n"
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
