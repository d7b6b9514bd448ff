"""The Discord bot's connection without a connection: what is logged, and how it ends."""

import logging

import pytest
from minigpt4_bots.discord_connection import _quieten_library


@pytest.mark.parametrize(
    ("message", "with_traceback"),
    [("Attempting a reconnect in %.2fs", False), ("Ignoring exception in %s", True)],
)
def test_only_lost_connections_are_logged_without_traceback(
    message: str, with_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    library = logging.getLogger("discord.client")
    before = list(library.filters)
    _quieten_library()
    try:
        try:
            raise RuntimeError
        except RuntimeError:
            library.exception(message, 1)
    finally:
        library.filters[:] = before
    assert ("RuntimeError" in caplog.text) is with_traceback
