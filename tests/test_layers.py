"""The law of imports: who may know whom, what the pure layers may not know, and what nobody may write.

It reads the sources with `ast` and runs none of them. Layers point down only; a module that breaks this is
named with its line.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

SOURCE: Final = Path(__file__).resolve().parent.parent / "src"

# A room may import from the rooms named, and from itself. `dysco` is the package's own page of public names.
_BOTTOM: Final = {"errors", "wire"}
_CONFIG: Final = _BOTTOM | {"policy", "config"}
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "errors": set(),
    "wire": {"errors"},
    "protocol": _BOTTOM,
    "policy": _CONFIG | {"protocol"},
    "config": _BOTTOM | {"policy"},
    "dataplane": _CONFIG | {"protocol"},
    "transport": _CONFIG | {"protocol"},
    "host": _CONFIG | {"protocol", "dataplane"},
    "adapters": _CONFIG,
    "sim": _BOTTOM | {"protocol"},
    "middlebox": _BOTTOM,
    "views": {"errors"},
    "service": _CONFIG | {"protocol", "dataplane", "transport", "host", "adapters", "middlebox", "views"},
    "chains": {"errors", "views"},
    "client": _BOTTOM | {"views", "chains"},
    "lab": _CONFIG | {"client", "host", "transport"},
    "cli": _CONFIG | {"chains", "client", "views", "host", "transport", "lab", "service"},
    "dysco": {"errors", "adapters", "chains", "client", "middlebox", "service", "wire"},
}

# Who asks a running agent asks through the client. Only the command that becomes the agent starts one, and the process
# that has imported it for those that become one.
STARTS_AN_AGENT: Final = {"dysco.cli.tun", "dysco.cli.nursery"}

PURE: Final = {"wire", "protocol"}
IMPURE_MODULES: Final = {
    "asyncio",
    "time",
    "random",
    "secrets",
    "socket",
    "os",
    "pydantic",
    "threading",
    "subprocess",
}

BANNED_CALLS: Final = {
    "asyncio.create_task": "spawn through a task group, so that a failure is seen",
    "asyncio.ensure_future": "spawn through a task group, so that a failure is seen",
    "time.time": "monotonic time only",
    "os.system": "no shell",
    "os.popen": "no shell",
    "subprocess.getoutput": "no shell",
    "asyncio.create_subprocess_shell": "no shell",
}


class Import(NamedTuple):
    target: str
    line: int
    at_import: bool  # false inside a function and under TYPE_CHECKING


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


MODULES: Final = modules()


def imports(tree: ast.Module) -> Iterator[Import]:
    """Every import of a module; of `from a import b` both a and a.b, of which only modules count later."""
    yield from _imports(tree, at_import=True)


def _imports(node: ast.AST, *, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                yield from (Import(alias.name, child.lineno, at_import) for alias in child.names)
            case ast.ImportFrom():
                base = child.module or ""
                yield Import(base, child.lineno, at_import)
                yield from (Import(f"{base}.{alias.name}", child.lineno, at_import) for alias in child.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, at_import=False)
            case ast.If() if "TYPE_CHECKING" in ast.unparse(child.test):
                yield from _imports(child, at_import=False)
            case _:
                yield from _imports(child, at_import=at_import)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "dysco"


def own_imports(name: str) -> Iterator[Import]:
    """Imports of modules of dysco, the most precise name of each."""
    found = [entry for entry in imports(MODULES[name]) if entry.target in MODULES]
    for entry in found:
        longer = (o for o in found if o.line == entry.line and o.target.startswith(entry.target + "."))
        if not any(longer):
            yield entry


def test_every_room_has_a_layer() -> None:
    assert {room(name) for name in MODULES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    allowed = MAY_IMPORT[room(name)] | {room(name)}
    wrong = [
        f"{name}:{entry.line} imports {entry.target}"
        for entry in own_imports(name)
        if room(entry.target) not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in PURE])
def test_pure_layers_know_no_world(name: str) -> None:
    wrong = [
        f"{name}:{entry.line} imports {entry.target}"
        for entry in imports(MODULES[name])
        if entry.target.split(".")[0] in IMPURE_MODULES
    ]
    assert not wrong


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) in {"cli", "lab"}])
def test_a_running_agent_is_reached_through_the_client(name: str) -> None:
    wrong = [
        f"{name}:{entry.line} imports {entry.target}"
        for entry in own_imports(name)
        if room(entry.target) == "service" and name not in STARTS_AN_AGENT
    ]
    assert not wrong


def test_modules_import_each_other_in_no_circle() -> None:
    edges = {
        name: {entry.target for entry in own_imports(name) if entry.at_import and entry.target != name}
        for name in MODULES
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "circle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in MODULES:
        walk(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_banned(name: str) -> None:
    wrong = []
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BANNED_CALLS:
                wrong.append(f"{name}:{node.lineno} {called}: {BANNED_CALLS[called]}")
            if called == "print" and room(name) != "cli" and not name.endswith("__main__"):
                wrong.append(f"{name}:{node.lineno} print: only the command line speaks to people")
            for keyword in node.keywords:
                if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                    wrong.append(f"{name}:{node.lineno} shell=: no shell")
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            wrong += [f"{name}:{node.lineno} {n}: {BANNED_CALLS[n]}" for n in names if n in BANNED_CALLS]
            if node.level:
                wrong.append(f"{name}:{node.lineno} relative import")
    assert not wrong


@pytest.mark.parametrize("name", [name for name, tree in MODULES.items() if tree.body])
def test_every_module_says_what_it_knows(name: str) -> None:
    assert ast.get_docstring(MODULES[name]), f"{name} has no docstring"


def test_this_judge_sees_imports_at_all() -> None:
    tree = ast.parse("def f():\n    from dysco.wire import tuples\nimport asyncio.events\n")
    assert list(imports(tree)) == [
        Import("dysco.wire", 2, False),
        Import("dysco.wire.tuples", 2, False),
        Import("asyncio.events", 3, True),
    ]
