"""A bot's command line as a process of its own, as people run it, driven from a test's event loop."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_OURS = ("MINIGPT4_", "DISCORD_", "TELEGRAM_")
BIN = Path(sys.executable).parent


class BotProcess:
    """A started bot; ``printed`` is all that it has written so far, to either stream."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.printed = ""
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.printed += line.decode()
            self._news.set()
        self._news.set()

    async def prints(self, words: str, *, within: float = 150, times: int = 1) -> None:
        """Wait until it has written ``words`` so many times."""
        try:
            async with asyncio.timeout(within):
                while self.printed.count(words) < times:
                    assert not self._reader.done(), f"the bot ended; it printed:\n{self.printed}"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {words!r} within {within} s; it printed:\n{self.printed}") from None

    async def ends(self, *, within: float = 90) -> int:
        """Wait for the end; returns the exit status."""
        async with asyncio.timeout(within):
            status = await self.process.wait()
            await self._reader
            return status

    async def kill(self) -> None:
        """As the kernel does it, without a chance to say goodbye."""
        self.process.kill()
        await self.ends()

    async def terminate(self) -> int:
        """As an operator does it."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ends()

    def memory_mb(self) -> float:
        """Resident memory of the process."""
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
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
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
