"""Draw docs/discord.png: a question and its answer as they look on Discord. Run it after changing how answers look.

The words are what the bot sends; the looks are an imitation of the Discord client's dark theme.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BACK, TEXT, DIM, LINK, BUTTON = "#313338", "#dbdee1", "#949ba4", "#c9cdfb", "#4e5058"
WIDTH = 1120


def main() -> None:
    """Draw the picture into the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=Path("docs/discord.png"))
    parser.add_argument("--answer", default="A small green square is below a large red circle.")
    chosen = parser.parse_args()
    image = Image.new("RGB", (WIDTH, 640), BACK)
    draw = ImageDraw.Draw(image)
    _head(draw, 24, "ann", "#f47fff", bot=False)
    x = _word(draw, 110, 58, "@eyes", LINK, "#3c4270")
    _word(draw, x + 10, 58, "what is in this picture?", TEXT)
    image.paste(_question(), (110, 104))
    draw.line([(58, 420), (58, 402), (100, 402)], fill="#4e5058", width=4)
    draw.text((110, 390), "@ann  @eyes what is in this picture?", font=_font(19), fill=DIM)
    _head(draw, 426, "eyes", "#5865f2", bot=True)
    _word(draw, 110, 460, chosen.answer, TEXT)
    draw.rounded_rectangle((110, 512, 296, 564), 8, fill=BUTTON)
    draw.arc((128, 526, 152, 550), 40, 320, fill="#5fb2f2", width=4)
    draw.text((164, 524), "Regenerate", font=_font(22), fill="white")
    chosen.file.parent.mkdir(parents=True, exist_ok=True)
    image.crop((0, 0, WIDTH, 590)).save(chosen.file, optimize=True)


def _question() -> Image.Image:
    """The picture that is asked about."""
    picture = Image.new("RGB", (360, 270), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((110, 30, 250, 170), fill="red")
    draw.rectangle((155, 200, 205, 250), fill="green")
    return picture


def _head(draw: ImageDraw.ImageDraw, y: int, name: str, colour: str, *, bot: bool) -> None:
    draw.ellipse((24, y, 92, y + 68), fill=colour)
    draw.text((58, y + 34), name[0].upper(), font=_font(32), fill="white", anchor="mm")
    draw.text((110, y), name, font=_font(24), fill="white")
    x = 122 + draw.textlength(name, font=_font(24))
    if bot:
        draw.rounded_rectangle((x, y + 3, x + 52, y + 28), 6, fill="#5865f2")
        draw.text((x + 26, y + 15), "APP", font=_font(17), fill="white", anchor="mm")
        x += 64
    draw.text((x, y + 6), "Today at 12:00", font=_font(18), fill=DIM)


def _word(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, back: str | None = None) -> float:
    """Write a text, on a coloured ground if given; returns where it ends."""
    end = x + draw.textlength(text, font=_font(25))
    if back:
        draw.rounded_rectangle((x - 3, y - 1, end + 3, y + 33), 5, fill=back)
    draw.text((x, y), text, font=_font(25), fill=colour)
    return end


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    main()
