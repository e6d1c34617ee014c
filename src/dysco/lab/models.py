"""lab-*.toml as pydantic models: nodes, links, programs; and the one function that reads such a file.

Knows what one value may be. Addresses and routes are computed in topology.py, what an agent's host.toml
becomes in hosts.py. Strings may hold placeholders (`${server.ipv4}`), which hosts.py fills in.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dysco.errors import ConfigError, PermissionDeniedError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,13}")
MAX_NODES: Final = 120  # last parts of addresses: hosts count up from 1, routers down from 254


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r}: 1 to 14 small letters, digits and '-', not beginning with '-'")
    return value


Name = Annotated[str, AfterValidator(_name)]
Argv = Annotated[list[str], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: frozen, strict, no key that is not declared."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Settings(Section):
    """The lab as a whole.

    `emulator`: netem where the kernel has it, else dysco's own; or one of them. `mode`: who moves packets, for agents
    whose `[dataplane]` does not say it.
    """

    name: Name
    about: str = ""
    ipv6: bool = True
    seed: int = 1
    emulator: Literal["auto", "netem", "own"] = "auto"
    mode: Literal["auto", "ebpf", "tun"] | None = None


class Program(Section):
    """A program that runs on a host while the lab is up; `listen` names TCP ports to wait for."""

    name: Name
    argv: Argv
    listen: list[Annotated[int, Field(ge=1, le=65535)]] = []


class Host(Section):
    """A host. `config` is a host.toml or its tables; what it does not say, the lab fills in.

    `files` are written to the host's directory first, `copy` (paths from the lab's file) copied there; then
    the commands of `setup` run, each to its end; then the agent starts, then the programs.
    """

    name: Name
    agent: bool = True
    forward: bool = False
    namespaces: list[Name] = []
    config: str | dict[str, Any] = {}
    files: dict[str, str] = {}
    copies: Annotated[list[str], Field(alias="copy")] = []
    setup: list[Argv] = []
    program: list[Program] = []


class Middle(Section):
    """A router or a bridge between hosts."""

    name: Name


class Link(Section):
    """A link between two nodes. Times in milliseconds, rate in Mbit/s, shares from 0 to 1, both ways alike.

    `seed` makes the decisions of dysco's own emulator repeatable; without it they come from the lab's seed.
    """

    between: Annotated[list[Name], Field(min_length=2, max_length=2)]
    mtu: Annotated[int, Field(ge=576, le=65521)] = 1500
    delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    jitter_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    loss: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    rate_mbit: Annotated[float, Field(gt=0)] | None = None
    queue: Annotated[int, Field(ge=1, le=100_000)] = 1000
    seed: int | None = None

    @property
    def emulated(self) -> bool:
        """Whether packets need more than a cable."""
        return bool(
            self.delay_ms or self.jitter_ms or self.loss or self.duplicate or self.reorder or self.rate_mbit
        )


class LabFile(Section):
    """A whole file. A host without a link gets one to the first router, which is there if none is named."""

    lab: Settings
    host: Annotated[list[Host], Field(min_length=1)]
    router: list[Middle] = []
    bridge: list[Middle] = []
    link: list[Link] = []

    @model_validator(mode="after")
    def _together(self) -> LabFile:
        names = [host.name for host in self.host] + [middle.name for middle in (*self.router, *self.bridge)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two nodes are called {name!r}")
        if len(names) > MAX_NODES:
            raise ValueError(f"{len(names)} nodes: at most {MAX_NODES}")
        known = {*names, *(() if self.router else (DEFAULT_ROUTER,))}
        for link in self.link:
            for end in link.between:
                if end not in known:
                    raise ValueError(f"link between {' and '.join(link.between)}: there is no node {end!r}")
            if link.between[0] == link.between[1]:
                raise ValueError(f"link from {link.between[0]} to itself")
        return self


DEFAULT_ROUTER: Final = "router"


def read(path: Path) -> LabFile:
    """Read a lab's file. Raises ConfigError with all findings, PermissionDeniedError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise PermissionDeniedError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return LabFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_finding(path, one) for one in error.errors())) from None


def _finding(path: Path, error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {place}: {message}" if place else f"{path}: {message}"
