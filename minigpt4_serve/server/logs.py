"""Log lines of all processes: their formats, and their way to the stderr of ``minigpt4 serve``.

Ray redirects its workers' stderr to files. A worker of a local server sends its lines over a Unix socket instead, and
``LogReceiver`` writes them to the stderr of the process that started the server. Ray's own messages stay in the files.
"""

import json
import logging
import logging.handlers
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigpt4_serve.settings import LogFormat, LogLevel

__all__ = ["REQUEST_LOGGER", "JsonFormatter", "LogReceiver", "TextFormatter", "configure_logging", "resolve_log_format"]

REQUEST_LOGGER = "minigpt4_serve.requests"
"""Of the lines of requests."""
_REQUEST_FIELDS = {"method", "path", "status", "seconds", "request_id"}

_SEND_TIMEOUT_S = 0.1  # a line that isn't taken by then is dropped: requests go on
_BACKLOG = 64
_READ_BYTES = 65536


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON: time, level, logger, event, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Exceptions come with their traceback: it names code, never the content of a request."""
        line = {
            "time": _utc_time(record) + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A log record as a line of text: time in UTC, level, logger, event, and the record's own fields.

    The line of a request is a sentence without its times; JSON has them all.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Exceptions follow with their traceback, on lines of their own."""
        values = _fields(record)
        if record.name == REQUEST_LOGGER and values.keys() >= _REQUEST_FIELDS:
            return f"{_utc_time(record)}Z {_describe_request(values)}"
        fields = "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
        line = f"{_utc_time(record)}Z {record.levelname} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def resolve_log_format(log_format: LogFormat) -> LogFormat:
    """``json`` or ``text``; what ``auto`` is depends on this process's stderr."""
    if log_format != "auto":
        return log_format
    return "text" if sys.stderr.isatty() else "json"


def configure_logging(level: LogLevel, log_format: LogFormat, socket_path: str | None = None) -> None:
    """Send what this package logs to stderr, or to the ``LogReceiver`` at ``socket_path``."""
    handler = logging.StreamHandler(sys.stderr) if socket_path is None else _SocketHandler(socket_path)
    handler.setFormatter(TextFormatter() if resolve_log_format(log_format) == "text" else JsonFormatter())
    logger = logging.getLogger("minigpt4_serve")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


class _SocketHandler(logging.handlers.SocketHandler):
    """Sends formatted lines to a Unix socket, and connects again after an error."""

    def __init__(self, path: str) -> None:
        super().__init__(path, None)

    def makePickle(self, record: logging.LogRecord) -> bytes:  # noqa: N802 - logging's name
        """The bytes to send: a line."""
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def makeSocket(self, timeout: float = _SEND_TIMEOUT_S) -> socket.socket:  # noqa: N802 - logging's name
        """A connection that drops what can't be sent at once."""
        return super().makeSocket(timeout)


class LogReceiver:
    """Writes the lines that other processes of this user send to this process's stderr, until it is closed.

    Args:
        path: of the Unix socket, for ``configure_logging``; in a folder of this user only.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen(_BACKLOG)
        self._stop, self._stopped = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for waiting in (self._listening, self._stopped):
            waiting.setblocking(False)
            self._selector.register(waiting, selectors.EVENT_READ, bytearray())
        self._thread = threading.Thread(target=self._run, name="minigpt4-logs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what has been sent, then close the socket. Safe to call twice."""
        self._stop.close()
        self._thread.join(timeout=5)
        with suppress(OSError):
            Path(self.path).unlink(missing_ok=True)

    def _run(self) -> None:
        stopping = False
        with self._selector:
            # After the stop signal, what has been sent is still read.
            while ready := self._selector.select(0 if stopping else None):
                for key, _ in ready:
                    if key.fileobj is self._stopped:
                        stopping = True
                        self._selector.unregister(self._stopped)
                        self._stopped.close()
                    elif key.fileobj is self._listening:
                        self._accept()
                    else:
                        self._read(key)
            for key in list(self._selector.get_map().values()):
                _open_socket(key).close()

    def _accept(self) -> None:
        with suppress(OSError):
            sender, _ = self._listening.accept()
            sender.setblocking(False)
            self._selector.register(sender, selectors.EVENT_READ, bytearray())

    def _read(self, key: selectors.SelectorKey) -> None:
        """Write the complete lines; one that its sender didn't finish is dropped."""
        sender = _open_socket(key)
        unfinished: bytearray = key.data
        try:
            received = sender.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._selector.unregister(sender)
            sender.close()
            return
        unfinished += received
        lines, newline, _ = unfinished.rpartition(b"\n")
        if newline:
            del unfinished[: len(lines) + 1]
            with suppress(OSError, ValueError):  # stderr may be closed
                sys.stderr.write(f"{lines.decode(errors='replace')}\n")
                sys.stderr.flush()


def _open_socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def _utc_time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}"


def _describe_request(line: Mapping[str, Any]) -> str:
    """Such as ``POST /v1/chat/completions 200, 0.21 s, 14 tokens (req-1a2b)``."""
    parts = [f"{line['method']} {line['path']} {line['status']}", f"{line['seconds']:.2f} s"]
    if "completion_tokens" in line:
        parts.append(f"{line['completion_tokens']} tokens")
    if "refusal" in line:
        parts.append(str(line["refusal"]))
    if line.get("cut_short"):
        parts.append("cut short")
    return f"{', '.join(parts)} ({line['request_id']})"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})
