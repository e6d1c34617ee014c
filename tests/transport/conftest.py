"""Certificates for a handful of agents, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco.transport import keys


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA and certificates for a, b, c, d, e."""
    directory = tmp_path_factory.mktemp("pki")
    keys.init(directory)
    for name in "abcde":
        keys.issue(directory, name, ["127.0.0.1"])
    return directory
