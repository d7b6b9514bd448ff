"""Runs a bot's console script as a process, from a test's event loop."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_PREFIXES = ("MINIGPT4_", "DISCORD_", "TELEGRAM_")
BIN = Path(sys.executable).parent


class BotProcess:
    """A running bot; ``printed`` is its output so far, of both streams."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.printed = ""
        self._output = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.printed += line.decode()
            self._output.set()
        self._output.set()

    async def prints(self, words: str, *, within: float = 150, times: int = 1) -> None:
        """Wait until the output contains ``words`` that many times."""
        try:
            async with asyncio.timeout(within):
                while self.printed.count(words) < times:
                    assert not self._reader.done(), f"the bot ended; it printed:\n{self.printed}"
                    self._output.clear()
                    await self._output.wait()
        except TimeoutError:
            raise AssertionError(f"no {words!r} within {within} s; it printed:\n{self.printed}") from None

    async def ends(self, *, within: float = 90) -> int:
        """Wait for the end; returns the exit status."""
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await self._reader
            return status

    async def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        await self.ends()

    async def terminate(self) -> int:
        """Send SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ends()

    def memory_mb(self) -> float:
        """Resident memory of the process in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def running_bot(
    script: str, *words: str, ready: str | None = "Ready", folder: Path, settings: str = "", **environment: str
) -> AsyncIterator[BotProcess]:
    """Run ``script`` in ``folder`` with a settings file of that text; killed at the end if it still runs.

    Waits until it prints ``ready``, unless that is None.
    """
    file = folder / "settings.yaml"
    if settings or not file.exists():
        file.write_text(settings)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}
    process = await asyncio.create_subprocess_exec(
        str(BIN / script),
        "--settings",
        str(file),
        *words,
        cwd=folder,
        env={**inherited, "PYTHONUNBUFFERED": "1", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 22,
    )
    bot = BotProcess(process)
    try:
        if ready is not None:
            await bot.prints(ready)
        yield bot
    finally:
        if process.returncode is None:
            await bot.kill()
