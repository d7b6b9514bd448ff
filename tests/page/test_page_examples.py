"""The example images of the page: drawn by ``tools.draw_examples``, and answered by the embedded model."""

import re
from pathlib import Path

import openai
import pytest
from PIL import Image, ImageChops, ImageStat

from minigpt4_serve.client import DEFAULT_QUESTION
from minigpt4_serve.images import image_url_part
from tools.draw_examples import PAGE_FOLDER, draw_examples, main

# What is true of each image, by the scene it was drawn from; the questions are asked of it on the page.
TRUTH = {
    "village.png": ("red house", "green tree"),
    "night.png": ("black",),
    "pond.png": ("three",),
    "love.png": ("red heart",),
}
TASKS = (PAGE_FOLDER / "tasks.js").read_text(encoding="utf-8")
EXAMPLES = re.findall(r'file: "([^"]+)", question: (?:"([^"]+)"|DEFAULT_QUESTION)', TASKS)
"""File and question of each example; no question is the default one."""


def _shipped() -> set[str]:
    return {path.relative_to(PAGE_FOLDER).as_posix() for path in PAGE_FOLDER.rglob("*.png")}


def test_the_shipped_images_are_the_drawn_ones() -> None:
    drawn = draw_examples()
    assert set(drawn) == _shipped()
    assert {f"examples/{file}" for file, _ in EXAMPLES} | {"icon.png"} == set(drawn)
    for name, image in drawn.items():
        with Image.open(PAGE_FOLDER / name) as shipped:
            difference = ImageChops.difference(shipped.convert("RGB"), image)
        assert max(ImageStat.Stat(difference).mean) < 2, name  # only what a palette of 64 colors rounds
        assert (PAGE_FOLDER / name).stat().st_size < 10_000


def test_the_script_writes_all_that_ships(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")} == _shipped()


@pytest.mark.parametrize(("file", "question"), EXAMPLES, ids=[file for file, _ in EXAMPLES])
def test_the_embedded_model_answers_about_them(file: str, question: str, tiny_url: str) -> None:
    parts = [
        image_url_part((PAGE_FOLDER / "examples" / file).read_bytes()),
        {"type": "text", "text": question or DEFAULT_QUESTION},
    ]
    client = openai.OpenAI(base_url=f"{tiny_url.rstrip('/')}/v1", api_key="none")
    chat = client.chat.completions.create(model="minigpt4-tiny", messages=[{"role": "user", "content": parts}])
    answer = (chat.choices[0].message.content or "").lower()
    assert all(fact in answer for fact in TRUTH[file])
