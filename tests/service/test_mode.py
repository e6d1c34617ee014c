"""Who moves packets: what the configuration asks for, and what a kernel that fails the trial gets."""

from __future__ import annotations

import pytest

from dysco.errors import HostError
from dysco.service import kernel

FAULT = "a packet of 52 bytes for IPv4 arrives with other bytes"


def test_a_kernel_that_can_is_used_and_one_that_cannot_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str | None] = [None, None, FAULT, FAULT]
    monkeypatch.setattr(kernel, "fault_since_boot", lambda memory: answers.pop(0))
    assert kernel.choose("auto") == (True, "")
    assert kernel.choose("ebpf") == (True, "")
    assert kernel.choose("auto") == (False, FAULT)
    with pytest.raises(HostError, match=r"dataplane\.mode: a packet of 52 bytes .* set it to auto or tun"):
        kernel.choose("ebpf")
    assert answers == []


def test_the_mode_tun_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "fault_since_boot", lambda memory: pytest.fail("tried"))
    assert kernel.choose("tun") == (False, 'dataplane.mode is "tun"')
