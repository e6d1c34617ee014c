"""Programs of the bench that show bulk transfers over time: `source` sends, `sink` samples what has arrived.

Run inside a namespace: `python -m benchmarks.flow source PORT` and `... sink ADDRESS PORT SECONDS FILE`. The file gets
lines of monotonic seconds and bytes so far.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import time
from pathlib import Path

SAMPLE_S = 0.005


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1] == "source":
        source(int(sys.argv[2]))
    else:
        sink(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
    return 0


def source(port: int) -> None:
    """Send to each that connects until it closes."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        link, _ = listener.accept()
        threading.Thread(target=_send, args=(link,), daemon=True).start()


def _send(link: socket.socket) -> None:
    block = bytes(1 << 18)
    with link, contextlib.suppress(OSError):
        while True:
            link.sendall(block)


def sink(address: str, port: int, seconds: float, file: Path) -> None:
    """Receive for so long, or until ended, and sample; says when it has begun."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    link = socket.create_connection((address, port))
    buffer = bytearray(1 << 20)
    total, began = 0, time.monotonic()
    due = began
    samples: list[str] = []
    try:
        while (now := time.monotonic()) < began + seconds:
            total += link.recv_into(buffer)
            if now >= due:
                if not samples:
                    sys.stdout.write("begun\n")
                    sys.stdout.flush()
                samples.append(f"{now:.6f} {total}\n")
                due = now + SAMPLE_S
    finally:
        link.close()
        file.write_text("".join(samples))


if __name__ == "__main__":
    sys.exit(main())
