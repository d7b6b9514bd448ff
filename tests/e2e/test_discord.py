"""Questions about an image and follow-ups on a fake Discord get answers from the server with the embedded model."""

from pathlib import Path

import pytest
from bot_processes import running_bot
from drawing import draw, encode
from fakes.discord import Upload, running_discord
from fakes.discord_bot import GENEROUS, environment

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


async def test_questions_and_follow_ups_on_discord(server_url: str, tmp_path: Path) -> None:
    drawn = Upload(encode(draw("red", (320, 240))))
    async with running_discord() as discord:
        variables = environment(discord, server_url)
        async with running_bot("minigpt4-discord", folder=tmp_path, settings=GENEROUS, **variables):
            channel = await discord.channel()
            ann = discord.user()
            asked = await discord.says(channel, ann, "What is in this picture?", attachments=[drawn], mention=True)
            answer = await discord.answer_to(asked, ends="Regenerate")
            assert "red" in answer.text
            assert "circle" in answer.text
            again = await discord.says(channel, ann, "How many objects are there?", reply_to=answer.last)
            assert "one" in (await discord.answer_to(again, ends="Regenerate")).text.lower()
            by_command = await discord.command(channel, ann, "ask", question="What is the background?", picture=drawn)
            assert "white" in (await discord.answer_to(by_command, ends="Regenerate")).text
        assert discord.violations == []
        assert discord.limits.refused == []
