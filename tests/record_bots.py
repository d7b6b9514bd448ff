"""Record conversations with the real bots, the real server and the fake platforms, for ``tools/draw_bots.py``.

``python tests/record_bots.py IMAGE QUESTION…`` asks both bots about an image file and prints what was said as JSON: for
each platform a list of messages with ``text``, ``by_bot`` and ``button``, the label of the button below it.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from bot_processes import running_bot
from fakes import discord_bot, telegram_bot
from fakes.discord import Upload, running_discord
from fakes.telegram import FakeTelegram
from processes import running_server

Messages = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    options = parser.parse_args()
    image = options.image.read_bytes()
    with running_server("--model-name", "minigpt4-tiny") as url, tempfile.TemporaryDirectory() as folder:
        recorded = {
            "discord": asyncio.run(record_discord(f"{url}/v1", image, options.questions, Path(folder))),
            "telegram": asyncio.run(record_telegram(f"{url}/v1", image, options.questions, Path(folder))),
        }
    print(json.dumps(recorded))


async def record_discord(base_url: str, image: bytes, questions: list[str], folder: Path) -> Messages:
    """The first question mentions the bot and has the image; the others reply to its answers."""
    messages: Messages = []
    async with running_discord() as discord:
        environment = discord_bot.environment(discord, base_url)
        async with running_bot("minigpt4-discord", folder=folder, settings=discord_bot.GENEROUS, **environment):
            channel = await discord.channel()
            ann = discord.user("ann")
            last = None
            for question in questions:
                files = [Upload(image)] if last is None else []
                asked = await discord.says(
                    channel, ann, question, attachments=files, mention=last is None, reply_to=last
                )
                answer = await discord.answer_to(asked, ends="Regenerate", within=60)
                mention = "" if last else f"@{discord.bot.name} "
                last = answer.last
                messages.append({"text": f"{mention}{question}", "by_bot": False, "button": ""})
                messages.append({"text": answer.text, "by_bot": True, "button": next(iter(last.buttons()))})
    return messages


async def record_telegram(base_url: str, image: bytes, questions: list[str], folder: Path) -> Messages:
    """A private chat; the first question is the caption of the image."""
    messages: Messages = []
    ann = telegram_bot.new_user()
    async with FakeTelegram().running() as telegram:
        environment = telegram_bot.environment(telegram, base_url)
        settings = telegram_bot.GENEROUS
        ready = "Running."
        async with running_bot("minigpt4-telegram", ready=ready, folder=folder, settings=settings, **environment):
            for number, question in enumerate(questions):
                photo = {} if number else telegram.photo(image)
                await telegram.say(ann, ann, question, **photo)
                answer = await telegram.answer(ann, number + 1)
                messages.append({"text": question, "by_bot": False, "button": ""})
                messages.append({"text": answer.text, "by_bot": True, "button": answer.labels[0]})
    return messages


if __name__ == "__main__":
    main()
