"""Programs of the proofs, run inside namespaces by path; they know nothing of dysco.

    send, receive    one side sends until it is told to stop, the other says nothing at all
    serve            a web server whose answers are at least so long, and last until it is told to stop
    lines            both sides send numbered lines, and look at what comes: a box between may change two words

Each is `listen PORT` or `connect ADDRESS PORT`. They stop when a file `stop` is in the current directory, and print one
line of JSON at their end: what was sent and received, and SHA-256 of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

BLOCK = 1 << 16
PAUSE_S = 0.002  # between blocks of who does not send as fast as it can
LINES = 20  # sent at a time
TEXT = b"%09d a sheep and a cow walk through a wall of fire, and the wall does not mind\n"
STOP = Path("stop")
THOUSAND = 1000  # lines for which there is a byte in a file `progress`


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("send", "receive", "serve", "lines"))
    parser.add_argument("side", choices=("listen", "connect"))
    parser.add_argument("place", nargs="+")
    parser.add_argument("--least", type=int, default=0, help="bytes to send at least, at full speed")
    parser.add_argument(
        "--changed", nargs=4, metavar="WORD", help="of lines: forward old new, backward old new"
    )
    options = parser.parse_args()
    if options.what == "serve":
        serve(int(options.place[0]), options.least)
        return
    link = open_link(options.side, options.place)
    if options.what == "lines":
        old, new = options.changed[2:] if options.side == "connect" else options.changed[:2]
        said = lines(link, old.encode(), new.encode())
    else:
        said = send(link, options.least) if options.what == "send" else receive(link)
    sys.stdout.write(json.dumps(said) + "\n")


def open_link(side: str, place: list[str]) -> socket.socket:
    """Connect, or wait for one who does."""
    if side == "connect":
        return socket.create_connection((place[0], int(place[1])))
    with socket.create_server(("::", int(place[0])), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        return listener.accept()[0]


def send(link: socket.socket, least: int) -> dict[str, Any]:
    """Send blocks that differ; after the least amount a little at a time."""
    base, digest, total, number = os.urandom(BLOCK), hashlib.sha256(), 0, 0
    while total < least or not STOP.exists():
        block = number.to_bytes(8, "big") + base[8:]
        digest.update(block)
        link.sendall(block)
        total, number = total + len(block), number + 1
        if total >= least:
            time.sleep(PAUSE_S)
    link.shutdown(socket.SHUT_WR)
    if link.recv(1):
        raise ConnectionError("the other side has spoken")
    link.close()
    return {"sent": total, "sha256": digest.hexdigest()}


def receive(link: socket.socket) -> dict[str, Any]:
    """Take all that comes."""
    digest, total = hashlib.sha256(), 0
    while block := link.recv(1 << 20):
        digest.update(block)
        total += len(block)
    link.close()
    return {"received": total, "sha256": digest.hexdigest()}


def serve(port: int, least: int) -> None:
    """Answer one request after the other; tells of each when it is over."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        link, _ = listener.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += link.recv(4096)
        link.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        sys.stdout.write(json.dumps(send(link, least)) + "\n")
        sys.stdout.flush()


def lines(link: socket.socket, old: bytes, new: bytes) -> dict[str, Any]:
    """Send lines and look at those that come: at first a box puts `new` for `old`, from some line on no more."""
    sender = threading.Thread(target=say, args=(link,))
    sender.start()
    number = changed = 0
    error = ""
    for line in link.makefile("rb"):
        plain = TEXT % number
        if line == plain.replace(old, new) and changed == number:
            changed += 1
        elif line != plain:
            error = error or f"line {number} is {line!r}"
        number += 1
        if number % THOUSAND == 0:
            with Path("progress").open("ab") as file:
                file.write(b".")
    sender.join()
    link.close()
    return {"lines": number, "changed": changed, "error": error}


def say(link: socket.socket) -> None:
    """Send numbered lines until told to stop."""
    number = 0
    while not STOP.exists():
        link.sendall(b"".join(TEXT % (number + index) for index in range(LINES)))
        number += LINES
        time.sleep(PAUSE_S)
    link.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
