"""Logging and shutdown of the Discord bot, without a connection."""

import asyncio
import logging
from pathlib import Path

import pytest
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.discord import connection as discord_connection
from minigpt4_bots.discord.connection import _quiet_library


@pytest.mark.parametrize(
    ("message", "with_traceback"),
    [("Attempting a reconnect in %.2fs", False), ("Ignoring exception in %s", True)],
)
def test_only_lost_connections_are_logged_without_traceback(
    message: str, with_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    library = logging.getLogger("discord.client")
    before = list(library.filters)
    _quiet_library()
    try:
        try:
            raise RuntimeError
        except RuntimeError:
            library.exception(message, 1)
    finally:
        library.filters[:] = before
    assert ("RuntimeError" in caplog.text) is with_traceback


async def test_without_signals_for_loops_it_runs_until_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = asyncio.Event()
    closed = asyncio.Event()

    async def stay_connected(*_: object) -> None:
        connected.set()
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    def windows(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(discord_connection, "_stay_connected", stay_connected)
    monkeypatch.setattr(discord_connection, "_quiet_library", lambda: None)
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", windows)
    running = asyncio.create_task(discord_connection.run(BotSettings(database=tmp_path / "db"), None, "token"))
    async with asyncio.timeout(60):
        await connected.wait()
        running.cancel()  # as asyncio.run does on Ctrl-C
        await running
    assert closed.is_set()
