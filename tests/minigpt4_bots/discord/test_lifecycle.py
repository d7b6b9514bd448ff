"""Connecting, reconnecting, wrong settings, crashes and shutdown of the Discord bot. One process per test."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bot_processes import running_bot
from fakes.discord_bot import GENEROUS, Scene, environment, picture, scene
from fakes.discord_gateway import MESSAGE_CONTENT
from fakes.discord_world import Message
from fakes.openai_replies import Gate, Reply
from waiting import wait_until

pytestmark = pytest.mark.timeout(600)  # each starts several processes


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made


async def works(stage: Scene, text: str = "does it work?") -> None:
    """Check that a new user's question in a new channel is answered."""
    channel = await stage.discord.channel()
    ann = stage.discord.user()
    asked = await stage.discord.says(channel, ann, text, attachments=[picture()], mention=True)
    assert f"You asked: {text}" in (await stage.discord.answer_to(asked)).text


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
    variables = {**environment(stage.discord, stage.vision.url), **changed}
    async with running_bot("minigpt4-discord", ready=None, folder=stage.folder, settings=settings, **variables) as bot:
        assert await bot.ends(within=150) == 1
    lines = [line for line in bot.printed.splitlines() if line and " INFO " not in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "not-the-token" not in bot.printed


async def test_failed_connections_and_a_missing_intent_are_survived(stage: Scene) -> None:
    stage.discord.outage = 1  # the login
    stage.discord.gateway.refusals = 1
    async with stage.running() as bot:
        assert bot.printed.count("trying again") == 2
        # Without the message content intent it falls back, once.
        assert bot.printed.count("intent isn't granted") == 1
        assert stage.discord.gateway.closed.count(4014) == 1
        assert "Traceback" not in bot.printed
        await works(stage)


async def test_lost_connections_resume_without_losing_questions(stage: Scene) -> None:
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
        await wait_until(lambda: gateway.identified == 2)
        await works(stage, "with a new session")
        # An answer continues while the connection is lost.
        hold = Gate()
        stage.vision.on("keep going", Reply(["an ", hold, "answer"]))
        asked = await stage.discord.says(channel, user, "keep going", attachments=[picture()], mention=True)
        await stage.discord.first_sign(asked)
        await gateway.drop()
        hold.open()
        assert (await stage.discord.answer_to(asked)).text == "an answer"


async def test_a_flood_delays_one_channel_and_4004_ends_the_bot(stage: Scene) -> None:
    flooded = await stage.discord.channel()
    ann = stage.discord.user()
    stage.discord.limits.flooded[flooded.id] = 300.0
    async with stage.running() as bot:
        asked = await stage.discord.says(flooded, ann, "flooded", attachments=[picture()], mention=True)
        await stage.discord.until(lambda: stage.discord.limits.refused, what="a refusal")
        await asyncio.gather(*(works(stage, f"number {number}") for number in range(5)))
        assert stage.discord.answers_to(asked) == []
        stage.discord.gateway.forget_sessions()
        await stage.discord.gateway.drop(4004)
        assert await bot.ends() == 1
        assert "doesn't accept DISCORD_TOKEN" in bot.printed


async def test_the_content_intent_shows_messages_replied_to(stage: Scene) -> None:
    stage.discord.gateway.granted |= MESSAGE_CONTENT
    async with stage.running() as bot:
        assert "intent isn't granted" not in bot.printed
        channel = await stage.discord.channel()
        ann = stage.discord.user()
        ben = stage.discord.user("ben")
        blue = picture("blue")
        theirs = await stage.discord.says(channel, ben, "my garden", attachments=[blue])
        asked = await stage.discord.says(channel, ann, "nice?", reply_to=theirs, mention=True)
        answer = await stage.discord.answer_to(asked)
        assert stage.vision.about("nice?")[0].images == [blue.data]
        # A reply without a notification also counts.
        quiet = await stage.discord.says(channel, ann, "quietly?", reply_to=answer.last, ping=False)
        await stage.discord.answer_to(quiet)
        assert stage.vision.about("quietly?")[0].images == [blue.data]
        # Other messages are ignored.
        await stage.discord.says(channel, ben, "chatting on", attachments=[blue])
        await works(stage)
        assert stage.vision.about("chatting on") == []


async def test_a_kill_leaves_no_unexplained_answer_and_keeps_quotas(stage: Scene) -> None:
    settings = "limits: {user_per_minute: null, user_per_day: 2}\n"
    today = time.time() // 86400
    discord = stage.discord
    channel = await discord.channel()
    unlucky = await discord.channel()
    ann, ben, cid, dan = (discord.user(name) for name in ("ann", "ben", "cid", "dan"))
    stage.vision.on("endless", Reply(["and on ", Gate()]))
    stage.vision.on("secret words", Reply([Gate(), "never"]))
    discord.lost_replies.add(unlucky.id)  # the bot is killed before it has the id of its message there
    async with stage.running(settings) as bot:
        growing = await discord.says(channel, ann, "endless", attachments=[picture()], mention=True)
        waiting = await discord.says(channel, ben, "secret words", attachments=[picture()], mention=True)
        command = await discord.command(channel, cid, "ask", question="secret words", picture=picture())
        unknown = await discord.says(unlucky, dan, "unlucky", attachments=[picture()], mention=True)
        for asked in (growing, waiting, command, unknown):
            await discord.first_sign(asked)
        first = discord.answers_to(growing)[0]
        await discord.until(lambda: "and on" in first.content)
        await bot.kill()
    assert any("Stop" in str(message.buttons()) for message in discord.answers_to(growing))
    stored = b"".join(file.read_bytes() for file in stage.folder.iterdir() if "sqlite" in file.name)
    assert len(stored) > 1000
    for secret in (ann.id, channel.id, command.token, "secret words", discord.token):
        assert secret.encode() not in stored
    discord.lost_replies.clear()
    async with stage.running(settings):
        for asked in (growing, waiting, command, unknown):
            answer = await discord.answer_to(asked)
            assert "I was restarted" in answer.text
            assert len(answer.messages) == 1
            assert answer.last.buttons() == {}
        assert first.content.startswith("and on")  # the partial answer stays
        assert "👀" not in discord.answers_to(waiting)[0].content
        await works(stage)
        for text, expected in (("once more", "once more"), ("and more", "all your questions for today")):
            asked = await discord.says(channel, ann, text, attachments=[picture()], mention=True)
            answer = await discord.answer_to(asked)
            if time.time() // 86400 == today:  # the count restarts at midnight
                assert expected in answer.text


async def test_sigterm_explains_answers_and_a_restart_goes_on(stage: Scene) -> None:
    discord = stage.discord
    channel = await discord.channel()
    ann = discord.user()
    ben = discord.user("ben")
    red = picture()
    stage.vision.on("endless", Reply(["and on ", Gate()]))
    async with stage.running() as bot:
        asked = await discord.says(channel, ann, "what?", attachments=[red], mention=True)
        answer = await discord.answer_to(asked)
        theirs = await discord.says(channel, ann, attachments=[picture()])
        chosen = await discord.menu(theirs, ann, "Ask about picture…")
        await discord.until(lambda: chosen.modal)
        endless = await discord.says(channel, ann, "endless", attachments=[picture()], mention=True)
        cut_off = await discord.first_sign(endless)
        await discord.until(lambda: "and on" in cut_off.content)
        assert await bot.terminate() == 0
        assert "Traceback" not in bot.printed
    assert "I was restarted" in cut_off.content
    assert "Stop" not in str(cut_off.buttons())
    assert discord.gateway.closed[-1] == 1000
    async with stage.running():
        # Buttons contain the requester's id.
        refused = await discord.answer_to(await discord.clicks(answer.last, ben, "Regenerate"))
        assert "Only the person who asked" in refused.text
        await discord.clicks(answer.last, ann, "Regenerate")
        await discord.until(lambda: len(stage.vision.about("what?")) == 2)
        assert stage.vision.about("what?")[1].images == [red.data]
        # Conversations are fetched from the channel.
        follow_up = await discord.says(channel, ben, "since when?", reply_to=answer.last)
        await discord.answer_to(follow_up)
        request = stage.vision.about("since when?")[0]
        assert request.images == [red.data]
        assert [role for role, _ in request.transcript] == ["user", "assistant", "user"]
        # A form that was opened before the restart.
        submitted = await discord.submits(chosen, "what is it?")
        assert "no longer have" in (await discord.answer_to(submitted)).text
        # A button left by an earlier process is removed.
        button = {"type": 2, "style": 2, "label": "⏹ Stop", "custom_id": f"minigpt4:stop:{ann.id}"}
        left = Message(channel, discord.bot, "half an ans", components=[{"type": 1, "components": [button]}])
        await discord._publish(left)
        click = await discord.clicks(left, ann, "Stop")
        await discord.until(lambda: not left.buttons())
        assert click.acknowledged == 7
    # Commands are uploaded only when they change.
    assert discord.command_syncs == 1
    async with stage.running(f"{GENEROUS}language: zh\n"):
        assert discord.command_syncs == 2
    names = [command["name"] for command in discord.commands]
    assert names == ["ask", "reset", "stop", "help", "privacy", "forget", "描述图片", "询问图片…"]
    for command in discord.commands:
        assert sorted(command["integration_types"]) == [0, 1]
        assert sorted(command["contexts"]) == [0, 1, 2]


async def test_access_lists_are_reloaded(stage: Scene) -> None:
    channel = await stage.discord.channel()
    ann = stage.discord.user(roles=("555",))
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
                response = await stage.discord.answer_to(await stage.discord.command(channel, ann, name))
                assert "can't use this bot" in response.text
                assert response.last.ephemeral
        # These are open to everyone.
        for name, reply in (("stop", "not answering you"), ("privacy", "What I do"), ("forget", "forgotten")):
            response = await stage.discord.answer_to(await stage.discord.command(channel, ann, name))
            assert reply in response.text
        (stage.folder / "settings.yaml").write_text("access: {nonsense: 1}")
        asked = await stage.discord.says(channel, ann, "still not?", attachments=[picture()], mention=True)
        assert "can't use this bot" in (await stage.discord.answer_to(asked)).text
        await bot.prints("Keeping the current access lists")
        (stage.folder / "settings.yaml").write_text(f"{GENEROUS}access: {{allow: {{users: [{ann.id}]}}}}\n")
        asked = await stage.discord.says(channel, ann, "now?", attachments=[picture()], mention=True)
        assert "You asked: now?" in (await stage.discord.answer_to(asked)).text
        asked = await stage.discord.says(channel, stage.discord.user(), "I?", attachments=[picture()], mention=True)
        assert "can't use this bot" in (await stage.discord.answer_to(asked)).text
    assert stage.vision.about("may I?") == []


def test_the_command_line_has_help() -> None:
    import subprocess

    from bot_processes import BIN

    shown = subprocess.run([str(BIN / "minigpt4-discord"), "--help"], capture_output=True, text=True, check=True).stdout
    assert re.search("--settings", re.sub(r"\x1b\[[0-9;]*m", "", shown))
