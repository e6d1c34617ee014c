"""Short sessions one after the other, run inside namespaces by path; knows nothing of dysco.

    serve PORT                     answer until the process is ended
    open ADDRESS PORT NUMBER       NUMBER sessions; prints how many have ended in each way, and how many went wrong

The client's first byte says how a session ends after its answer, by turns: the client closes first, or the server;
the client resets, or the server. Each fifth SYN goes to the next port, where nobody listens.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections import Counter

WAYS = (b"client", b"server", b"reset here", b"reset there", b"refused")
ANSWER = bytes(range(256)) * 8
LIMIT_S = 20.0
NO_LINGER = struct.pack("ii", 1, 0)


def serve(port: int) -> None:
    """Answer sessions of both families."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    while True:
        session, _ = listener.accept()
        threading.Thread(target=answer, args=(session,), daemon=True).start()


def answer(session: socket.socket) -> None:
    with session:
        session.settimeout(LIMIT_S)
        try:
            way = session.recv(16)
            session.sendall(ANSWER)
            if way == b"reset there":
                session.recv(1)  # the client has all: what is under way would be lost by a reset
                session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                return
            if way == b"server":
                session.shutdown(socket.SHUT_WR)
            session.recv(1)
        except OSError:
            pass  # the client has reset it, or tells what is wrong


def open_one(address: str, port: int, way: bytes) -> bool:
    """One session; whether it was as it should be."""
    if way == b"refused":
        try:
            socket.create_connection((address, port + 1), LIMIT_S).close()
        except ConnectionRefusedError:
            return True
        return False
    with socket.create_connection((address, port), LIMIT_S) as session:
        session.sendall(way)
        got = b""
        while len(got) < len(ANSWER) and (data := session.recv(1 << 16)):
            got += data
        if way == b"reset here":
            session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        elif way == b"reset there":
            session.sendall(b".")
            try:
                return session.recv(1) == b"?"
            except ConnectionResetError:
                return got == ANSWER
        elif way == b"server":
            return got == ANSWER and session.recv(1) == b""
        else:
            session.shutdown(socket.SHUT_WR)
            return got == ANSWER and session.recv(1) == b""
    return got == ANSWER


def open_all(address: str, port: int, number: int) -> None:
    ended, wrong = Counter[str](), Counter[str]()
    for one in range(number):
        way = WAYS[one % len(WAYS)]
        try:
            fine, why = open_one(address, port, way), "not as said"
        except OSError as error:
            fine, why = False, str(error)
        if fine:
            ended[way.decode()] += 1
        else:
            wrong[f"{way.decode()}: {why}"] += 1
    print(json.dumps({"ended": ended, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        open_all(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
