"""Connecting, webhooks, local servers, crashes and shutdown of the Telegram bot. One process per test."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bot_processes import running_bot
from fakes.openai_replies import Gate, Reply
from fakes.telegram import Refused
from fakes.telegram_bot import GENEROUS, RED, Scene, environment, mention, new_user, scene
from processes import free_port
from waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # each starts several processes


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("changed", "settings", "said"),
    [
        ({"TELEGRAM_TOKEN": ""}, "", "Set TELEGRAM_TOKEN"),
        ({"TELEGRAM_TOKEN": "987654321:AAnot-the-token-of-any-bot-0123456789"}, "", "doesn't accept this token"),
        ({}, "telegram: {webhook: {secret: 'not allowed'}}", "telegram.webhook.secret"),
    ],
)
async def test_wrong_settings_end_it_with_one_clear_line(
    stage: Scene, changed: dict[str, str], settings: str, said: str
) -> None:
    variables = {**environment(stage.telegram, stage.vision.url), **changed}
    async with running_bot("minigpt4-telegram", ready=None, folder=stage.folder, settings=settings, **variables) as bot:
        assert await bot.ends(within=150) == 1
    lines = [line for line in bot.printed.splitlines() if line and " INFO " not in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "987654321" not in bot.printed


async def test_outages_and_a_flooded_chat_are_survived(stage: Scene) -> None:
    stage.telegram.down = True
    variables = environment(stage.telegram, stage.vision.url)
    async with running_bot("minigpt4-telegram", ready=None, folder=stage.folder, settings=GENEROUS, **variables) as bot:
        await wait_until(lambda: stage.telegram.refused_while_down >= 2)
        stage.telegram.down = False
        await bot.prints("Running.")
        await stage.works()
        # Also while it runs.
        stage.telegram.down = True
        stage.telegram._arrived.set()
        await bot.prints("can't be reached")
        stage.telegram.down = False
        await stage.works("Again?")
        # A flooded chat doesn't delay others.
        flooded = new_user()
        stage.telegram.refuse_next[flooded] = [Refused(429, "Too Many Requests: retry after 300", retry_after=300)]
        await stage.telegram.say(flooded, flooded, "Flooded", **stage.telegram.photo(RED))
        await wait_until(lambda: not stage.telegram.refuse_next[flooded])
        await asyncio.gather(*(stage.works(f"Number {number}") for number in range(5)))
        assert stage.telegram.shown(flooded) == []
        assert "Traceback" not in bot.printed


async def test_updates_by_webhook_need_the_secret(stage: Scene) -> None:
    port = free_port()
    anna = new_user()
    stage.telegram.webhook_proxy = f"http://127.0.0.1:{port}"
    settings = f"{GENEROUS}telegram: {{webhook: {{url: 'https://bot.example/hook/x', port: {port}}}}}\n"
    async with stage.running(settings, TELEGRAM_WEBHOOK_SECRET="a-secret_1") as bot:
        await wait_until(lambda: stage.telegram.has_webhook)
        assert stage.telegram.secret == "a-secret_1"
        await stage.works()
        question = stage.telegram.message(anna, anna, "Forged?", **stage.telegram.photo(RED))
        for wrong in (None, "", "a-secret_2"):
            assert await stage.telegram.push({"update_id": 9000, "message": question}, wrong) == 403
        for no_update in (b"", b"{", b"\xff", b"5", b"[]", b"{}", b"[" * 100_000, b'{"update_id": "x"}'):
            assert await stage.telegram.push(no_update, "a-secret_1") == 400
        await stage.works("Still there?")
        assert stage.vision.about("Forged?") == []
        assert "Traceback" not in bot.printed
        question = stage.telegram.message(anna, anna, "Repeated?", **stage.telegram.photo(RED))
        for _ in range(3):
            assert await stage.telegram.push({"update_id": 9001, "message": question}, "a-secret_1") == 200
        await stage.answer(anna)
        await stage.works("Once?")
        assert len(stage.vision.about("Repeated?")) == 1
        assert "a-secret_1" not in bot.printed
        assert await bot.terminate() == 0
    # Polling removes the webhook.
    async with stage.telegram.files_elsewhere() as elsewhere, stage.running(TELEGRAM_BASE_FILE_URL=elsewhere):
        await wait_until(lambda: not stage.telegram.has_webhook)
        await stage.works("By polling, with files on another server?")
    assert stage.telegram.has_webhook == ""


async def test_a_local_bot_api_server_works_without_drafts(stage: Scene, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    stage.telegram.local_folder = tmp_path / "files"
    stage.telegram.has_drafts = False
    port = free_port()
    anna = new_user()
    hold = Gate()
    stage.telegram.webhook_proxy = f"http://127.0.0.1:{port}"
    stage.vision.on("No drafts", Reply(["One", hold, " two"]))
    variables = {"TELEGRAM_WEBHOOK_URL": "https://bot.example/hook", "TELEGRAM_WEBHOOK_PORT": str(port)}
    async with stage.running(**variables) as bot:
        await wait_until(lambda: stage.telegram.has_webhook)
        assert len(stage.telegram.secret) >= 32  # generated
        await stage.telegram.say(anna, anna, "No drafts", **stage.telegram.photo(RED))
        await wait_until(lambda: [one.text for one in stage.telegram.shown(anna)] == ["One"])
        hold.open()
        assert (await stage.answer(anna)).text == "One two"
        await bot.prints("has no drafts")
        await stage.works("Next")


async def test_a_kill_leaves_no_unexplained_answer_and_keeps_quotas(stage: Scene) -> None:
    settings = "limits: {user_per_minute: null, user_per_day: 2}\naccess: {deny: {users: [666]}}\n"
    today = time.time() // 86400
    anna = new_user()
    ben = new_user()
    cid = new_user()
    dan = new_user()
    group = -new_user()
    topics = -new_user()
    unlucky = -new_user()
    stage.vision.on("Endless", Reply(["and on ", Gate()]))
    stage.vision.on("Silent", Reply([Gate()]))
    stage.telegram.lost_replies.add(unlucky)  # the bot is killed before it has the id of its message there
    photo = stage.telegram.photo(RED)
    topic = {"is_topic_message": True, "message_thread_id": 7}
    async with stage.running(settings) as bot:
        await stage.telegram.say(anna, anna, "Endless", **photo)
        await stage.telegram.say(group, ben, mention("Endless"), **photo)
        await stage.telegram.say(topics, cid, mention("Silent"), **photo, **topic)
        question = await stage.telegram.say(unlucky, dan, mention("Unlucky"), **photo)
        await wait_until(lambda: stage.telegram.drafts[anna])
        await wait_until(lambda: any("and on" in one.text for one in stage.telegram.shown(group)))
        await wait_until(lambda: stage.telegram.shown(topics) and stage.telegram.shown(unlucky))
        await bot.kill()
    assert stage.telegram.shown(topics)[0].buttons == ["stop"]
    stage.telegram.lost_replies.clear()
    async with stage.running(settings):
        for chat in (anna, group, topics):
            shown = await stage.answer(chat)
            assert "I was restarted" in shown.text
            assert len(stage.telegram.shown(chat)) == 1
        # Bots can't fetch their own messages, so a new one explains the interruption.
        await wait_until(lambda: len(stage.telegram.shown(unlucky)) == 2)
        explained = stage.telegram.shown(unlucky)[1]
        assert "I was restarted" in explained.text
        assert explained.reply_to == question["message_id"]
        await stage.works()
        await stage.telegram.say(anna, anna, "Once more", **photo)
        assert "Once more" in (await stage.answer(anna, 2)).text
        await stage.telegram.say(anna, anna, "And more", **photo)
        answer = await stage.answer(anna, 3)
        if time.time() // 86400 == today:  # the count restarts at midnight
            assert "all your questions for today" in answer.text
        await stage.telegram.say(666, 666, "I?", **photo)
        assert "can't use this bot" in (await stage.answer(666)).text


async def test_sigterm_explains_answers_and_a_restart_goes_on(stage: Scene) -> None:
    anna = new_user()
    ben = new_user()
    group = -new_user()
    stage.vision.on("Endless", Reply(["and on ", Gate()]))
    async with stage.running() as bot:
        question = await stage.telegram.say(anna, anna, "What?", **stage.telegram.photo(RED))
        answer = await stage.answer(anna)
        await stage.telegram.say(group, ben, mention("Endless"), **stage.telegram.photo(RED))
        await wait_until(lambda: any("and on" in one.text for one in stage.telegram.shown(group)))
        assert await bot.terminate() == 0
        assert "Traceback" not in bot.printed
    (left,) = stage.telegram.shown(group)
    assert "and on" in left.text
    assert "I was restarted" in left.text
    assert left.buttons != ["stop"]
    async with stage.running():
        # An update includes only the message replied to: here the answer, which has no image.
        await stage.telegram.say(anna, anna, "And?", reply_to_message=stage.telegram.as_json(answer))
        assert "no longer have the picture" in (await stage.answer(anna, 2)).text
        await stage.telegram.say(anna, anna, "And now?", reply_to_message=question)
        assert "I see 1 picture(s)" in (await stage.answer(anna, 3)).text
        await stage.telegram.press(answer, anna, "again")
        await wait_until(lambda: any("no longer have this question" in toast for toast in stage.telegram.toasts))
