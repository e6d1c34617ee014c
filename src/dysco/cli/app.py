"""The tree of commands, and the one place where an error becomes a message and an exit status.

A DyscoError is a sentence on stderr, never a traceback; with `--json` it is also an object on stdout. Any
other exception is a defect and is shown as one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Protocol, runtime_checkable

import typer

from dysco.cli import (
    doctor,
    drain,
    keys,
    lab,
    move,
    offline,
    options,
    proxy,
    reconfigure,
    show,
    splice,
    top,
    tun,
)
from dysco.errors import ConfigError, DyscoError, ExitStatus

_INTERRUPTED: Final = 130  # what shells give for SIGINT: 128 + 2


def build() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(
        name="dysco",
        help="Steer unmodified TCP sessions through chains of middleboxes.",
        epilog="Exit status: 0 done, 1 failed, 2 usage or configuration, 3 no agent, 4 permission, "
        "5 refused by a peer, 6 timed out.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_globals)
    app.add_typer(tun.app, name="tun", help="The agent of this host: start, stop, look.")
    app.command("check")(offline.check)
    app.command("doctor")(doctor.doctor)
    app.command("explain")(offline.explain)
    app.command("reload")(show.reload)
    app.command("sessions")(show.sessions)
    app.command("chains")(show.chains)
    app.add_typer(reconfigure.app, name="chain", help="Change the chains of live sessions.")
    app.command("splice")(splice.splice)
    app.add_typer(
        proxy.app, name="proxy", help="The proxies of this host, and taking them out of live sessions."
    )
    app.command("drain")(drain.drain)
    app.command("undrain")(drain.undrain)
    app.command("move")(move.move)
    app.command("peers")(show.peers)
    app.command("events")(show.events)
    app.command("metrics")(show.metrics)
    app.command("top")(top.top)
    app.add_typer(keys.app, name="keys", help="The private CA and the agents' certificates.")
    app.add_typer(lab.app, name="lab", help="Testbeds of network namespaces on this machine.")
    app.command("version")(offline.version)
    return app


def _globals(
    context: typer.Context,
    socket: Annotated[
        Path | None,
        typer.Option(
            envvar="DYSCO_SOCKET",
            help="Control socket of the agent to ask. Default: the only one in /run/dysco.",
        ),
    ] = None,
) -> None:
    """Steer unmodified TCP sessions through chains of middleboxes."""
    context.obj = options.Globals(socket)


@runtime_checkable
class _UsageError(Protocol):
    """What the parser of the command line raises, by whichever name its version has."""

    exit_code: int

    def format_message(self) -> str: ...

    def show(self) -> None: ...


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit status. Raises only what is a defect."""
    # What stands behind the host of `lab exec` is another command's.
    own = arguments[: arguments.index("exec")] if "exec" in arguments else arguments
    as_json = "--json" in own
    try:
        status = build()(args=list(arguments), prog_name="dysco", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else ExitStatus.DONE
    except DyscoError as error:
        return _report(error, as_json)
    except PermissionError as error:
        return _fail("PermissionError", _describe(error), ExitStatus.PERMISSION, as_json)
    except BrokenPipeError:
        sys.stdout = None  # or the interpreter's last flush complains
        return ExitStatus.FAILED
    except OSError as error:
        return _fail(type(error).__name__, _describe(error), ExitStatus.FAILED, as_json)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except typer.Abort:
        return _fail("Abort", "stopped", ExitStatus.FAILED, as_json)
    except Exception as error:
        if not isinstance(error, _UsageError):
            raise
        error.show()
        if as_json:
            _print_error(type(error).__name__, error.format_message(), ExitStatus.USAGE)
        return ExitStatus.USAGE


def _report(error: DyscoError, as_json: bool) -> int:
    findings = getattr(error, "findings", None)
    if isinstance(error, ConfigError) and findings:
        # Each line names file, line and column first, as compilers do, so that editors find the place.
        print(error, file=sys.stderr)
        if as_json:
            _print_error(type(error).__name__, str(error), error.exit_status)
        return error.exit_status
    return _fail(type(error).__name__, str(error), error.exit_status, as_json)


def _fail(kind: str, message: str, status: ExitStatus, as_json: bool) -> int:
    print(f"dysco: {message}", file=sys.stderr)
    if as_json:
        _print_error(kind, message, status)
    return status


def _print_error(kind: str, message: str, status: ExitStatus) -> None:
    print(json.dumps({"error": {"kind": kind, "message": message, "exit_status": int(status)}}))


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
