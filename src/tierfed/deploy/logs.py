"""Log lines of a process: for people, or one JSON object a line, and nothing else on the standard error."""

import faulthandler
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

import typer

from tierfed.deploy.handshakes import refused
from tierfed.errors import InputError

_LOG = logging.getLogger(__name__)
_STDERR = 2


def event(name: str, **more: Any) -> dict[str, Any]:
    """`extra` of a log line: a word that programs look for. :param more: "node" and "round", if they are others"""
    return {"event": name, **more}


@dataclass(kw_only=True, eq=False)
class Log:
    """What all lines of a process have in common. :param round: the one that is at work, from 1; none: none yet"""

    node: str
    round: Callable[[], int | None] = lambda: None


class _Json(logging.Formatter):
    """One object a line: time (UTC), level, node, round, event, where, message, and the traceback of an error."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def format(self, record: logging.LogRecord) -> str:
        more = vars(record)
        entry = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node": more.get("node", self.log.node),
            "round": more["round"] if "round" in more else self.log.round(),
            "event": more.get("event", "note"),
            "where": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Text(logging.Formatter):
    """2026-01-31 12:00:00 warning fog-0: message"""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record):%Y-%m-%d %H:%M:%S} {record.levelname.lower()} {self.log.node}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


@contextmanager
def logged(kind: str, node: str) -> Iterator[Log]:
    """Lines of `tierfed` go to the standard error. What libraries write there by themselves becomes a line too; the
    handshakes that gRPC has refused are told in words. With "json" bad input ends with a line as well, and exit code 2.

    :param kind: "text" or "json"
    :param node: the name of this process
    """
    log, logger = Log(node=node), logging.getLogger("tierfed")
    before = logger.handlers, logger.propagate, logger.level
    sys.stderr.flush()
    with os.fdopen(os.dup(_STDERR), "w", encoding="utf-8", errors="backslashreplace") as real:
        handler = logging.StreamHandler(real)
        handler.setFormatter(_Json(log) if kind == "json" else _Text(log))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
        try:
            with _caught(real, kind == "json"):
                yield log
        except InputError as err:
            if kind != "json":
                raise
            _LOG.error("%s", " ".join(str(err).split()), extra=event("error"))
            raise typer.Exit(2) from None
        finally:
            logger.handlers, logger.propagate = before[:2]
            logger.setLevel(before[2])


@contextmanager
def _caught(real: IO[str], as_json: bool) -> Iterator[None]:
    """Whatever is written to the standard error passes through this process. A crash in a library is told past it."""
    source, sink = os.pipe()
    os.dup2(sink, _STDERR)
    os.close(sink)
    crashes = faulthandler.is_enabled()
    faulthandler.enable(real)
    reader = threading.Thread(target=_read, args=(source, real, as_json), name="standard error", daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real.fileno(), _STDERR)  # the last end of the pipe that is written to
        reader.join()
        faulthandler.enable(_STDERR) if crashes else faulthandler.disable()


def _read(source: int, real: IO[str], as_json: bool) -> None:
    with os.fdopen(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.rstrip("\n")
            if why := refused(text):
                _LOG.warning("refused a connection: %s", why, extra=event("refused"))
            elif not as_json:
                real.write(f"{text}\n")
                real.flush()
            elif text.strip():
                _LOG.info("%s", text, extra=event("stderr"))
