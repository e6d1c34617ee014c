"""What the bench measures is measured, at its smallest size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import proxy


@pytest.mark.parametrize("mode", ["ebpf"])
def test_a_proxy_that_leaves_its_sessions_has_nothing_left_to_do(tmp_path: Path, mode: str) -> None:
    found = proxy.run(tmp_path, mode, sessions=1, seconds=1.0)
    assert len(found.moments) == proxy.GROUPS
    assert found.figures["goodput_removed_gbit_s"] > 0
    assert found.figures["proxy_cpu_percent"] > found.figures["proxy_cpu_percent_removed"]
    proxy.plot({mode: found}, tmp_path / "plot.svg")
    assert "CPU of the proxy" in (tmp_path / "plot.svg").read_text()
