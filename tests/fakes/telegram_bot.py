"""The real ``minigpt4-telegram`` between a fake Telegram and the fake OpenAI server."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot_processes import BotProcess, running_bot
from drawing import draw, encode
from fakes.openai_server import OpenAIServer, bots_server
from fakes.telegram import BOT, TOKEN, FakeTelegram, Sent

GENEROUS = "limits: {user_per_minute: null, user_per_day: null, chat_per_minute: null}\n"
RED = encode(draw("red"))
BLUE = encode(draw("blue"))
_people = itertools.count(500_001)


def new_user() -> int:
    """The id of a new user and of their private chat; negated, the id of a new group."""
    return next(_people)


def mention(text: str = "") -> str:
    return f"@{BOT['username']} {text}".strip()


def environment(telegram: FakeTelegram, base_url: str) -> dict[str, str]:
    return {"TELEGRAM_TOKEN": TOKEN, "TELEGRAM_BASE_URL": f"{telegram.url}/bot", "MINIGPT4_BASE_URL": base_url}


@dataclass
class Scene:
    telegram: FakeTelegram
    vision: OpenAIServer
    folder: Path
    bot: BotProcess | None = None

    @asynccontextmanager
    async def running(self, settings: str = GENEROUS, **more: Any) -> AsyncIterator[BotProcess]:
        """Run the bot's process until the end of the block."""
        variables = {**environment(self.telegram, self.vision.url), **more}
        async with running_bot(
            "minigpt4-telegram", ready="Running.", folder=self.folder, settings=settings, **variables
        ) as bot:
            self.bot = bot
            yield bot
        assert TOKEN not in bot.printed

    async def answer(self, chat: int, count: int = 1) -> Sent:
        """The last of the bot's ``count`` messages, once its answer is complete."""
        return await self.telegram.answer(chat, count)

    async def works(self, text: str = "Does it work?") -> None:
        """Check that a new user's question is answered."""
        anna = new_user()
        await self.telegram.say(anna, anna, text, **self.telegram.photo(RED))
        assert (await self.answer(anna)).text == f"I see 1 picture(s). You asked: {text}"


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """Run both servers, without the bot."""
    async with FakeTelegram().running() as telegram:
        with bots_server() as vision:
            yield Scene(telegram, vision, folder)
        assert telegram.mistakes == []
