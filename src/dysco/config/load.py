"""From a file to a HostConfig, or to everything that is wrong with the file. Nothing in between."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from dysco.config.checks import problems
from dysco.config.findings import ConfigErrors, Finding, from_pydantic, key_name, position_of
from dysco.config.models import HostConfig, Proxy
from dysco.config.positions import Position, locate

# Bytes; ours: far above any real file, far below what would stall the agent on a reload.
_SIZE_LIMIT = 1 << 20
_DOTS_LIMIT = 6000  # in one line; ours: the time that tomllib takes for a dotted key grows with their square
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_FILE_KEYS: tuple[tuple[str, str], ...] = (
    ("agent", "run_directory"),
    ("agent", "socket"),
    ("keys", "ca"),
    ("keys", "certificate"),
    ("keys", "key"),
)

_PROXY_FILES = ("socket", "log", "pid_file")


def load(path: str | FilePath) -> HostConfig:
    """Read a host.toml; relative paths in it begin at the file. Raises ConfigErrors with all findings."""
    config, findings = check(path)
    if config is None:
        raise ConfigErrors(findings)
    return config


def check(path: str | FilePath) -> tuple[HostConfig | None, list[Finding]]:
    """Read a host.toml; give it (None if it is refused) and all findings, warnings too. Raises nothing."""
    file = FilePath(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(_SIZE_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return None, [Finding(Position(1, 1), "", f"cannot be read: {reason}", str(path))]
    return check_bytes(data, str(path), file.parent)


def check_bytes(data: bytes, name: str, directory: FilePath) -> tuple[HostConfig | None, list[Finding]]:
    """Do as `check` for bytes already read; `name` stands in findings, relative paths begin in `directory`"""

    def refuse(position: Position, message: str) -> tuple[None, list[Finding]]:
        return None, [Finding(position, "", message, name)]

    if len(data) > _SIZE_LIMIT:
        return refuse(Position(1, 1), f"is larger than {_SIZE_LIMIT >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        good = data[: error.start].decode()
        line = good.count("\n") + 1
        column = len(good) - good.rfind("\n")
        return refuse(Position(line, column), f"byte {data[error.start]:#04x} is not UTF-8")
    for number, row in enumerate(text.split("\n"), 1):
        if row.count(".") > _DOTS_LIMIT and not row.lstrip().startswith("#"):
            return refuse(Position(number, 1), f"a line with more than {_DOTS_LIMIT} dots")
    try:
        document = tomllib.loads(text)
        places = locate(text)
    except RecursionError:
        return refuse(Position(1, 1), "is nested too deeply")
    except tomllib.TOMLDecodeError as error:
        return refuse(*_toml_error(str(error), text))
    except ValueError as error:  # such as an integer with more digits than Python converts
        return refuse(Position(1, 1), str(error))
    found, config = _judge(document, directory)
    findings = [
        Finding(position_of(path, places), key_name(path, document), message, name, severity)
        for path, message, severity in found
    ]
    return config, sorted(findings)


def _judge(document: dict[str, Any], directory: FilePath) -> tuple[list[Any], HostConfig | None]:
    try:
        config = HostConfig.model_validate(document)
    except ValidationError as error:
        return [
            (path, message, "error") for path, message in from_pydantic(error, HostConfig, document)
        ], None
    found = list(problems(config))
    if any(severity == "error" for _, _, severity in found):
        return found, None
    return found, _resolve(config, directory)


def _resolve(config: HostConfig, directory: FilePath) -> HostConfig:
    """Make relative paths absolute, from the directory of the file."""
    base = directory.absolute()
    sections: dict[str, dict[str, FilePath]] = {}
    for section, key in _FILE_KEYS:
        value = getattr(getattr(config, section), key)
        if value is not None:
            sections.setdefault(section, {})[key] = base / value
    changes: dict[str, Any] = {
        section: getattr(config, section).model_copy(update=values) for section, values in sections.items()
    }
    boxes = tuple(
        box if box.python is None else box.model_copy(update={"python": _class(box.python, base)})
        for box in config.box
    )
    return config.model_copy(
        update={**changes, "box": boxes, "proxy": tuple(_proxy(one, base) for one in config.proxy)}
    )


def _proxy(proxy: Proxy, base: FilePath) -> Proxy:
    paths = {key: value for key in _PROXY_FILES if (value := getattr(proxy, key)) is not None}
    files = {key: base / value for key, value in paths.items()}
    return proxy.model_copy(update={**files, "adapter": _class(proxy.adapter, base)})


def _class(reference: str, base: FilePath) -> str:
    """Name a class whose file, if it has one, is found from anywhere."""
    source, _, name = reference.rpartition(":")
    return f"{base / source}:{name}" if source.endswith(".py") else reference


def _toml_error(message: str, text: str) -> tuple[Position, str]:
    match = _TOML_PLACE.search(message)
    sentence = _TOML_PLACE.sub("", message)
    sentence = sentence[:1].lower() + sentence[1:] if not sentence.startswith("TOML") else sentence
    if match is None or match.group(1) is None:
        return Position(
            text.count("\n") + 1, len(text) - text.rfind("\n")
        ), f"{sentence} at the end of the file"
    return Position(int(match.group(1)), int(match.group(2))), sentence
