"""From the text of a match expression to its tree.

The grammar is in match.lark. What it leaves open is settled here as libpcap's grammar.y does: a bare value
takes the qualifiers of what stands to its left; `tcp`, `ip` and `ip6` alone leave none to take; a parenthesis
leaves those that stood before it.
"""

from __future__ import annotations

import difflib
import ipaddress
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from dysco.errors import ConfigError
from dysco.policy.ast import And, Ast, Direction, Everything, FamilyIs, Net, Node, Not, Or, Ports, Span

_TEXT_LIMIT: Final = 16_384  # characters; ours: bounds the work for a text from a file
_DEPTH_LIMIT: Final = 40  # parentheses and negations; Python's compiler takes about 90 nested ones
_KEYWORDS: Final = ("and", "or", "not", "ip", "ip6", "tcp", "src", "dst", "host", "net", "port", "portrange")
_OTHER_PROTOCOLS: Final = frozenset(("udp", "sctp", "icmp", "icmp6", "arp", "igmp", "esp", "ah", "gre"))
_NOT_OF_TUPLES: Final = frozenset(
    (
        "ether",
        "vlan",
        "mpls",
        "less",
        "greater",
        "len",
        "proto",
        "protochain",
        "gateway",
        "broadcast",
        "multicast",
    )
)


class MatchError(ConfigError):
    """A match expression is wrong; `column` is counted from 1, `reason` is the sentence without it."""

    def __init__(self, reason: str, column: int) -> None:
        super().__init__(f"column {column}: {reason}")
        self.reason = reason
        self.column = column


class _Qualifiers(NamedTuple):
    protocol: str  # "", "ip", "ip6" or "tcp"
    direction: Direction
    kind: str  # "", "host", "net", "port" or "portrange"


def parse(text: str) -> Ast:
    """Parse a match expression; raises MatchError with column and hint."""
    if len(text) > _TEXT_LIMIT:
        raise MatchError(f"the expression is longer than {_TEXT_LIMIT} characters", _TEXT_LIMIT + 1)
    _refuse_depth(text)
    try:
        _refuse_names(list(_parser().lex(text)))
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _syntax_error(error, text) from None
    expression = tree.children[0] if tree.children else None
    if not isinstance(expression, Tree):
        return Ast(Everything((0, len(text))), text)
    root, _ = _expression(expression, None)
    return Ast(root, text)


@cache
def _parser() -> Lark:
    grammar = resources.files("dysco.policy").joinpath("match.lark").read_text()
    return Lark(grammar, parser="lalr", lexer="basic", maybe_placeholders=False, propagate_positions=True)


def _refuse_depth(text: str) -> None:
    depth = 0
    for column, letter in enumerate(text, 1):
        depth += (letter == "(") - (letter == ")")
        if depth > _DEPTH_LIMIT:
            raise MatchError(f"more than {_DEPTH_LIMIT} parentheses within each other", column)


def _refuse_names(tokens: list[Token]) -> None:
    for index, token in enumerate(tokens):
        if token.type != "NAME":
            continue
        column = _start(token) + 1
        word = str(token)
        before = tokens[index - 1].type if index else ""
        if word in _OTHER_PROTOCOLS:
            raise MatchError(f"'{word}': only TCP sessions are chained", column)
        if word in _NOT_OF_TUPLES:
            raise MatchError(
                f"'{word}' is not of the five-tuple: only addresses and ports can be matched", column
            )
        near = difflib.get_close_matches(word.lower(), _KEYWORDS, n=1)
        if near:
            raise MatchError(f"'{word}' is no keyword; did you mean '{near[0]}'?", column)
        if before in ("PORT", "PORTRANGE"):
            raise MatchError(
                f"'{word}' is a name: write the number of the port, names are not looked up", column
            )
        if before in ("HOST", "NET", "SRC", "DST"):
            raise MatchError(f"'{word}' is a name: write the address, names are not looked up", column)
        raise MatchError(f"'{word}' is no keyword, and names are not looked up: write numbers", column)


def _syntax_error(error: UnexpectedInput, text: str) -> MatchError:
    if isinstance(error, UnexpectedCharacters):
        at = error.pos_in_stream or 0
        return MatchError(f"'{text[at]}' means nothing here", at + 1)
    if isinstance(error, UnexpectedToken) and error.token.type != "$END":
        hint = ""
        if error.token.type in ("NUMBER", "ADDRESS", "PREFIX", "RANGE"):
            hint = "; is 'and' or 'or' missing before it?"
        return MatchError(f"'{error.token}' cannot stand here{hint}", _start(error.token) + 1)
    assert isinstance(error, (UnexpectedEOF, UnexpectedToken))
    return MatchError("the expression ends too early", len(text) + 1)


def _start(token: Token) -> int:
    assert token.start_pos is not None
    return token.start_pos


def _span(tree: Tree[Token]) -> Span:
    return tree.meta.start_pos, tree.meta.end_pos


def _expression(
    tree: Tree[Token], inherited: _Qualifiers | None, depth: int = 0
) -> tuple[Node, _Qualifiers | None]:
    """Build a chain of `and` and `or` from the left; give it and the qualifiers that it leaves."""
    left: Node | None = None
    operator = ""
    qualifiers = inherited
    for child in tree.children:
        if isinstance(child, Token):
            operator = child.type
            continue
        right, qualifiers = _unit(child, qualifiers, depth + 1)
        left = right if left is None else _join(operator, left, right)
    assert left is not None
    return left, qualifiers


def _join(operator: str, left: Node, right: Node) -> Node:
    kind = And if operator == "AND" else Or
    span = (left.span[0], right.span[1])
    # Only the left side is taken apart: a parenthesis on the right keeps its own span for `explain`.
    return kind((*left.parts, right), span) if isinstance(left, kind) else kind((left, right), span)


def _unit(tree: Tree[Token], inherited: _Qualifiers | None, depth: int) -> tuple[Node, _Qualifiers | None]:
    if depth > 2 * _DEPTH_LIMIT:
        raise MatchError("negations and parentheses are nested too deeply", _span(tree)[0] + 1)
    last = tree.children[-1]
    match tree.data:
        case "negation" | "id_negation":
            assert isinstance(last, Tree)
            part, qualifiers = _unit(last, inherited, depth + 1)
            return Not(part, _span(tree)), qualifiers
        case "group" | "id_group":
            assert isinstance(last, Tree)
            node, _ = _expression(last, inherited, depth)
            return _with_span(node, _span(tree)), inherited
        case "protocol":
            assert isinstance(last, Token)
            return _protocol(last), None
        case "primitive":
            assert isinstance(last, Tree)
            own = _qualifiers([str(child) for child in tree.children[:-1]])
            node, _ = _unit(last, own, depth)
            return (node if isinstance(node, (And, Or, Not)) else _with_span(node, _span(tree))), own
    assert isinstance(last, Token)
    if inherited is None:
        raise MatchError(
            f"'{last}': say what it is, such as 'port {last}' or 'host {last}'", _start(last) + 1
        )
    return _value(last, inherited), inherited


def _with_span(node: Node, span: Span) -> Node:
    match node:
        case Everything():
            return Everything(span)
        case FamilyIs():
            return FamilyIs(node.family, span)
        case Net():
            return Net(node.direction, node.prefix, node.length, span)
        case Ports():
            return Ports(node.direction, node.low, node.high, span)
        case Not():
            return Not(node.part, span)
        case And() | Or():
            return type(node)(node.parts, span)


def _protocol(token: Token) -> Node:
    span = (_start(token), _start(token) + len(token))
    match token.type:
        case "IP":
            return FamilyIs(4, span)
        case "IP6":
            return FamilyIs(6, span)
    return Everything(span)


def _qualifiers(words: list[str]) -> _Qualifiers:
    protocol = words[0] if words[0] in ("ip", "ip6", "tcp") else ""
    kind = words[-1] if words[-1] in ("host", "net", "port", "portrange") else ""
    between = words[bool(protocol) : len(words) - bool(kind)]
    direction: Direction = "either"
    if len(between) == 3:
        direction = "both" if between[1] in ("and", "&&") else "either"
    elif between:
        direction = "src" if between[0] == "src" else "dst"
    return _Qualifiers(protocol, direction, kind)


def _value(token: Token, qualifiers: _Qualifiers) -> Node:
    column = _start(token) + 1
    span = (_start(token), _start(token) + len(token))
    if qualifiers.kind in ("port", "portrange"):
        return _ports(token, qualifiers, span)
    if token.type == "RANGE" or (token.type == "NUMBER" and qualifiers.kind != "net"):
        raise MatchError(f"'{token}' is no address; did you mean 'port {token}'?", column)
    prefix, length = _network(str(token), column)
    family = 4 if len(prefix) == 4 else 6
    if token.type == "PREFIX" and qualifiers.kind != "net":
        raise MatchError(f"'{token}' is a network; did you mean 'net {token}'?", column)
    if qualifiers.kind != "net" and length != 8 * len(prefix):
        raise MatchError(f"'{token}' is no whole address; did you mean 'net {token}'?", column)
    if qualifiers.protocol == "tcp":
        raise MatchError(
            f"'tcp' cannot stand before an address; did you mean 'tcp and {qualifiers.kind or 'host'}'?",
            column,
        )
    if qualifiers.protocol and qualifiers.protocol != ("ip" if family == 4 else "ip6"):
        raise MatchError(
            f"'{token}' is an IPv{family} address, but '{qualifiers.protocol}' stands before it", column
        )
    return Net(qualifiers.direction, prefix, length, span)


def _ports(token: Token, qualifiers: _Qualifiers, span: Span) -> Node:
    column = span[0] + 1
    if qualifiers.protocol in ("ip", "ip6"):
        wanted = f"{qualifiers.protocol} and {qualifiers.kind}"
        raise MatchError(
            f"'{qualifiers.protocol}' cannot stand before a port; did you mean '{wanted}'?", column
        )
    if token.type == "RANGE":
        if qualifiers.kind != "portrange":
            raise MatchError(f"'{token}' is a range; did you mean 'portrange {token}'?", column)
        low, high = map(int, token.split("-"))
    elif token.type == "NUMBER":
        low = high = int(token)
    else:
        raise MatchError(f"'{token}' is no port; did you mean 'host {token}'?", column)
    if max(low, high) > 65535:
        raise MatchError(f"{max(low, high)} is above 65535, the highest port", column)
    if low > high:
        raise MatchError(f"'{token}': the first port is above the last", column)
    return Ports(qualifiers.direction, low, high, span)


def _network(text: str, column: int) -> tuple[bytes, int]:
    """Read an address or a prefix; `10.20` is 10.20.0.0/16, as in pcap."""
    address, slash, length_text = text.partition("/")
    octets = address.split(".") if ":" not in address else []
    length = 32 if ":" not in address else 128
    if 0 < len(octets) < 4:
        length = 8 * len(octets)
        address = ".".join(octets + ["0"] * (4 - len(octets)))
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        raise MatchError(f"'{text}' is no IPv4 or IPv6 address", column) from None
    if slash:
        length = int(length_text)
        if length > 8 * len(packed):
            raise MatchError(f"'{text}': a prefix has at most {8 * len(packed)} bits", column)
    value = int.from_bytes(packed, "big")
    kept = value >> (8 * len(packed) - length) << (8 * len(packed) - length)
    if kept != value:
        net = ipaddress.ip_address(kept.to_bytes(len(packed), "big"))
        raise MatchError(f"'{text}' has bits after the prefix; did you mean '{net}/{length}'?", column)
    return packed, length
