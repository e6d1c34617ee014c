"""`dysco keys` from the first CA to a certificate that says whose it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dysco.errors import ExitStatus

if TYPE_CHECKING:
    from cli.conftest import Run


def test_init_issue_show(dysco: Run, tmp_path: Path) -> None:
    directory = str(tmp_path / "keys")
    status, out, _ = dysco("keys", "init", "--dir", directory)
    assert status == 0
    assert "ca.pem" in out
    made = json.loads(dysco("keys", "issue", "fw", "192.0.2.7", "2001:db8::7", "-d", directory, "--json")[1])
    assert Path(made["key"]).stat().st_mode & 0o777 == 0o600
    (shown,) = json.loads(dysco("keys", "show", made["certificate"], "--json")[1])
    assert (shown["kind"], shown["name"], shown["valid_now"]) == ("agent", "fw", True)
    assert shown["fingerprint"] == made["fingerprint"]
    assert shown["addresses"] == ["192.0.2.7", "2001:db8::7"]
    status, out, _ = dysco("keys", "show", made["certificate"], made["ca"])
    assert status == 0
    assert f"{made['certificate']}: agent fw" in out
    assert made["fingerprint"] in out


def test_what_is_there_is_not_replaced(dysco: Run, tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert dysco("keys", "issue", "fw", "-d", directory)[0] == ExitStatus.USAGE
    assert dysco("keys", "init", "-d", directory)[0] == 0
    status, _, err = dysco("keys", "init", "-d", directory)
    assert status == ExitStatus.USAGE
    assert "ca.pem" in err
    assert dysco("keys", "init", "-d", directory, "--force")[0] == 0
    assert dysco("keys", "show", str(tmp_path / "no.pem"))[0] == ExitStatus.USAGE
