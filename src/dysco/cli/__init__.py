"""What a person sees: the `dysco` command, its tables and drawings, and the dashboard.

Knows how to ask (through `dysco.client`), how to show, and which exit status an error has; knows nothing of
sockets, packets or how the agent works. Imports are made where they are needed: `dysco --help` is to be there
at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the process ends with an `ExitStatus`."""
    from dysco.cli.app import run

    sys.exit(run(sys.argv[1:]))
