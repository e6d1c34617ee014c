"""The CA and the certificates on disk."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from dysco.errors import ConfigError, HostError
from dysco.transport import keys


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_and_issue(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "pki"
    old = os.umask(0o277)  # neither too much nor too little, whatever it is
    try:
        os.umask(0)
        authority = keys.init(directory)
        paths = keys.issue(directory, "fw-1", ["10.0.0.1", "2001:db8::1"])
    finally:
        os.umask(old)
    assert (mode(directory), mode(authority.key), mode(paths.key)) == (0o700, 0o600, 0o600)
    assert (mode(authority.certificate), mode(paths.certificate)) == (0o644, 0o644)
    assert sorted(p.name for p in directory.iterdir()) == ["ca.key", "ca.pem", "fw-1.key", "fw-1.pem"]

    shown = keys.show(paths.certificate)
    assert (shown.kind, shown.name, shown.addresses) == ("agent", "fw-1", ("10.0.0.1", "2001:db8::1"))
    assert shown.fingerprint == paths.fingerprint
    assert len(bytes.fromhex(shown.fingerprint)) == 32
    assert shown.issuer == keys.show(authority.certificate).name
    now = datetime.datetime.now(datetime.UTC)
    assert shown.valid_at(now)
    assert not shown.valid_at(now + datetime.timedelta(days=keys.AGENT_DAYS + 1))
    assert keys.show(authority.certificate).kind == "ca"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    keys.init(tmp_path)
    first = keys.issue(tmp_path, "a")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"ca\.pem is there already"):
        keys.init(tmp_path)
    with pytest.raises(ConfigError, match=r"a\.pem is there already"):
        keys.issue(tmp_path, "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert keys.issue(tmp_path, "a", force=True).fingerprint != first.fingerprint
    assert keys.init(tmp_path, force=True)


@pytest.mark.parametrize("name", ["", "a b", "../a", "ca", "x" * 64, "-a", "ä"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    keys.init(tmp_path)
    with pytest.raises(ConfigError):
        keys.issue(tmp_path, name)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dysco keys init"):
        keys.issue(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"nowhere\.pem: no such file"):
        keys.show(tmp_path / "nowhere.pem")
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ConfigError, match=r"junk\.pem: no certificate"):
        keys.show(tmp_path / "junk.pem")
    with pytest.raises(ConfigError, match=r"junk\.pem: no private key"):
        keys.load_key(tmp_path / "junk.pem")
    (tmp_path / "dir.pem").mkdir()
    with pytest.raises(ConfigError, match="directory"):
        keys.show(tmp_path / "dir.pem")
    with pytest.raises(HostError):
        keys.show(tmp_path / ("x" * 300))
    keys.init(tmp_path)
    with pytest.raises(ConfigError, match="not an IPv4"):
        keys.issue(tmp_path, "a", ["10.0.0.256"])
    with pytest.raises(ConfigError, match="one day"):
        keys.issue(tmp_path, "a", days=0)
    (tmp_path / "ca.key").write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigError, match="neither ECDSA nor RSA"):
        keys.issue(tmp_path, "a")
    other = keys.init(tmp_path / "other")
    (tmp_path / "ca.key").write_bytes(other.key.read_bytes())
    with pytest.raises(ConfigError, match="not the private key"):
        keys.issue(tmp_path, "a")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.init(tmp_path)
    before = keys.issue(tmp_path, "a")
    old = before.key.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostError, match="No space left"):
        keys.issue(tmp_path, "a", force=True)
    assert before.key.read_bytes() == old
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_name_is_one_uri(tmp_path: Path) -> None:
    keys.init(tmp_path)
    certificate = keys.load_certificate(keys.issue(tmp_path, "a").certificate)
    assert keys.name_of(certificate) == "a"
    assert keys.name_of(keys.load_certificate(tmp_path / "ca.pem")) is None
