"""State that a command of the user exports and imports: one JSON object in, one out, and never a shell.

    in:   {"version": 1, "action": "export", "box": "fw", "session": "10.0.0.1:1 > 10.0.0.9:80", "right": "..."}
    out:  {"state": "BASE64"}, {"state": null} if there is none, {"ready": false} if it must be asked again
    in:   the same with "action": "import" and "state": "BASE64"
    out:  {}

`{"error": "TEXT"}` and an exit status other than 0 refuse. The command is a process group of its own, which is killed
when it takes too long or says too much; what it writes to standard error is in the error, cut off.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from typing import Any, Final

from dysco.errors import HostError, LocalError
from dysco.wire.tuples import FiveTuple

_VERSION: Final = 1
_OVERHEAD: Final = 4096  # ours: bytes of an answer besides the state
_COMPLAINT: Final = 500  # ours: bytes of standard error that are shown


class NotReadyError(LocalError):
    """The box is in the middle of something; it can be asked again soon."""


class CommandMover:
    """Runs a command for each export and import. timeout_s: for one run; limit: bytes of state."""

    def __init__(self, box: str, argv: Sequence[str], timeout_s: float, limit: int) -> None:
        self.box = box
        self.argv = tuple(argv)
        self.timeout_s = timeout_s
        self.limit = limit

    async def export(self, session: FiveTuple, right: FiveTuple) -> bytes | None:
        """Ask the command for the state of a session; raises NotReadyError, LocalError, HostError."""
        answer = await self._run("export", session, right)
        if answer.get("ready") is False:
            raise NotReadyError(f"box {self.box}: {session} cannot move now")
        text = answer.get("state")
        if text is None and "state" in answer:
            return None
        if not isinstance(text, str):
            raise self._failure('the answer has no "state"')
        try:
            state = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise self._failure('"state" is not base64') from None
        self._check(state)
        return state

    async def install(self, session: FiveTuple, right: FiveTuple, state: bytes) -> None:
        """Give the command state to put in; raises LocalError, HostError."""
        self._check(state)
        await self._run("import", session, right, state=base64.b64encode(state).decode())

    def _check(self, state: bytes) -> None:
        if len(state) > self.limit:
            raise self._failure(f"{len(state)} bytes of state are more than state_limit = {self.limit}")

    def _failure(self, text: str) -> LocalError:
        return LocalError(f"box {self.box}: {self.argv[0]}: {text}")

    async def _run(self, action: str, session: FiveTuple, right: FiveTuple, **more: str) -> dict[str, Any]:
        request = {
            "version": _VERSION,
            "action": action,
            "box": self.box,
            "session": str(session),
            "right": str(right),
            **more,
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"box {self.box}: {self.argv[0]}: {error.strerror}") from None
        try:
            async with asyncio.timeout(self.timeout_s):
                out, complaint = await self._talk(process, json.dumps(request).encode() + b"\n")
                status = await process.wait()
        except TimeoutError:
            raise self._failure(f"took longer than {self.timeout_s:g} s and was killed") from None
        finally:
            await _end(process)
        if status:
            said = complaint.decode(errors="replace").strip()
            raise self._failure(f"{action} ended with status {status}" + (f": {said}" if said else ""))
        return self._answer(out)

    async def _talk(self, process: asyncio.subprocess.Process, request: bytes) -> tuple[bytes, bytes]:
        """Write the request and read both outputs at once, so that no pipe fills up for ever."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        room = self.limit * 4 // 3 + _OVERHEAD
        _, out, complaint = await asyncio.gather(
            _write(process.stdin, request), _read(process, process.stdout, room), _first(process.stderr)
        )
        if len(out) > room:
            raise self._failure(f"wrote more than {room} bytes and was killed")
        return out, complaint

    def _answer(self, out: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(out)
        except (ValueError, RecursionError):
            raise self._failure("the answer is not JSON") from None
        if not isinstance(answer, dict):
            raise self._failure("the answer is not a JSON object")
        if "error" in answer:
            raise self._failure(str(answer["error"])[:_COMPLAINT])
        return answer


async def _write(pipe: asyncio.StreamWriter, data: bytes) -> None:
    try:
        pipe.write(data)
        await pipe.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it need not read to the end; its answer and its status count
    finally:
        pipe.close()


async def _read(process: asyncio.subprocess.Process, pipe: asyncio.StreamReader, limit: int) -> bytes:
    """All of an output; a process that writes more than the limit is killed, which ends the other pipes too."""
    parts = bytearray()
    while part := await pipe.read(65536):
        parts += part
        if len(parts) > limit:
            _kill(process)
            break
    return bytes(parts)


async def _first(pipe: asyncio.StreamReader) -> bytes:
    """The beginning of an output; the rest is read and forgotten."""
    kept = b""
    while part := await pipe.read(65536):
        kept = (kept + part)[:_COMPLAINT]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    _kill(process)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Leave nothing of the command running: its group may hold more than itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
