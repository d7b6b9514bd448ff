"""The example pictures: drawn by ``tools.draw_examples``, and known to the embedded model."""

from pathlib import Path

import openai
import pytest
from PIL import Image, ImageChops, ImageStat

from minigpt4_serve.images import image_url_part
from minigpt4_serve.web.tasks import EXAMPLES, EXAMPLES_FOLDER
from tools.draw_examples import draw_examples, main

# What is true of each picture, by the scene it was drawn from; the questions are asked of it on the page.
TRUTH = {
    "village.png": ("red house", "green tree"),
    "night.png": ("black",),
    "pond.png": ("three",),
    "love.png": ("red heart",),
}


def test_what_ships_is_what_is_drawn() -> None:
    drawn = draw_examples()
    assert set(drawn) == {path.name for path in EXAMPLES_FOLDER.glob("*.png")}
    assert {example.picture for example in EXAMPLES} | {"icon.png"} == set(drawn)
    for name, picture in drawn.items():
        with Image.open(EXAMPLES_FOLDER / name) as shipped:
            difference = ImageChops.difference(shipped.convert("RGB"), picture)
        assert max(ImageStat.Stat(difference).mean) < 2, name  # only what a palette of 64 colours rounds
        assert (EXAMPLES_FOLDER / name).stat().st_size < 10_000


def test_the_script_writes_all_that_ships(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in EXAMPLES_FOLDER.glob("*.png")}


@pytest.mark.ray
@pytest.mark.e2e
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_embedded_model_answers_about_them(example: object, server_url: str) -> None:
    parts = [
        image_url_part((EXAMPLES_FOLDER / example.picture).read_bytes()),  # type: ignore[attr-defined]
        {"type": "text", "text": example.question},  # type: ignore[attr-defined]
    ]
    client = openai.OpenAI(base_url=server_url, api_key="none")
    chat = client.chat.completions.create(model="minigpt4-tiny", messages=[{"role": "user", "content": parts}])
    assert TRUTH[example.picture]  # type: ignore[attr-defined]
    answer = (chat.choices[0].message.content or "").lower()
    assert all(fact in answer for fact in TRUTH[example.picture])  # type: ignore[attr-defined]
