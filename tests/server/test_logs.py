"""Log lines: their formats, their levels, and their way from other processes to this one's stderr."""

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minigpt4_serve.server.logs import LogReceiver, TextFormatter, configure_logging, resolve_log_format
from minigpt4_serve.settings import LogFormat

LOGGER = "minigpt4_serve.requests"

SENDER = """
import logging, sys
from minigpt4_serve.server.logs import configure_logging
configure_logging("info", "json", sys.argv[1])
for number in range(500):
    logging.getLogger("minigpt4_serve.sender").info("line", extra={"fields": {"name": sys.argv[2], "number": number}})
"""


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[logging.Logger]:
    """The package's logger is restored."""
    logger = logging.getLogger("minigpt4_serve")
    kept = logger.handlers, logger.propagate, logger.level
    yield logger
    logger.handlers, logger.propagate, level = kept
    logger.setLevel(level)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[LogReceiver]:
    receiver = LogReceiver(tmp_path / "socket")
    yield receiver
    receiver.close()


def test_lines_of_several_processes_arrive_whole(receiver: LogReceiver, capsys: pytest.CaptureFixture[str]) -> None:
    senders = [subprocess.Popen([sys.executable, "-c", SENDER, receiver.path, name]) for name in ("a", "b")]
    assert [sender.wait(timeout=60) for sender in senders] == [0, 0]
    receiver.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for name in ("a", "b"):
        assert [line["number"] for line in lines if line["name"] == name] == list(range(500))


def test_a_closed_receiver_blocks_no_sender(receiver: LogReceiver, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text", receiver.path)
    receiver.close()
    began = time.monotonic()
    for _ in range(100):
        logging.getLogger(LOGGER).info("line")
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == ""


def test_the_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    logging.getLogger(LOGGER).info("left out")
    logging.getLogger(LOGGER).warning("kept")
    assert json.loads(capsys.readouterr().err)["event"] == "kept"


def test_text_lines_name_time_level_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "text")
    logging.getLogger(LOGGER).info("request", extra={"fields": {"status": 200, "path": "/health"}})
    line = capsys.readouterr().err
    assert line.endswith('Z INFO minigpt4_serve.requests: request status=200 path="/health"\n')


def test_text_lines_are_followed_by_tracebacks() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord(LOGGER, logging.ERROR, "file.py", 1, "failed", None, sys.exc_info())
    lines = TextFormatter().format(record).splitlines()
    assert lines[0].endswith("ERROR minigpt4_serve.requests: failed")
    assert lines[-1] == "ValueError: broken"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"completion_tokens": 14, "timings": {"first_s": 0.1}}, "200, 0.25 s, 14 tokens (req-1)"),
        ({"status": 400, "refusal": "invalid_image"}, "400, 0.25 s, invalid_image (req-1)"),
        ({"cut_short": True}, "200, 0.25 s, cut short (req-1)"),
    ],
)
def test_a_request_is_a_sentence_in_text(
    fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "text")
    line = {"request_id": "req-1", "method": "POST", "path": "/v1/responses", "status": 200, "seconds": 0.2512}
    logging.getLogger(LOGGER).info("request", extra={"fields": line | fields})
    assert capsys.readouterr().err.rstrip("\n").partition("Z ")[2] == f"POST /v1/responses {words}"


@pytest.mark.parametrize(
    ("given", "terminal", "used"),
    [
        ("auto", True, "text"),
        ("auto", False, "json"),
        ("json", True, "json"),
        ("json", False, "json"),
        ("text", True, "text"),
        ("text", False, "text"),
    ],
)
def test_lines_are_text_on_a_terminal_only(
    given: LogFormat, terminal: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal(terminal))
    configure_logging("info", given)
    logging.getLogger(LOGGER).info("line")
    assert resolve_log_format(given) == used
    assert stream.getvalue().startswith("{") == (used == "json")


class Terminal(io.StringIO):
    """A stream that is a terminal, or isn't."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal
