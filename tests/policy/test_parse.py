"""Errors of match expressions name the column and a remedy; trees quote their text."""

from __future__ import annotations

import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dysco.errors import ConfigError
from dysco.policy import MatchError, parse, predicate
from dysco.policy.ast import And, Net, Or, Ports
from dysco.wire.tuples import FiveTuple
from policy.strategies import expressions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot 80", "column 1: 'prot' is no keyword; did you mean 'port'?"),
        ("PORT 80", "column 1: 'PORT' is no keyword; did you mean 'port'?"),
        ("port 80 adn port 443", "column 9: 'adn' is no keyword; did you mean 'and'?"),
        ("port http", "column 6: 'http' is a name: write the number of the port, names are not looked up"),
        (
            "dst host www.example",
            "column 10: 'www.example' is a name: write the address, names are not looked up",
        ),
        ("udp port 53", "column 1: 'udp': only TCP sessions are chained"),
        ("vlan 5", "column 1: 'vlan' is not of the five-tuple: only addresses and ports can be matched"),
        ("tcp and 80", "column 9: '80': say what it is, such as 'port 80' or 'host 80'"),
        ("port 80 443", "column 9: '443' cannot stand here; is 'and' or 'or' missing before it?"),
        ("port 80 and", "column 12: the expression ends too early"),
        ("(port 80", "column 9: the expression ends too early"),
        ("port 80 $", "column 9: '$' means nothing here"),
        ("port 70000", "column 6: 70000 is above 65535, the highest port"),
        ("port 80-90", "column 6: '80-90' is a range; did you mean 'portrange 80-90'?"),
        ("portrange 90-80", "column 11: '90-80': the first port is above the last"),
        ("src 80", "column 5: '80' is no address; did you mean 'port 80'?"),
        ("port 10.0.0.1", "column 6: '10.0.0.1' is no port; did you mean 'host 10.0.0.1'?"),
        ("host 10.0.0.0/8", "column 6: '10.0.0.0/8' is a network; did you mean 'net 10.0.0.0/8'?"),
        ("host 10.20", "column 6: '10.20' is no whole address; did you mean 'net 10.20'?"),
        ("net 10.0.0.1/8", "column 5: '10.0.0.1/8' has bits after the prefix; did you mean '10.0.0.0/8'?"),
        ("net 10.0.0.0/40", "column 5: '10.0.0.0/40': a prefix has at most 32 bits"),
        ("host 10.0.0.256", "column 6: '10.0.0.256' is no IPv4 or IPv6 address"),
        ("ip host ::1", "column 9: '::1' is an IPv6 address, but 'ip' stands before it"),
        ("ip6 port 80", "column 10: 'ip6' cannot stand before a port; did you mean 'ip6 and port'?"),
        ("tcp src 10.0.0.1", "column 9: 'tcp' cannot stand before an address; did you mean 'tcp and host'?"),
        ("(" * 41 + "port 80", "column 41: more than 40 parentheses within each other"),
    ],
)
def test_errors_help(text: str, message: str) -> None:
    with pytest.raises(MatchError) as caught:
        parse(text)
    assert str(caught.value) == message
    assert isinstance(caught.value, ConfigError)


@settings(max_examples=500, deadline=None)
@given(st.text("port hosnet10.-/:()!&|andx\n", max_size=40))
def test_any_text_parses_or_is_refused_at_a_column(text: str) -> None:
    column = 1
    try:
        parse(text)
    except MatchError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1


def test_the_tree() -> None:
    assert parse("tcp dst port 80 or 443 and dst net 10.20.0.0/16").root == And(
        (Or((Ports("dst", 80, 80), Ports("dst", 443, 443))), Net("dst", b"\x0a\x14\0\0", 16))
    )


def test_parts_quote_their_text() -> None:
    ast = parse("tcp dst port 80 or 443 and (dst net 10.20.0.0/16 or ip6) and not src host 10.0.0.1")
    assert isinstance(ast.root, And)
    assert [ast.quote(part) for part in ast.root.parts] == [
        "tcp dst port 80 or 443",
        "(dst net 10.20.0.0/16 or ip6)",
        "not src host 10.0.0.1",
    ]


@settings(max_examples=100, deadline=None)
@given(expressions())
def test_blanks_mean_nothing(text: str) -> None:
    assert parse(text.replace(" ", "  ")) == parse(text)


def test_a_decision_costs_less_than_three_microseconds() -> None:
    test = predicate(parse("tcp dst port 80 or 443 and dst net 10.20.0.0/16 and not src net 10.20.30.0/24"))
    session = FiveTuple.parse("10.0.0.1:5000 > 10.20.0.3:443")
    assert test(session)
    best = min(timeit.repeat(lambda: test(session), number=2000, repeat=20)) / 2000
    assert best < 3e-6
