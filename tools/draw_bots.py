"""Draw docs/discord.png and docs/telegram.png: real conversations with the bots, in imitations of the two programs.

Runs the real server with the embedded model and both real bots against the tests' stand-ins for Discord and Telegram,
asks about a drawn picture, and paints what the bots sent: words and buttons are theirs, looks are approximate. A minute
on two cores: ``python tools/draw_bots.py``. Run it after changing how answers look.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from bot_processes import running_bot
from drawing import encode
from fakes import discord_bot, telegram_bot
from fakes.discord import Upload, running_discord
from fakes.telegram import FakeTelegram
from fakes.vision import FakeVision
from processes import running_server

QUESTIONS = ("What is in this picture?", "Where is the green square?")
WIDTH, _LINE = 1120, 36


@dataclass
class Said:
    """One message as it is to be painted."""

    words: str
    by_bot: bool
    button: str = ""
    picture: Image.Image | None = None


def main() -> None:
    """Ask, then paint into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    folder = parser.parse_args().folder
    with running_server("--model-name", "minigpt4-tiny") as url:
        on_discord = asyncio.run(_ask_on_discord(f"{url}/v1"))
        on_telegram = asyncio.run(_ask_on_telegram(f"{url}/v1"))
    for said in on_discord + on_telegram:
        print(f"{'bot' if said.by_bot else 'ann'}: {said.words} {said.button}")
    paint_discord(on_discord).save(folder / "discord.png", optimize=True)
    paint_telegram(on_telegram).save(folder / "telegram.png", optimize=True)


def _drawn() -> Image.Image:
    """The picture that is asked about."""
    picture = Image.new("RGB", (360, 270), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((50, 60, 170, 180), fill="red")
    draw.rectangle((220, 110, 310, 200), fill="green")
    return picture


async def _ask_on_discord(base_url: str) -> list[Said]:
    picture, said = _drawn(), list[Said]()
    with tempfile.TemporaryDirectory() as folder:
        async with running_discord() as discord:
            told = discord_bot.environment(discord, base_url)
            async with running_bot("minigpt4-discord", folder=Path(folder), settings=discord_bot.GENEROUS, **told):
                channel, ann, last = await discord.channel(), discord.user("ann"), None
                for question in QUESTIONS:
                    files = [] if last else [Upload(encode(picture))]
                    asked = await discord.says(
                        channel, ann, question, attachments=files, mention=last is None, reply_to=last
                    )
                    answer = await discord.answer_to(asked, ends="Regenerate", within=60)
                    name = "" if last else f"@{discord.bot.name} "
                    said.append(Said(f"{name}{question}", by_bot=False, picture=None if last else picture))
                    last = answer.last
                    said.append(Said(answer.text, by_bot=True, button=next(iter(last.buttons()))))
    return said


async def _ask_on_telegram(base_url: str) -> list[Said]:
    picture, said, ann = _drawn(), list[Said](), telegram_bot.somebody()
    with tempfile.TemporaryDirectory() as folder:
        async with FakeTelegram().running() as telegram:
            here = telegram_bot.Scene(telegram, FakeVision(), Path(folder))
            told = telegram_bot.environment(telegram, base_url)
            ready, settings = "Running.", telegram_bot.GENEROUS
            async with running_bot("minigpt4-telegram", ready=ready, folder=here.folder, settings=settings, **told):
                for number, question in enumerate(QUESTIONS):
                    photo = {} if number else telegram.photo(encode(picture))
                    await telegram.say(ann, ann, question, **photo)
                    answer = await here.answer(ann, number + 1)
                    said.append(Said(question, by_bot=False, picture=None if number else picture))
                    said.append(Said(answer.text, by_bot=True, button=answer.labels[0]))
    return said


def paint_discord(conversation: list[Said]) -> Image.Image:
    """Discord's dark theme."""
    image = Image.new("RGB", (WIDTH, 2000), "#313338")
    draw = ImageDraw.Draw(image)
    y, before = 24, ""
    for said in conversation:
        if before:
            draw.line([(58, y + 24), (58, y + 12), (100, y + 12)], fill="#4e5058", width=4)
            draw.text((110, y), before, font=_font(19), fill="#949ba4")
            y += 30
        _discord_head(draw, y, "eyes" if said.by_bot else "ann", bot=said.by_bot)
        for line in _lines(draw, said.words, WIDTH - 160):
            x = 110.0
            for word in line.split(" "):
                is_mention = word.startswith("@")
                end = x + draw.textlength(word, font=_font(25))
                if is_mention:
                    draw.rounded_rectangle((x - 3, y + 33, end + 3, y + 67), 5, fill="#3c4270")
                draw.text((x, y + 34), word, font=_font(25), fill="#c9cdfb" if is_mention else "#dbdee1")
                x = end + draw.textlength(" ", font=_font(25))
            y += _LINE
        y += 84 - _LINE
        if said.picture is not None:
            image.paste(said.picture, (110, y))
            y += said.picture.height + 24
        if said.button:
            _discord_button(draw, y, said.button)
            y += 80
        before = f"@{'eyes' if said.by_bot else 'ann'}  {said.words}"
    return image.crop((0, 0, WIDTH, y))


def _discord_head(draw: ImageDraw.ImageDraw, y: int, name: str, *, bot: bool) -> None:
    draw.ellipse((24, y, 92, y + 68), fill="#5865f2" if bot else "#f47fff")
    draw.text((58, y + 34), name[0].upper(), font=_font(32), fill="white", anchor="mm")
    draw.text((110, y), name, font=_font(24), fill="white")
    x = 122 + draw.textlength(name, font=_font(24))
    if bot:
        draw.rounded_rectangle((x, y + 3, x + 52, y + 28), 6, fill="#5865f2")
        draw.text((x + 26, y + 15), "APP", font=_font(17), fill="white", anchor="mm")
        x += 64
    draw.text((x, y + 6), "Today at 12:00", font=_font(18), fill="#949ba4")


def _discord_button(draw: ImageDraw.ImageDraw, y: int, label: str) -> None:
    words = label.split(" ", 1)[1]  # the emoji in front of it is drawn: few fonts have it
    end = 186 + draw.textlength(words, font=_font(22))
    draw.rounded_rectangle((110, y, end, y + 52), 8, fill="#4e5058")
    draw.arc((128, y + 14, 152, y + 38), 40, 320, fill="#5fb2f2", width=4)
    draw.text((164, y + 12), words, font=_font(22), fill="white")


def paint_telegram(conversation: list[Said]) -> Image.Image:
    """Telegram's light theme: what one says oneself stands on the right."""
    image = Image.new("RGB", (WIDTH, 2000), "#c8d9b4")
    draw = ImageDraw.Draw(image)
    y = 24
    for said in conversation:
        picture = said.picture
        lines = _lines(draw, said.words, 720)
        words = max(int(draw.textlength(line, font=_font(25))) for line in lines) + 110
        width = max(words, picture.width if picture else 0, 360)
        if picture is not None:
            picture = picture.resize((width, round(picture.height * width / picture.width)))
        height = 60 + _LINE * (len(lines) - 1) + (picture.height if picture else 0)
        x = 24 if said.by_bot else WIDTH - 24 - width
        draw.rounded_rectangle((x, y, x + width, y + height), 18, fill="white" if said.by_bot else "#effdde")
        if picture is not None:
            image.paste(picture, (x, y))
        below = y + height - 46
        for number, line in enumerate(reversed(lines)):
            draw.text((x + 18, below - _LINE * number), line, font=_font(25), fill="black")
        draw.text((x + width - 72, below + 12), "12:00", font=_font(17), fill="#7a9a6a")
        y += height + 8
        if said.button:
            label = said.button.split(" ", 1)[1]
            draw.rounded_rectangle((x, y, x + width, y + 52), 14, fill="#8fa97c")
            middle = x + width // 2
            draw.text((middle + 16, y + 26), label, font=_font(22), fill="white", anchor="mm")
            begin = middle - draw.textlength(label, font=_font(22)) / 2 - 18
            draw.arc((begin - 12, y + 14, begin + 12, y + 38), 40, 320, fill="white", width=4)
            y += 60
        y += 16
    return image.crop((0, 0, WIDTH, y))


def _lines(draw: ImageDraw.ImageDraw, words: str, width: int) -> list[str]:
    """Words in lines of at most ``width`` pixels."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=_font(25)) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main()
