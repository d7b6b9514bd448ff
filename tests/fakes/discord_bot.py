"""The real ``minigpt4-discord`` between a fake Discord and the fake OpenAI server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot_processes import BotProcess, running_bot
from drawing import draw, encode
from fakes.discord import FakeDiscord, Upload, running_discord
from fakes.openai_server import OpenAIServer, bots_server

GENEROUS = "limits: {user_per_minute: null, user_per_day: null, chat_per_minute: null}\n"


PATIENCE_S = 60.0
"""The deadline to acknowledge an interaction, instead of 3 s: a busy machine may stall for longer."""


def picture(color: str = "red", **more: Any) -> Upload:
    return Upload(encode(draw(color)), **more)


def environment(discord: FakeDiscord, base_url: str) -> dict[str, str]:
    return {
        "DISCORD_TOKEN": discord.token,
        "DISCORD_API_BASE": f"{discord.url}/api/v10",
        "DISCORD_GATEWAY_URL": f"{discord.url.replace('http', 'ws')}/gateway",
        "MINIGPT4_BASE_URL": base_url,
    }


@dataclass
class Scene:
    discord: FakeDiscord
    vision: OpenAIServer
    folder: Path
    bot: BotProcess | None = None

    @asynccontextmanager
    async def running(self, settings: str = GENEROUS, **more: Any) -> AsyncIterator[BotProcess]:
        """Run the bot's process until the end of the block."""
        started = {**environment(self.discord, self.vision.url), **more}
        async with running_bot("minigpt4-discord", folder=self.folder, settings=settings, **started) as bot:
            self.bot = bot
            yield bot


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """Run both servers, without the bot."""
    async with running_discord() as discord:
        discord.acknowledge_seconds = PATIENCE_S
        with bots_server() as vision:
            yield Scene(discord, vision, folder)
