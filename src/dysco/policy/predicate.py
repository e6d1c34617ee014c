"""From a tree to a fast test of five-tuples, and to the reason why one fails.

The test is one generated Python expression on the packed tuple: comparisons of slices and nothing else, so
that each SYN costs about a microsecond. Only numbers and bytes of the tree get into it.
"""

from __future__ import annotations

from collections.abc import Callable

from dysco.policy.ast import And, Ast, Everything, FamilyIs, Net, Node, Not, Or, Ports
from dysco.wire.tuples import IPV4_TUPLE_LEN, IPV6_TUPLE_LEN, FiveTuple

Predicate = Callable[[FiveTuple], bool]


def predicate(ast: Ast) -> Predicate:
    """Compile an expression to a function of a five-tuple."""
    return compile_node(ast.root)


def compile_node(node: Node) -> Predicate:
    """Compile a part of an expression."""
    made: Predicate = eval(
        compile(f"lambda t: {_source(node)}", "<match>", "eval"), {"__builtins__": {"len": len}}
    )
    return made


def failing(node: Node, session: FiveTuple) -> Node | None:
    """Find the smallest part that keeps the node from matching; None if it matches."""
    if compile_node(node)(session):
        return None
    if isinstance(node, And):
        return next(found for part in node.parts if (found := failing(part, session)) is not None)
    return node


def _source(node: Node) -> str:
    match node:
        case Everything():
            return "True"
        case FamilyIs():
            return f"len(t) == {IPV4_TUPLE_LEN if node.family == 4 else IPV6_TUPLE_LEN}"
        case Net():
            length = IPV4_TUPLE_LEN if node.family == 4 else IPV6_TUPLE_LEN
            size = len(node.prefix)
            test = _directed(node.direction, _prefix(node, 0), _prefix(node, size))
            return f"(len(t) == {length} and {test})"
        case Ports():
            return _directed(node.direction, _range(node, -4), _range(node, -2))
        case Not():
            return f"(not {_source(node.part)})"
        case And():
            return f"({' and '.join(map(_source, node.parts))})"
        case Or():
            return f"({' or '.join(map(_source, node.parts))})"


def _directed(direction: str, src: str, dst: str) -> str:
    match direction:
        case "src":
            return src
        case "dst":
            return dst
        case "either":
            return f"({src} or {dst})"
    return f"({src} and {dst})"


def _prefix(node: Net, at: int) -> str:
    whole, bits = divmod(node.length, 8)
    tests = []
    if whole:
        tests.append(f"t[{at}:{at + whole}] == {node.prefix[:whole]!r}")
    if bits:
        tests.append(f"t[{at + whole}] >> {8 - bits} == {node.prefix[whole] >> (8 - bits)}")
    return f"({' and '.join(tests)})" if tests else "True"


def _range(node: Ports, at: int) -> str:
    if node.low == 0 and node.high == 65535:
        return "True"
    port = f"(t[{at}] << 8 | t[{at + 1}])"
    return f"{port} == {node.low}" if node.low == node.high else f"{node.low} <= {port} <= {node.high}"
