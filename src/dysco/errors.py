"""The errors that dysco raises on purpose, and the exit status each of them means.

Every public function names which of these it raises. Anything else that escapes is a defect of dysco.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the `dysco` command returns to the shell."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_AGENT = 3
    PERMISSION = 4
    REFUSED = 5
    TIMED_OUT = 6


class DyscoError(Exception):
    """Base of all errors of dysco."""

    exit_status = ExitStatus.FAILED


class ConfigError(DyscoError):
    """The configuration or the command line is wrong; the message names file, line, column, key and value."""

    exit_status = ExitStatus.USAGE


class LocalError(DyscoError):
    """The caller misused the API, or named something that does not exist here."""


class NoAgentError(LocalError):
    """No agent answers at the control socket."""

    exit_status = ExitStatus.NO_AGENT


class RemoteError(DyscoError):
    """A peer refused or broke the protocol; the message names the peer and its reason."""

    exit_status = ExitStatus.REFUSED


class TimedOutError(RemoteError):
    """A peer did not answer in time."""

    exit_status = ExitStatus.TIMED_OUT


class HostError(DyscoError):
    """The kernel refused a change; the message names the change and the remedy."""


class PermissionDeniedError(HostError):
    """A capability is missing (CAP_NET_ADMIN, CAP_BPF) or a file may not be read."""

    exit_status = ExitStatus.PERMISSION


class WireError(DyscoError):
    """Bytes from the network do not decode; always counted, never fatal."""
