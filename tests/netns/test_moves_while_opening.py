"""Hosts move while a session is being opened: the SYN is on its way, and no answer has come yet.

Nothing was agreed on, so nothing is changed: what TCP repeats begins the chain anew, from where the host is then.
"""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from netns.conftest import MakeLab
from netns.labs import MEGABYTE, both_modes, nft_counter, put_file, until, url
from netns.test_changes import command_line, seen, watch
from netns.test_moves import lab_of_movers, new_device
from netns.test_moves_back import ip

# The server does not answer, nor does the router say that it cannot reach an address which is gone.
SILENT = """
table inet silent {
    counter silenced {}
    chain input {
        type filter hook input priority filter;
        tcp dport 80 counter name silenced drop
    }
    chain output {
        type filter hook output priority filter;
        icmp type destination-unreachable drop
        icmpv6 type destination-unreachable drop
    }
}
"""


@both_modes
@pytest.mark.parametrize(("family", "movers"), [(4, "a"), (6, "b"), (4, "d"), (6, "abd")])
def test_a_host_moves_while_a_session_is_opened(make_lab: MakeLab, family: int, movers: str) -> None:
    lab = make_lab(lab_of_movers("opening"))
    lab.up()
    watch(lab, "b")
    wanted = put_file(lab, 4 * MEGABYTE)
    rules = lab.directory / "silent.nft"
    rules.write_text(SILENT)
    for node in ("d", "router"):
        lab.exec(node, ["nft", "-f", str(rules)])
    argv = lab.command("a", ["curl", "-sS", "-f", "--connect-timeout", "60", url(lab, family)])
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as client:
        try:
            until("no SYN has come", lambda: nft_counter(lab, "d", "silent", "silenced") > 0)
            for number, node in enumerate(movers, 1):
                if family == 6:  # agents talk by IPv4, which stays
                    ip(lab, node, "address", "delete", f"{lab.address(node, 6)}/64", "dev", "eth0")
                address = new_device(lab, node, number, family, gone=family == 4)
                done = command_line(lab, node, "move", "--address", address)
                assert (done.returncode, done.stderr) == (0, "")
            lab.exec("d", ["nft", "delete", "table", "inet", "silent"])
            data, _ = client.communicate(timeout=90)
        finally:
            client.kill()
    assert client.returncode == 0
    assert hashlib.sha256(data).hexdigest() == wanted
    assert seen(lab, "resets") == 0
