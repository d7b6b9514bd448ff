"""Many people at once: independent, complete answers, no 429, flat memory."""

import asyncio
from pathlib import Path

import pytest
from fakes.discord_bot import Scene, picture, scene
from fakes.openai_replies import Gate, Reply
from waiting import wait_until

WORDS = [f"word{number} " for number in range(20)]


async def one_question(here: Scene, number: int) -> None:
    """Ask in a private chat and check that the answer is complete."""
    user = here.discord.user(f"user{number}")
    channel = await here.discord.private_channel(user)
    asked = await here.discord.says(channel, user, "slow", attachments=[picture()])
    answer = await here.discord.answer_to(asked, ends="Regenerate", within=400)
    assert answer.text == "".join(WORDS).strip()


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("most", [40, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_crowd_of_people_is_served_concurrently(tmp_path: Path, most: int) -> None:
    async with scene(tmp_path) as here, here.running() as bot:
        memory: list[float] = []
        for people in (most, most // 2):
            all_are_here = Gate()
            here.vision.on("slow", Reply([*WORDS[:-1], all_are_here, WORDS[-1]], delay_s=most / 250))
            async with asyncio.TaskGroup() as crowd:
                for number in range(people):
                    crowd.create_task(one_question(here, number))
                await wait_until(lambda people=people: here.vision.active == people, within_s=400)
                all_are_here.open()
            memory.append(bot.memory_mb())
        print(f"memory {memory} MiB, {len(here.discord.calls)} calls")
        assert here.vision.max_active == most
        assert here.discord.limits.refused == []
        assert here.discord.violations == []
        assert memory[1] - memory[0] < 12
        assert "Traceback" not in bot.printed


async def test_a_crowd_in_one_channel_gets_all_answers(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, here.running():
        channel = await here.discord.channel()
        people = [here.discord.user(f"user{number}") for number in range(10)]
        asked = [
            await here.discord.says(channel, user, f"question {number}", attachments=[picture()], mention=True)
            for number, user in enumerate(people)
        ]
        for number, message in enumerate(asked):
            answer = await here.discord.answer_to(message, ends="Regenerate", within=240)
            assert answer.text.endswith(f"question {number}")
        assert here.discord.limits.refused == []
