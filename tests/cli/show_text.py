"""What a picture looks like as text, at a fixed size."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def text_of(picture: RenderableType, width: int = 120, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, height=height or 25, markup=False, highlight=False)
    console.print(picture, height=height)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
