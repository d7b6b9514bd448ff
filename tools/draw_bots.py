"""Draw docs/discord.png and docs/telegram.png: real conversations with the bots, in imitations of the two apps.

    python -m tools.draw_bots

``tests/record_bots.py`` runs the real server with the embedded model and both real bots against the tests' fakes of
Discord and Telegram; this module paints the messages. Texts and buttons are real, the layout is approximate. It takes a
minute on two cores. Run it after a change of how answers look.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Message", "main", "paint_discord", "paint_telegram"]

QUESTIONS = ("What is in this picture?", "Where is the green square?")

_RECORDER = Path(__file__).resolve().parents[1] / "tests" / "record_bots.py"
_WIDTH = 1120  # pixels, of the picture
_LINE = 36  # pixels, from line to line


@dataclass(frozen=True)
class Message:
    """One message as it is painted; a button's label begins with an emoji."""

    text: str
    by_bot: bool
    button: str = ""
    image: Image.Image | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Record both conversations, then paint them into a folder. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.draw_bots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"), help="of the pictures; %(default)s")
    folder = parser.parse_args(arguments).folder
    recorded = record(draw_image())
    for platform, messages in recorded.items():
        for message in messages:
            print(f"{platform}, {'bot' if message.by_bot else 'ann'}: {message.text} {message.button}")
    paint_discord(recorded["discord"]).save(folder / "discord.png", optimize=True)
    paint_telegram(recorded["telegram"]).save(folder / "telegram.png", optimize=True)
    return 0


def draw_image() -> Image.Image:
    """The image of the conversation."""
    image = Image.new("RGB", (360, 270), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((50, 60, 170, 180), fill="red")
    draw.rectangle((220, 110, 310, 200), fill="green")
    return image


def record(image: Image.Image) -> dict[str, list[Message]]:
    """Ask both bots about the image. Returns each platform's messages; the first one carries the image.

    Raises:
        CalledProcessError: the recorder failed; its errors are on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        image.save(file := Path(folder) / "image.png")
        command = [sys.executable, str(_RECORDER), str(file), *QUESTIONS]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    return {
        platform: [Message(**message, image=None if number else image) for number, message in enumerate(messages)]
        for platform, messages in json.loads(printed).items()
    }


def paint_discord(messages: Sequence[Message]) -> Image.Image:
    """Discord's dark theme."""
    image = Image.new("RGB", (_WIDTH, 2000), "#313338")
    draw = ImageDraw.Draw(image)
    y = 24
    before = ""
    for message in messages:
        if before:
            draw.line([(58, y + 24), (58, y + 12), (100, y + 12)], fill="#4e5058", width=4)
            draw.text((110, y), before, font=_font(19), fill="#949ba4")
            y += 30
        _paint_discord_header(draw, y, "eyes" if message.by_bot else "ann", bot=message.by_bot)
        for line in _wrap(draw, message.text, _WIDTH - 160):
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
        if message.image is not None:
            image.paste(message.image, (110, y))
            y += message.image.height + 24
        if message.button:
            _paint_discord_button(draw, y, message.button)
            y += 80
        before = f"@{'eyes' if message.by_bot else 'ann'}  {message.text}"
    return image.crop((0, 0, _WIDTH, y))


def _paint_discord_header(draw: ImageDraw.ImageDraw, y: int, name: str, *, bot: bool) -> None:
    draw.ellipse((24, y, 92, y + 68), fill="#5865f2" if bot else "#f47fff")
    draw.text((58, y + 34), name[0].upper(), font=_font(32), fill="white", anchor="mm")
    draw.text((110, y), name, font=_font(24), fill="white")
    x = 122 + draw.textlength(name, font=_font(24))
    if bot:
        draw.rounded_rectangle((x, y + 3, x + 52, y + 28), 6, fill="#5865f2")
        draw.text((x + 26, y + 15), "APP", font=_font(17), fill="white", anchor="mm")
        x += 64
    draw.text((x, y + 6), "Today at 12:00", font=_font(18), fill="#949ba4")


def _paint_discord_button(draw: ImageDraw.ImageDraw, y: int, label: str) -> None:
    text = label.split(" ", 1)[1]  # the emoji in front of it is drawn: few fonts have it
    end = 186 + draw.textlength(text, font=_font(22))
    draw.rounded_rectangle((110, y, end, y + 52), 8, fill="#4e5058")
    draw.arc((128, y + 14, 152, y + 38), 40, 320, fill="#5fb2f2", width=4)
    draw.text((164, y + 12), text, font=_font(22), fill="white")


def paint_telegram(messages: Sequence[Message]) -> Image.Image:
    """Telegram's light theme; the user's own messages are on the right."""
    image = Image.new("RGB", (_WIDTH, 2000), "#c8d9b4")
    draw = ImageDraw.Draw(image)
    y = 24
    for message in messages:
        photo = message.image
        lines = _wrap(draw, message.text, 720)
        text_width = max(int(draw.textlength(line, font=_font(25))) for line in lines) + 110
        width = max(text_width, photo.width if photo else 0, 360)
        if photo is not None:
            photo = photo.resize((width, round(photo.height * width / photo.width)))
        height = 60 + _LINE * (len(lines) - 1) + (photo.height if photo else 0)
        x = 24 if message.by_bot else _WIDTH - 24 - width
        draw.rounded_rectangle((x, y, x + width, y + height), 18, fill="white" if message.by_bot else "#effdde")
        if photo is not None:
            image.paste(photo, (x, y))
        below = y + height - 46
        for number, line in enumerate(reversed(lines)):
            draw.text((x + 18, below - _LINE * number), line, font=_font(25), fill="black")
        draw.text((x + width - 72, below + 12), "12:00", font=_font(17), fill="#7a9a6a")
        y += height + 8
        if message.button:
            label = message.button.split(" ", 1)[1]
            draw.rounded_rectangle((x, y, x + width, y + 52), 14, fill="#8fa97c")
            middle = x + width // 2
            draw.text((middle + 16, y + 26), label, font=_font(22), fill="white", anchor="mm")
            begin = middle - draw.textlength(label, font=_font(22)) / 2 - 18
            draw.arc((begin - 12, y + 14, begin + 12, y + 38), 40, 320, fill="white", width=4)
            y += 60
        y += 16
    return image.crop((0, 0, _WIDTH, y))


def _wrap(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    """The text in lines of at most ``width`` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=_font(25)) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    sys.exit(main())
