"""Commands that need no agent: check a file, explain a session, tell the version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dysco.cli.options import JsonOption, socket_of
from dysco.cli.output import print_json, say
from dysco.errors import ConfigError, ExitStatus, WireError


def check(
    file: Annotated[Path, typer.Argument(help="The host.toml to judge.")],
    as_json: JsonOption = False,
) -> None:
    """Judge a host.toml. Every error with its line, all at once."""
    from dysco import config

    loaded, findings = config.check(file)
    if as_json:
        print_json({"ok": loaded is not None, "findings": [_finding(one) for one in findings]})
        raise typer.Exit(ExitStatus.DONE if loaded is not None else ExitStatus.USAGE)
    if loaded is None:
        raise config.ConfigErrors(findings)
    for warning in findings:
        say(str(warning))
    say(
        f"{file}: good: agent {loaded.agent.name}, {_count(len(loaded.peer), 'peer')}, "
        f"{_count(len(loaded.box), 'box', 'boxes')}, {_count(len(loaded.policy), 'policy', 'policies')}"
    )


def explain(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="Such as 'tcp 10.0.0.1:1234 > 10.0.0.9:80'.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Judge by this file. Default: ask the running agent."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a session would go, and why. Which policy takes it, and why not the others."""
    from dysco.wire.tuples import FiveTuple

    try:
        parsed = FiveTuple.parse(session)
    except WireError as error:
        raise ConfigError(str(error)) from None
    if config is None:
        from dysco.cli import fetch

        answer = fetch.ask(socket_of(context), lambda agent: agent.explain(str(parsed)))
        if as_json:
            print_json(answer)
        else:
            say(answer.text)
        return
    from dysco.config import load, policy_set, proxy_rules

    loaded = load(config)
    explanation, rules = policy_set(loaded).explain(parsed), proxy_rules(loaded, parsed)
    if as_json:
        print_json({**explanation.as_json(), "proxies": [rule.as_json() for rule in rules]})
    else:
        say("\n".join([explanation.as_text(), *(f"proxy    {rule}" for rule in rules)]))


def version(as_json: JsonOption = False) -> None:
    """Print the version of dysco."""
    import platform
    from importlib.metadata import version as of

    value = {"dysco": of("dysco"), "python": platform.python_version(), "kernel": platform.release()}
    if as_json:
        print_json(value)
    else:
        say(f"dysco {value['dysco']} (Python {value['python']}, kernel {value['kernel']})")


def _finding(finding: Any) -> dict[str, Any]:
    return {
        "file": finding.file,
        "line": finding.position.line,
        "column": finding.position.column,
        "key": finding.key,
        "message": finding.message,
        "severity": finding.severity,
    }


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
