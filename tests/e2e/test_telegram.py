"""Questions about an image and follow-ups on a fake Telegram get answers from the server with the embedded model."""

from pathlib import Path

import pytest
from bot_processes import running_bot
from drawing import draw, encode
from fakes.openai_server import OpenAIServer
from fakes.telegram import FakeTelegram
from fakes.telegram_bot import GENEROUS, Scene, environment, mention, new_user

pytestmark = [pytest.mark.ray, pytest.mark.e2e]


async def test_questions_and_follow_ups_on_telegram(server_url: str, tmp_path: Path) -> None:
    anna = new_user()
    group = -new_user()
    async with FakeTelegram().running() as telegram:
        here = Scene(telegram, OpenAIServer(), tmp_path)
        variables = environment(telegram, server_url)
        async with running_bot("minigpt4-telegram", ready="Running.", folder=tmp_path, settings=GENEROUS, **variables):
            await telegram.say(
                anna, anna, "What is in this picture?", **telegram.photo(encode(draw("red", (320, 240))))
            )
            answer = await here.answer(anna)
            assert "red" in answer.text
            assert "circle" in answer.text
            await telegram.say(anna, anna, "How many objects are there?", reply_to_message=telegram.as_json(answer))
            assert "one" in (await here.answer(anna, 2)).text.lower()
            photo = telegram.photo(encode(draw("blue", (320, 240))))
            picture = await telegram.say(group, new_user(), "look", **photo)
            await telegram.say(group, anna, mention("Which thing is blue?"), reply_to_message=picture)
            assert "circle" in (await here.answer(group)).text
        assert telegram.mistakes == []
        assert telegram.floods == 0
