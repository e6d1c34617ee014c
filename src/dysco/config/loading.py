"""Classes of the user's that host.toml names as `module:Class` or `file.py:Class`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from dysco.errors import ConfigError


def instance(reference: str, where: str, *arguments: object) -> Any:
    """Make an object of the class that is named; raises ConfigError, which begins with `where`."""
    source, _, name = reference.rpartition(":")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            if spec is None or spec.loader is None:
                raise ImportError(f"{source} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        return getattr(module, name)(*arguments)
    except Exception as error:  # the file is the user's: whatever it raises is a fault of the configuration
        raise ConfigError(f"{where}: {reference} cannot be loaded: {error!r}") from error
