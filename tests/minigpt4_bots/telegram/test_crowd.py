"""Many people at once: independent, complete answers, almost no 429, flat memory."""

import asyncio
from pathlib import Path

import pytest
from fakes.openai_replies import Gate, Reply
from fakes.telegram_bot import RED, Scene, mention, new_user, scene
from waiting import wait_until

WORDS = [f"word{number} " for number in range(20)]
WHOLE = "".join(WORDS).strip()


async def one_question(here: Scene) -> None:
    """Ask in a private chat and check that the complete answer is all that remains."""
    anna = new_user()
    await here.telegram.say(anna, anna, "slow", **here.telegram.photo(RED))
    await wait_until(lambda: [one.text.strip() for one in here.telegram.shown(anna)] == [WHOLE], within_s=400)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("most", [40, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_crowd_of_people_is_served_concurrently(tmp_path: Path, most: int) -> None:
    async with scene(tmp_path) as here, here.running() as bot:
        memory: list[float] = []
        for people in (most, most // 2):
            all_are_here = Gate()
            here.vision.on("slow", Reply([*WORDS[:-1], all_are_here, WORDS[-1]], delay_s=most / 250))
            async with asyncio.TaskGroup() as crowd:
                for _ in range(people):
                    crowd.create_task(one_question(here))
                await wait_until(lambda people=people: here.vision.active == people, within_s=400)
                all_are_here.open()
            memory.append(bot.memory_mb())
        print(f"memory {memory} MiB, {len(here.telegram.calls)} calls")
        assert here.vision.max_active == most
        # Writes that take up to five seconds keep the limits; on a busy machine some take longer.
        assert here.telegram.floods < len(here.telegram.calls) / 100
        assert memory[1] - memory[0] < 12
        assert "Traceback" not in bot.printed


async def test_a_crowd_in_one_group_gets_all_answers(tmp_path: Path) -> None:
    async with scene(tmp_path) as here, here.running():
        group = -new_user()
        people = [new_user() for _ in range(6)]
        for person in people:
            await here.telegram.say(group, person, mention(f"of {person}"), **here.telegram.photo(RED))
        whole = [f"I see 1 picture(s). You asked: of {person}" for person in people]
        await wait_until(lambda: sorted(one.text for one in here.telegram.shown(group)) == whole, within_s=240)
        assert here.telegram.floods == 0
