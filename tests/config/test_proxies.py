"""What host.toml may say of proxies, and what it then means for a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysco import config
from dysco.cli.app import run
from dysco.config.proxies import due, proxy_rule
from dysco.wire.tuples import FiveTuple

HEAD = '[agent]\nname = "a"\n[keys]\ncertificate = "a.pem"\nkey = "a.key"\nca = "ca.pem"\n[[proxy]]\nname = "p"\n'
WEB = FiveTuple.parse("192.0.2.1:40000 > 192.0.2.9:80")


def judge(text: str) -> tuple[config.HostConfig | None, list[str]]:
    loaded, found = config.check_bytes((HEAD + text).encode(), "host.toml", Path("/etc/dysco"))
    return loaded, [str(one).removeprefix("host.toml:") for one in found]


def proxy(text: str) -> config.Proxy:
    loaded, found = judge(text)
    assert loaded is not None, found
    return loaded.proxy[0]


def test_relative_paths_begin_at_the_file() -> None:
    assert str(proxy('adapter = "haproxy"\nsocket = "h.sock"\n').socket) == "/etc/dysco/h.sock"
    assert str(proxy('adapter = "nginx-stream"\nlog = "e.log"\nport = 1\n').log) == "/etc/dysco/e.log"
    assert str(proxy('adapter = "generic"\npid_file = "p.pid"\n').pid_file) == "/etc/dysco/p.pid"
    assert proxy('adapter = "mine/p.py:P"\n').adapter == "/etc/dysco/mine/p.py:P"
    assert proxy('adapter = "mine.proxies:P"\n').adapter == "mine.proxies:P"


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        (
            'adapter = "haproxi"\n',
            [
                "9:1: proxy[p].adapter: 'haproxi' is not one of 'haproxy', 'nginx-stream', 'generic', nor "
                "'module:Class'; did you mean 'haproxy'?"
            ],
        ),
        ('adapter = "haproxy"\n', ["7:3: proxy[p]: socket is missing: where is HAProxy's runtime API?"]),
        (
            'adapter = "nginx-stream"\nport = 80\n',
            ["7:3: proxy[p]: log is missing: where does nginx tell of its sessions?"],
        ),
        ('adapter = "generic"\n', ["7:3: proxy[p]: port or pid_file is missing: which program is it?"]),
        (
            'adapter = "generic"\nport = 80\nsocket = "x"\nline = "v1"\n',
            [
                "11:1: proxy[p].socket: adapter 'generic' has none; it is for 'haproxy'",
                "12:1: proxy[p].line: adapter 'generic' has none; it is for 'haproxy'",
            ],
        ),
        (
            'adapter = "generic"\nport = 80\nremove = "after"\n',
            ["11:1: proxy[p].remove: 'after' what? after_bytes or after_seconds is missing"],
        ),
        (
            'adapter = "generic"\nport = 80\nafter_bytes = 5\n',
            ["11:1: warning: proxy[p].after_bytes: has no effect: remove = 'never'"],
        ),
        ('adapter = "generic"\nport = 0\n', ["10:1: proxy[p].port: 0 is below 1"]),
        (
            'adapter = "generic"\nport = 80\n[[proxy]]\nname = "p"\nadapter = "m:C"\n',
            ["12:1: proxy[p].name: 'p' is the name of two proxies"],
        ),
        (
            'adapter = "generic"\nport = 80\nremove = "choosen"\n',
            [
                "11:1: proxy[p].remove: 'choosen' is not one of 'never', 'chosen', 'after'; did you mean 'chosen'?"
            ],
        ),
    ],
)
def test_what_is_wrong(text: str, findings: list[str]) -> None:
    assert judge(text)[1] == findings


@pytest.mark.parametrize(
    ("text", "verdict", "says"),
    [
        ("", "when asked", "stays in the session until `dysco splice` or `dysco proxy drain p`"),
        ('remove = "chosen"\n', "chosen", "is taken out as soon as its server is chosen, if adapter generic"),
        (
            'remove = "after"\nafter_bytes = 9\nafter_seconds = 2.5\n',
            "after",
            "is taken out after 9 bytes or 2.5 s",
        ),
        (
            'remove = "chosen"\nkeep = "dst port 80"\n',
            "stays",
            "stays in the session: keep = 'dst port 80' is true",
        ),
        ('match = "src port 1"\n', "no match", "left alone: match = 'src port 1' is not true"),
    ],
)
def test_rules_say_what_becomes_of_a_session(text: str, verdict: str, says: str) -> None:
    rule = proxy_rule(proxy('adapter = "generic"\nport = 80\n' + text), WEB)
    assert rule.verdict == verdict
    assert says in rule.text
    assert rule.may_leave == (verdict not in ("stays", "no match"))


def test_another_port() -> None:
    rule = proxy_rule(proxy('adapter = "generic"\nport = 81\n'), WEB)
    assert (rule.verdict, rule.text) == ("no match", "not its session: it listens on port 81")


def test_when_a_rule_is_due() -> None:
    after = proxy('adapter = "generic"\nport = 80\nremove = "after"\nafter_bytes = 9\nafter_seconds = 2.0\n')
    assert not due(after, WEB, 8, 1.9)
    assert due(after, WEB, 9, 0.0)
    assert due(after, WEB, 0, 2.0)
    chosen = proxy('adapter = "generic"\nport = 80\nremove = "chosen"\n')
    assert due(chosen, WEB, 0, 0.0)
    assert not due(chosen, FiveTuple.parse("192.0.2.1:40000 > 192.0.2.9:81"), 0, 0.0)
    assert not due(proxy('adapter = "generic"\nport = 80\n'), WEB, 1 << 40, 1e9)


def test_explain_tells_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "host.toml"
    file.write_text(HEAD + 'adapter = "generic"\nport = 80\nremove = "chosen"\n')
    assert run(["explain", f"tcp {WEB}", "--config", str(file)]) == 0
    assert "proxy    p: is taken out as soon as its server is chosen" in capsys.readouterr().out
    assert run(["explain", f"tcp {WEB}", "--config", str(file), "--json"]) == 0
    assert '"verdict": "chosen"' in capsys.readouterr().out


def test_a_reload_takes_new_rules() -> None:
    old, _ = judge('adapter = "generic"\nport = 80\n')
    new, _ = judge('adapter = "generic"\nport = 80\nremove = "chosen"\n')
    assert old is not None
    assert new is not None
    assert [str(one) for one in config.diff(old, new)] == ['proxy[p].remove: "never" -> "chosen"']
    assert config.reloaded(old, new).proxy[0].remove == "chosen"
