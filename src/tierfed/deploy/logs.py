"""Log lines of a process: for people, or one JSON object a line."""

import json
import logging
import sys
from datetime import UTC, datetime


class _Json(logging.Formatter):
    """One object a line: time (UTC), level, node, where, message, and the traceback of an error."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self.node = node

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node": self.node,
            "where": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Text(logging.Formatter):
    """2026-01-31 12:00:00 warning fog-0: message"""

    def __init__(self, node: str) -> None:
        super().__init__()
        self.node = node

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record):%Y-%m-%d %H:%M:%S} {record.levelname.lower()} {self.node}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def begin_log(kind: str, node: str) -> None:
    """Lines of `tierfed` go to the standard error.

    :param kind: "text" or "json"; :param node: the name of this process
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(node) if kind == "json" else _Text(node))
    log = logging.getLogger("tierfed")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
