"""Logging."""

import io
import logging

import pytest
from minigpt4_bots.core.logs import HideSecrets, LogLevel, set_up_logging

TOKEN = "123456789:AAE-secret_secret_secret_secret_12345"


def test_log_levels_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr(logging, "basicConfig", lambda *, level, **_: levels.append(level))
    for level in LogLevel:
        set_up_logging(level, [])
    assert len(set(levels)) == len(LogLevel) >= 4
    assert set(levels) <= set(logging.getLevelNamesMapping())


@pytest.mark.parametrize(
    "message",
    [f"POST https://api.telegram.org/bot{TOKEN}/getMe", "key sk-secret-key-1234", "another 987654321:" + "B" * 35],
)
def test_logs_hold_no_secrets(message: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(HideSecrets([TOKEN, "sk-secret-key-1234"]))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info("%s", message)
    try:
        raise ValueError(message)
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "***" in text
    assert "ValueError" in text
    for secret in (TOKEN, "sk-secret", "B" * 35):
        assert secret not in text
