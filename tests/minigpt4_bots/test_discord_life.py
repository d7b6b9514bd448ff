"""The Discord bot's life: first connections, lost ones, wrong settings, crashes, goodbyes. A process for each test."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bot_processes import running_bot
from fakes.discord_bot import GENEROUS, Scene, environment, picture, scene
from fakes.discord_gateway import MESSAGE_CONTENT
from fakes.discord_world import Message
from fakes.vision import Reply


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made
        assert made.vision.mistakes == []


async def works(stage: Scene, text: str = "does it work?") -> None:
    """A question of a new person in a new channel is answered."""
    channel, ann = await stage.discord.channel(), stage.discord.user()
    asked = await stage.discord.says(channel, ann, text, attachments=[picture()], mention=True)
    assert f"You asked: {text}" in (await stage.discord.answer_to(asked, within=60)).text


@pytest.mark.parametrize(
    ("changed", "settings", "said"),
    [
        ({"DISCORD_TOKEN": ""}, "", "Set DISCORD_TOKEN"),
        ({"DISCORD_TOKEN": "not-the-token"}, "", "doesn't accept DISCORD_TOKEN"),
        ({}, "discord: {tokn: x}", "discord.tokn: there is no such setting"),
        ({}, "discord: {message_content: maybe}", "discord.message_content"),
        ({}, "discord: {message_content: 'on'}", "doesn't grant the message content intent"),
        ({}, "database: /dev/null/no", "database"),
        ({"MINIGPT4_BASE_URL": "localhost:8000"}, "", "server.base_url"),
    ],
)
async def test_wrong_settings_end_it_with_one_clear_line(
    stage: Scene, changed: dict[str, str], settings: str, said: str
) -> None:
    told = {**environment(stage.discord, stage.vision.url), **changed}
    async with running_bot("minigpt4-discord", ready=None, folder=stage.folder, settings=settings, **told) as bot:
        assert await bot.ends(within=60) == 1
    lines = [line for line in bot.printed.splitlines() if line and " INFO " not in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "not-the-token" not in bot.printed


async def test_the_first_connection_may_fail(stage: Scene) -> None:
    stage.discord.gateway.refusals = 2
    async with stage.running() as bot:
        assert bot.printed.count("can't be reached") == 2
        assert "Traceback" not in bot.printed
        await works(stage)


async def test_a_login_that_fails_is_tried_again(stage: Scene) -> None:
    stage.discord.outage = 1
    async with stage.running() as bot:
        assert "trying again" in bot.printed
        await works(stage)


async def test_lost_connections_are_made_again_and_questions_survive(stage: Scene) -> None:
    async with stage.running():
        gateway = stage.discord.gateway
        channel = await stage.discord.channel()
        for number, code in enumerate((None, 4000)):
            await gateway.drop(code)
            text = f"asked meanwhile {number}"
            user = stage.discord.user()
            asked = await stage.discord.says(channel, user, text, attachments=[picture()], mention=True)
            assert text in (await stage.discord.answer_to(asked)).text
        await gateway.ask_to_reconnect()
        await works(stage, "after being asked to reconnect")
        assert gateway.identified == 1
        gateway.forget_sessions()
        await gateway.drop()
        await _connected_again(stage, identified=2)
        await works(stage, "with a new session")


async def test_an_answer_goes_on_while_the_connection_is_lost(stage: Scene) -> None:
    async with stage.running():
        hold = asyncio.Event()
        stage.vision.on("keep going", Reply(["an ", "answer"], hold=hold))
        channel, ann = await stage.discord.channel(), stage.discord.user()
        asked = await stage.discord.says(channel, ann, "keep going", attachments=[picture()], mention=True)
        await stage.discord.first_sign(asked)
        await stage.discord.gateway.drop()
        hold.set()
        assert (await stage.discord.answer_to(asked)).text == "an answer"


async def test_a_token_that_is_withdrawn_ends_it(stage: Scene) -> None:
    async with stage.running() as bot:
        stage.discord.gateway.forget_sessions()
        await stage.discord.gateway.drop(4004)
        assert await bot.ends() == 1
        assert "doesn't accept DISCORD_TOKEN" in bot.printed


async def test_without_the_content_intent_it_falls_back_once(stage: Scene) -> None:
    async with stage.running() as bot:
        assert bot.printed.count("intent isn't granted") == 1
        assert stage.discord.gateway.closed.count(4014) == 1
        await works(stage)


async def test_with_the_content_intent_it_sees_what_is_replied_to(stage: Scene) -> None:
    stage.discord.gateway.granted |= MESSAGE_CONTENT
    async with stage.running() as bot:
        assert "intent isn't granted" not in bot.printed
        channel, ann, ben = await stage.discord.channel(), stage.discord.user(), stage.discord.user("ben")
        blue = picture("blue")
        theirs = await stage.discord.says(channel, ben, "my garden", attachments=[blue])
        asked = await stage.discord.says(channel, ann, "nice?", reply_to=theirs, mention=True)
        answer = await stage.discord.answer_to(asked)
        assert stage.vision.about("nice?")[0].pictures == [blue.data]
        # A reply that notifies nobody is understood, too.
        quiet = await stage.discord.says(channel, ann, "quietly?", reply_to=answer.last, ping=False)
        await stage.discord.answer_to(quiet)
        assert stage.vision.about("quietly?")[0].pictures == [blue.data]
        # Everything else is none of its business.
        await stage.discord.says(channel, ben, "chatting on", attachments=[blue])
        await works(stage)
        assert stage.vision.about("chatting on") == []


async def test_commands_are_uploaded_only_when_they_change(stage: Scene) -> None:
    for _ in range(2):
        async with stage.running():
            pass
    assert stage.discord.command_syncs == 1
    async with stage.running(f"{GENEROUS}language: zh\n"):
        assert stage.discord.command_syncs == 2
    names = [command["name"] for command in stage.discord.commands]
    assert names == ["ask", "reset", "stop", "help", "privacy", "forget", "描述图片", "询问图片…"]
    for command in stage.discord.commands:
        assert sorted(command["integration_types"]) == [0, 1]
        assert sorted(command["contexts"]) == [0, 1, 2]


async def test_after_a_kill_no_answer_is_left_unexplained(stage: Scene) -> None:
    channel, ann, ben, cid = await stage.discord.channel(), *(stage.discord.user(n) for n in ("ann", "ben", "cid"))
    stage.vision.on("endless", Reply(["and on "] * 1000, delay_s=0.05))
    stage.vision.on("silent", Reply(["never"], hold=asyncio.Event()))
    async with stage.running() as bot:
        growing = await stage.discord.says(channel, ann, "endless", attachments=[picture()], mention=True)
        waiting = await stage.discord.says(channel, ben, "silent", attachments=[picture()], mention=True)
        command = await stage.discord.command(channel, cid, "ask", question="silent", picture=picture())
        for asked in (growing, waiting, command):
            await stage.discord.first_sign(asked)
        first = stage.discord.answers_to(growing)[0]
        await stage.discord.until(lambda: "and on" in first.content)
        await bot.kill()
    assert any("Stop" in str(message.buttons()) for message in stage.discord.answers_to(growing))
    async with stage.running():
        for asked in (growing, waiting, command):
            answer = await stage.discord.answer_to(asked)
            assert "I was restarted" in answer.text
            assert answer.last.buttons() == {}
        assert first.content.startswith("and on")  # what there was stays
        assert "👀" not in stage.discord.answers_to(waiting)[0].content
        await works(stage)
        again = await stage.discord.says(channel, ann, "once more", attachments=[picture()], mention=True)
        assert "once more" in (await stage.discord.answer_to(again)).text


async def test_conversations_and_buttons_survive_a_restart(stage: Scene) -> None:
    channel, ann, ben = await stage.discord.channel(), stage.discord.user(), stage.discord.user("ben")
    red = picture()
    async with stage.running():
        asked = await stage.discord.says(channel, ann, "what?", attachments=[red], mention=True)
        answer = await stage.discord.answer_to(asked)
    async with stage.running():
        refused = await stage.discord.answer_to(await stage.discord.clicks(answer.last, ben, "Regenerate"))
        assert "Only the person who asked" in refused.text
        await stage.discord.clicks(answer.last, ann, "Regenerate")
        await stage.discord.until(lambda: len(stage.vision.about("what?")) == 2, within=30)
        assert stage.vision.about("what?")[1].pictures == [red.data]
        follow_up = await stage.discord.says(channel, ben, "since when?", reply_to=answer.last)
        await stage.discord.answer_to(follow_up)
        request = stage.vision.about("since when?")[0]
        assert request.pictures == [red.data]
        assert [role for role, _ in request.words] == ["user", "assistant", "user"]


async def test_a_window_that_was_opened_before_a_restart(stage: Scene) -> None:
    channel, ann = await stage.discord.channel(), stage.discord.user()
    theirs = await stage.discord.says(channel, ann, attachments=[picture()])
    async with stage.running():
        chosen = await stage.discord.menu(theirs, ann, "Ask about picture…")
        await stage.discord.until(lambda: chosen.modal)
    async with stage.running():
        submitted = await stage.discord.submits(chosen, "what is it?")
        assert "no longer have" in (await stage.discord.answer_to(submitted)).text


async def test_a_stop_button_that_was_left_behind_goes_away(stage: Scene) -> None:
    channel, ann = await stage.discord.channel(), stage.discord.user()
    row = {
        "type": 1,
        "components": [{"type": 2, "style": 2, "label": "⏹ Stop", "custom_id": f"minigpt4:stop:{ann.id}"}],
    }
    left = Message(channel, stage.discord.bot, "half an ans", components=[row])
    await stage.discord._publish(left)
    async with stage.running():
        click = await stage.discord.clicks(left, ann, "Stop")
        await stage.discord.until(lambda: not left.buttons())
        assert click.acknowledged == 7


async def test_quotas_survive_a_kill(stage: Scene) -> None:
    settings = "limits: {user_per_minute: null, user_per_day: 2}\n"
    channel, ann = await stage.discord.channel(), stage.discord.user()

    async def answer(text: str) -> str:
        asked = await stage.discord.says(channel, ann, text, attachments=[picture()], mention=True)
        return (await stage.discord.answer_to(asked)).text

    async with stage.running(settings) as bot:
        assert "one" in await answer("one")
        await bot.kill()
    async with stage.running(settings):
        assert "two" in await answer("two")
        assert "all your questions for today" in await answer("three")
        await works(stage)  # others have theirs


async def test_who_may_ask_is_read_again_while_it_runs(stage: Scene) -> None:
    channel, ann = await stage.discord.channel(), stage.discord.user(roles=("555",))
    thread = await stage.discord.thread(channel)
    async with stage.running(f"{GENEROUS}access: {{}}\n") as bot:
        await works(stage)
        for deny in (
            f"users: [{ann.id}]",
            "roles: [555]",
            f"channels: [{channel.id}]",
            f"chats: [{stage.discord.guild}]",
        ):
            (stage.folder / "settings.yaml").write_text(f"{GENEROUS}access: {{deny: {{{deny}}}}}\n")
            for place in (channel, thread):
                asked = await stage.discord.says(place, ann, "may I?", attachments=[picture()], mention=True)
                assert "can't use this bot" in (await stage.discord.answer_to(asked)).text
            for name in ("help", "ask"):
                told = await stage.discord.answer_to(await stage.discord.command(channel, ann, name))
                assert "can't use this bot" in told.text
                assert told.last.ephemeral
        # What is known of oneself, and its end, is everybody's right.
        told = await stage.discord.answer_to(await stage.discord.command(channel, ann, "forget"))
        assert "forgotten" in told.text
        (stage.folder / "settings.yaml").write_text("access: {nonsense: 1}")
        asked = await stage.discord.says(channel, ann, "still not?", attachments=[picture()], mention=True)
        assert "can't use this bot" in (await stage.discord.answer_to(asked)).text
        await bot.prints("access lists stay")
        (stage.folder / "settings.yaml").write_text(f"{GENEROUS}access: {{allow: {{users: [{ann.id}]}}}}\n")
        asked = await stage.discord.says(channel, ann, "now?", attachments=[picture()], mention=True)
        assert "You asked: now?" in (await stage.discord.answer_to(asked)).text
        asked = await stage.discord.says(channel, stage.discord.user(), "I?", attachments=[picture()], mention=True)
        assert "can't use this bot" in (await stage.discord.answer_to(asked)).text
    assert stage.vision.about("may I?") == []


async def test_a_goodbye_explains_running_answers(stage: Scene) -> None:
    stage.vision.on("endless", Reply(["and on "] * 1000, delay_s=0.05))
    channel, ann = await stage.discord.channel(), stage.discord.user()
    async with stage.running() as bot:
        asked = await stage.discord.says(channel, ann, "endless", attachments=[picture()], mention=True)
        first = await stage.discord.first_sign(asked)
        await stage.discord.until(lambda: "and on" in first.content)
        assert await bot.terminate() == 0
        assert "Traceback" not in bot.printed
    assert "I was restarted" in first.content
    assert "Stop" not in str(first.buttons())
    assert stage.discord.gateway.closed[-1] == 1000


async def test_ids_are_not_stored(stage: Scene) -> None:
    channel, ann = await stage.discord.channel(), stage.discord.user()
    stage.vision.on("secret words", Reply(["never"], hold=asyncio.Event()))
    async with stage.running() as bot:
        asked = await stage.discord.command(channel, ann, "ask", question="secret words", picture=picture())
        await stage.discord.first_sign(asked)
        await bot.kill()
    stored = b"".join(file.read_bytes() for file in stage.folder.iterdir() if "sqlite" in file.name)
    assert len(stored) > 1000
    for secret in (ann.id, channel.id, asked.token, "secret words", stage.discord.token):
        assert secret.encode() not in stored


async def test_an_unreachable_server_is_said(stage: Scene) -> None:
    channel, ann = await stage.discord.channel(), stage.discord.user()
    async with stage.running(MINIGPT4_BASE_URL="http://127.0.0.1:9/v1"):
        asked = await stage.discord.says(channel, ann, "hello?", attachments=[picture()], mention=True)
        assert "can't be reached" in (await stage.discord.answer_to(asked)).text


async def _connected_again(stage: Scene, *, identified: int) -> None:
    async with asyncio.timeout(60):
        while stage.discord.gateway.identified < identified:
            await asyncio.sleep(0.05)


def test_help_of_the_command_line() -> None:
    import subprocess

    from bot_processes import BIN

    shown = subprocess.run([str(BIN / "minigpt4-discord"), "--help"], capture_output=True, text=True, check=True).stdout
    assert re.search("--settings", re.sub(r"\x1b\[[0-9;]*m", "", shown))
