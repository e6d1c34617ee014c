"""Our reading of match expressions agrees with libpcap's, and clauses cover what expressions match."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dysco.policy import MatchError, clauses, parse, predicate
from dysco.wire.tuples import FiveTuple
from policy.oracle import Pcap
from policy.strategies import expressions, sessions

PCAP = Pcap()


@settings(max_examples=300, deadline=None)
@given(expressions(), st.lists(sessions(), min_size=8, max_size=24))
def test_libpcap_agrees(text: str, examples: list[FiveTuple]) -> None:
    expected = PCAP.matches(text, examples)
    assert not isinstance(expected, str), expected
    test = predicate(parse(text))
    assert [test(one) for one in examples] == expected


@settings(max_examples=150, deadline=None)
@given(expressions(), st.lists(sessions(), min_size=8, max_size=24), st.sampled_from([2, 4, 16, 64]))
def test_clauses_cover_what_matches(text: str, examples: list[FiveTuple], limit: int) -> None:
    ast = parse(text)
    found = clauses(ast, limit)
    assert len(found) <= limit
    test = predicate(ast)
    for session in examples:
        if test(session):
            assert any(clause.matches(session) for clause in found)


@settings(max_examples=100, deadline=None)
@given(expressions(), st.lists(sessions(), min_size=8, max_size=24))
def test_clauses_are_exact_when_there_may_be_many(text: str, examples: list[FiveTuple]) -> None:
    ast = parse(text)
    found = clauses(ast, 4096)
    widened = "not" in text or "!" in text  # a negated IPv6 prefix of more than 32 bits is widened
    test = predicate(ast)
    for session in examples:
        if not widened:
            assert any(clause.matches(session) for clause in found) == test(session)


@pytest.mark.parametrize(
    "text",
    [
        "tcp dst port 80 or 443",
        "port 80 or host 10.20.0.1 or 10.20.0.2",
        "port 80 or (src port 443) or 8080",
        "port 80 or (443 or 8080) and not 1",
        "not port 80 or 443",
        "src host 10.20.0.1 and not 10.20.0.2",
        "dst net 10.20 or 10.21",
        "src 10.20.0.1 or dst 2001:db8::1",
        "!ip6",
        "host 10.20.0.1 and port 80 or 443",
    ],
)
def test_what_people_write(text: str) -> None:
    examples = [
        FiveTuple.parse(f"{left} > {right}")
        for left, right in (
            ("10.20.0.1:80", "10.20.0.2:443"),
            ("10.20.0.2:1", "10.20.0.1:8080"),
            ("10.21.0.1:8080", "10.20.0.9:1"),
            ("192.0.2.7:443", "10.21.0.1:80"),
            ("[2001:db8::2]:80", "[2001:db8::1]:443"),
            ("[2001:db8::1]:5", "[2001:db8::2]:6"),
        )
    ]
    test = predicate(parse(text))
    assert [test(one) for one in examples] == PCAP.matches(text, examples)


def test_networks_within_networks() -> None:
    """libpcap's optimizer takes each of these for an expression that no packet, or not the right one, matches."""
    example = FiveTuple.parse("[2001:db8::1]:80 > [2001:db8::1]:80")
    for text in ("net ::/1 and src net ::/1", "net ::/1 and ::/0 and src net ::/1"):
        assert PCAP.matches(text, [example]) == [predicate(parse(text))(example)] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "tcp or 80",
        "80",
        "port 80 and tcp or 443",
        "(port 80) or 443",
        "tcp host 10.0.0.1",
        "ip port 80",
        "host 10.0.0.0/8",
        "net 10.0.0.1/8",
        "ip host 2001:db8::1",
        "ip6 host 10.0.0.1",
        "port 70000",
        "net 10.0.0.0/33",
        "net 2001:db8::/129",
        "port 80 90",
        "port 80 and",
        "(port 80",
        "port 80)",
        "src or dst",
        "port 80 @",
        "port 10.0.0.1",
        "src 10.0.0.0/8",
        "host 1.2.3.256",
        "and port 80",
    ],
)
def test_what_libpcap_refuses_is_refused(text: str) -> None:
    assert isinstance(PCAP.matches(text, []), str)
    with pytest.raises(MatchError):
        parse(text)


WORDS = ["tcp", "ip", "ip6", "port", "host", "net", "src", "dst", "portrange", "and", "or", "not", "(", ")"]
VALUES = ["80", "443", "80-443", "10.20.0.1", "10.20.0.0/16", "10.20", "2001:db8::1", "2001:db8::/32"]


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS + VALUES), max_size=9).map(" ".join),
    st.lists(sessions(), min_size=4, max_size=8),
)
def test_whatever_we_accept_libpcap_reads_alike(text: str, examples: list[FiveTuple]) -> None:
    refused_at = 0
    try:
        test = predicate(parse(text))
    except MatchError as error:
        refused_at = error.column
    if refused_at:
        assert 1 <= refused_at <= len(text) + 1
        return
    expected = PCAP.matches(text, examples)
    assert isinstance(expected, str) or [test(one) for one in examples] == expected
    # libpcap wants only bare values within parentheses that begin with one; we also take primitives there.
    assert not isinstance(expected, str) or "syntax error" in expected
