"""`dysco keys`: make the private CA, issue agents' certificates, show what a certificate says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dysco.cli.options import JsonOption
from dysco.cli.output import print_json, say

app = typer.Typer(no_args_is_help=True)

DIRECTORY: Final = Path("keys")

DirectoryOption = Annotated[
    Path,
    typer.Option(
        "--directory", "--dir", "-d", help="Directory of the CA; its private key never needs to leave it."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@app.command("init")
def init(
    directory: DirectoryOption = DIRECTORY,
    days: Annotated[int, typer.Option(help="How long the CA is valid.", min=1)] = 3650,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a CA: ca.pem, for every agent, and ca.key, to be kept safe."""
    from dysco.transport import keys

    made = keys.init(directory, days=days, force=force)
    say(f"wrote {made.certificate} (for every agent) and {made.key} (keep it safe)", as_json)
    say(f"fingerprint {made.fingerprint}", as_json)
    if as_json:
        print_json(_paths(made))


@app.command("issue")
def issue(
    name: Annotated[str, typer.Argument(help="The agent's name, as in its host.toml.")],
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Its addresses; they are only noted.", show_default=False)
    ] = None,
    directory: DirectoryOption = DIRECTORY,
    days: Annotated[int, typer.Option(help="How long the certificate is valid.", min=1)] = 825,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key and a certificate for an agent: NAME.pem and NAME.key."""
    from dysco.transport import keys

    made = keys.issue(directory, name, addresses or (), days=days, force=force)
    say(f"wrote {made.certificate} and {made.key}; {name} needs them and {made.ca}", as_json)
    say(f"fingerprint {made.fingerprint}", as_json)
    if as_json:
        print_json(_paths(made))


@app.command("show")
def show(
    files: Annotated[list[Path], typer.Argument(help="Certificates in PEM format.")],
    as_json: JsonOption = False,
) -> None:
    """Show whose a certificate is, until when it is valid, and its fingerprint for `[[peer]]`."""
    import datetime

    from dysco.cli.render import clean
    from dysco.transport import keys

    now = datetime.datetime.now(datetime.UTC)
    found = [keys.show(file) for file in files]
    if as_json:
        print_json([_shown(one, now) for one in found])
        return
    for one in found:
        valid = "" if one.valid_at(now) else "  NOT VALID NOW"
        say(f"{one.path}: {one.kind} {clean(one.name or '(no name)')}")
        say(f"  issuer       {clean(one.issuer)}")
        say(f"  valid        {one.valid_from:%Y-%m-%d} to {one.valid_until:%Y-%m-%d}{valid}")
        say(f"  fingerprint  {one.fingerprint}")
        if one.addresses:
            say(f"  addresses    {', '.join(one.addresses)}")


def _paths(made: Any) -> dict[str, str]:
    return {
        "certificate": str(made.certificate),
        "key": str(made.key),
        "ca": str(made.ca),
        "fingerprint": made.fingerprint,
    }


def _shown(one: Any, now: Any) -> dict[str, Any]:
    return {
        "path": str(one.path),
        "kind": one.kind,
        "name": one.name,
        "issuer": one.issuer,
        "fingerprint": one.fingerprint,
        "valid_from": one.valid_from.isoformat(),
        "valid_until": one.valid_until.isoformat(),
        "valid_now": one.valid_at(now),
        "addresses": list(one.addresses),
    }
