"""Hypothesis strategies for match expressions and for sessions that come near to what they name."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from dysco.wire.tuples import FiveTuple

V4 = [
    ipaddress.ip_address(text).packed
    for text in ("10.20.0.1", "10.20.0.2", "10.21.0.1", "192.0.2.7", "255.0.0.1")
]
V6 = [
    ipaddress.ip_address(text).packed
    for text in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "fd00::7", "2001:db9::1")
]
PORTS = [0, 1, 79, 80, 81, 443, 8080, 61000, 65535]

ports = st.sampled_from(PORTS) | st.integers(0, 65535)
v4 = st.sampled_from(V4) | st.binary(min_size=4, max_size=4)
v6 = st.sampled_from(V6) | st.binary(min_size=16, max_size=16)


@st.composite
def sessions(draw: st.DrawFn) -> FiveTuple:
    address = draw(st.sampled_from([v4, v6]))
    return FiveTuple.of(draw(address), draw(ports), draw(address), draw(ports))


def _text(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    # libpcap's scanner does not know the mixed notation for every IPv6 address; hexadecimal it always reads.
    return address.exploded if address.version == 6 else str(address)


@st.composite
def networks(draw: st.DrawFn) -> tuple[int, str]:
    packed = draw(v4 | v6)
    bits = 8 * len(packed)
    length = draw(st.integers(0, bits) | st.sampled_from([8, 16, 24, bits]))
    value = int.from_bytes(packed, "big") >> (bits - length) << (bits - length)
    return (4 if bits == 32 else 6), f"{_text(value.to_bytes(bits // 8, 'big'))}/{length}"


@st.composite
def hosts(draw: st.DrawFn) -> tuple[int, str]:
    packed = draw(v4 | v6)
    return (4 if len(packed) == 4 else 6), _text(packed)


@st.composite
def ranges(draw: st.DrawFn) -> str:
    low, high = sorted((draw(ports), draw(ports)))
    return f"{low}-{high}"


directions = st.sampled_from(["", "", "src ", "dst ", "src or dst ", "dst or src ", "src and dst "])
nots = st.sampled_from(["", "", "", "not ", "! "])
joins = st.sampled_from([" and ", " or ", " && ", "||"])


@st.composite
def primitives(draw: st.DrawFn) -> str:
    """A primitive with qualifiers, sometimes followed by bare values that inherit them."""
    kind = draw(st.sampled_from(["host", "net", "port", "portrange", "protocol", "short net"]))
    direction = draw(directions)
    if kind == "protocol":
        return draw(st.sampled_from(["ip", "ip6", "tcp"]))
    if kind == "short net":
        return f"{direction}net " + draw(st.sampled_from(["10", "10.20", "192.0.2", "10.20.0"]))
    if kind in ("host", "net"):
        family, first = draw(hosts() if kind == "host" else networks())
        same = (hosts() if kind == "host" else networks()).filter(lambda one: one[0] == family)
        protocol = draw(st.sampled_from(["", "", "ip " if family == 4 else "ip6 "]))
        # Without a kind, libpcap takes an address for a host.
        word = draw(st.sampled_from(["host ", ""])) if kind == "host" and direction else f"{kind} "
        others = [value for _, value in draw(st.lists(same, max_size=2))]
    else:
        values = ranges() if kind == "portrange" else ports.map(str)
        protocol = draw(st.sampled_from(["", "tcp "]))
        word = f"{kind} "
        first = draw(values)
        others = draw(st.lists(values, max_size=2))
    tail = "".join(draw(joins) + draw(nots) + other for other in others)
    if tail and draw(st.booleans()):
        return f"{protocol}{direction}{word}({first}{tail})"
    return f"{protocol}{direction}{word}{first}{tail}"


def expressions() -> st.SearchStrategy[str]:
    """Expressions that both we and libpcap accept."""
    return st.recursive(
        primitives(),
        lambda inner: st.one_of(
            st.tuples(inner, joins, inner).map("".join),
            inner.map(lambda text: f"({text})"),
            st.tuples(nots, inner).map(lambda pair: f"{pair[0]}({pair[1]})"),
        ),
        max_leaves=6,
    )
