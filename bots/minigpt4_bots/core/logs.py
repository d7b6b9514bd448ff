"""Logging to stderr without secrets."""

import logging
import re
from collections.abc import Iterable
from enum import StrEnum

__all__ = ["HideSecrets", "LogLevel", "set_up_logging"]

_QUIET_LIBRARIES = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "openai",
    "telegram",
    "discord",
    "apscheduler",
    "asyncio",
)


class HideSecrets(logging.Filter):
    """Removes tokens and keys from records. Libraries log URLs, and Telegram's URLs contain the token."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        words = sorted((re.escape(word) for word in secrets if len(word) >= 4), key=len, reverse=True)
        self._pattern = re.compile("|".join([*words, r"\b\d{6,12}:[\w-]{30,}"]))

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record; always True."""
        record.msg = self._pattern.sub("***", record.getMessage())
        record.args = ()
        if record.exc_info and record.exc_info[1] is not None:
            # Exception texts may quote URLs, so the traceback is formatted and cleaned here.
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = self._pattern.sub("***", text)
            record.exc_info = None
        return True


class LogLevel(StrEnum):
    """The lowest severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def set_up_logging(level: LogLevel, secrets: Iterable[str]) -> None:
    """Log to stderr through ``HideSecrets``; libraries log warnings and errors only."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(HideSecrets(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
