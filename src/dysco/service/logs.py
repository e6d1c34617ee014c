"""Logs: a constant event name with fields, as text for people or one JSON object a line, written off the loop."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
from datetime import UTC, datetime
from typing import Any, Final

LOGGER: Final = logging.getLogger("dysco")
_LIMIT: Final = 100_000


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event; the name is constant, what changes is in the fields."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"fields": fields})


def start(style: str, level: str) -> logging.handlers.QueueListener:
    """Write logs to standard error from a thread of their own; `stop()` of what is returned flushes them."""
    lines: queue.Queue[Any] = queue.Queue(_LIMIT)
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_Json() if style == "json" else _Text())
    LOGGER.handlers[:] = [_Dropping(lines)]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    listener = _Listener(lines, output)
    listener.start()
    return listener


class _Listener(logging.handlers.QueueListener):
    """Ends after what is written down already, also when there is no room for a word more."""

    def __init__(self, lines: queue.Queue[Any], output: logging.Handler) -> None:
        super().__init__(lines, output)
        self._lines = lines

    def enqueue_sentinel(self) -> None:
        self._lines.put(None)


class _Dropping(logging.handlers.QueueHandler):
    """Loses lines when the reader is too slow, and never waits."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # As it is: made ready for another process, the name of the event would have the traceback in it.
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_show(value)}" for key, value in _fields(record).items())
        line = f"{_when(record)} {record.levelname.lower()} {record.msg} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        body = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "event": record.msg,
            **_fields(record),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return _quoted(body)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _when(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _show(value: Any) -> str:
    text = str(value)
    return _quoted(text) if not text or " " in text or '"' in text or not text.isprintable() else text


def _quoted(value: Any) -> str:
    """As JSON: readable, but with nothing that a terminal obeys or takes for the end of a line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value, default=str)
