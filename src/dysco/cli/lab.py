"""`dysco lab`: testbeds of network namespaces from a file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from dysco.cli.options import JsonOption
from dysco.cli.output import print_json, say
from dysco.errors import ConfigError

app = typer.Typer(no_args_is_help=True)

LabFile = Annotated[Path, typer.Argument(help="The lab's file.", show_default=False)]


@app.command()
def up(
    file: LabFile,
    agents: Annotated[bool, typer.Option(help="Start the agents.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Build the lab, start its agents and programs; return when all of them are up."""
    from dysco.lab import load

    lab = load(file)
    lab.up(agents=agents)
    if as_json:
        print_json(lab.status())
    else:
        say(f"lab {lab.name} is up; dysco lab exec {file} HOST COMMAND runs a command in it")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec(
    file: LabFile,
    node: Annotated[str, typer.Argument(help="A host or router of the lab.")],
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
) -> int:
    """Run a command on a host of the lab; its exit status is this command's."""
    from dysco.lab import load

    # `--` before the command says that options are the command's own, which they are anyway.
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise ConfigError(f"no command for {node}")
    return subprocess.run(load(file).command(node, words), check=False).returncode


@app.command()
def status(file: LabFile, as_json: JsonOption = False) -> None:
    """Say what there is of the lab: nodes, addresses, sockets, processes."""
    from dysco.lab import load

    found = load(file).status()
    if as_json:
        print_json(found)
        return
    say(f"lab {found['name']} is {found['state']}")
    for node in found["nodes"]:
        said = (f"{key}={_short(value)}" for key, value in node.items() if value not in (None, [], {}))
        say("  " + "  ".join(said))


@app.command()
def graph(file: LabFile, as_json: JsonOption = False) -> None:
    """Draw the lab and the chains that its policies name."""
    from dysco.lab import load

    lab = load(file)
    if as_json:
        print_json({"name": lab.name, "graph": lab.graph()})
    else:
        say(lab.graph())


@app.command()
def down(file: LabFile, as_json: JsonOption = False) -> None:
    """End everything of the lab and delete it; also after a crash."""
    from dysco.lab import load

    lab = load(file)
    lab.down()
    if as_json:
        print_json(lab.status())
    else:
        say(f"lab {lab.name} is down")


def _short(value: object) -> str:
    if isinstance(value, dict) and value.keys() == {"pid", "name"}:
        return f"{value['name']}({value['pid']})"
    return ",".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)
