"""`python -m dysco.cli`: the same as the `dysco` command."""

from __future__ import annotations

from dysco.cli import main

main()
