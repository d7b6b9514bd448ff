"""Answers on Discord, while they are streamed and afterwards. One bot process for all tests."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fakes.discord import Interaction, Upload
from fakes.discord_bot import GENEROUS, PATIENCE_S, Scene, picture, scene
from fakes.discord_world import Channel, Message, User, would_ping
from fakes.openai_replies import Cut, ErrorEvent, Feed, Gate, Reply, count_and_question, refusal
from waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN = "900000000000000001"
SETTINGS = f"{GENEROUS}access: {{admins: [{ADMIN}]}}\nserver: {{patience_s: 600}}\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene(tmp_path_factory.mktemp("bot")) as made:
        async with made.running(SETTINGS):
            yield made
        assert made.discord.violations == []
        assert made.discord.limits.refused == []


async def ask(
    here: Scene, text: str, reply: Reply | None = None, *, times: int | None = None, **more: object
) -> tuple[Channel, User, Message]:
    """A new user asks in a new channel; the server sends ``reply`` the first ``times``."""
    channel = await here.discord.channel()
    ann = here.discord.user()
    if reply is not None:
        here.vision.on(text, reply, times)
    files = more.pop("attachments", [picture()])
    return channel, ann, await here.discord.says(channel, ann, text, attachments=files, mention=True)  # type: ignore[arg-type]


async def test_the_placeholder_waits_for_nothing(here: Scene) -> None:
    slow_files = asyncio.Event()
    slow_server = Gate()
    reply = Reply(["slow", slow_server, " answer"])
    channel, _, asked = await ask(here, "held back", reply, attachments=[picture(hold=slow_files)])
    first = await here.discord.first_sign(asked)  # before the image and any text of the answer
    assert first.reference is asked
    assert "Looking" in first.content
    assert "Stop" in str(first.buttons())
    await here.discord.until(lambda: channel.typing, what="typing")
    slow_files.set()
    await here.discord.until(lambda: first.content == "slow", what="the first word")
    slow_server.open()
    assert (await here.discord.answer_to(asked)).text == "slow answer"


async def test_stop_while_the_picture_is_still_downloaded(here: Scene) -> None:
    _, ann, asked = await ask(here, "never mind", attachments=[picture(hold=asyncio.Event())])
    first = await here.discord.first_sign(asked)
    await here.discord.clicks(first, ann, "Stop")
    assert "Stopped." in (await here.discord.answer_to(asked)).text
    assert here.vision.about("never mind") == []


async def test_a_streamed_answer_is_edited_at_a_limited_rate(here: Scene) -> None:
    words = Feed()
    _, _, asked = await ask(here, "grows", Reply(words))
    first = await here.discord.first_sign(asked)
    whole = ""
    for number in range(8):
        for word in (f"word{number} ", "and ", f"word{number}. "):
            words.add(word)
            whole += word
        await here.discord.until(lambda whole=whole: first.content == whole.strip(), what="the next words")
    words.end()
    answer = await here.discord.answer_to(asked, ends="Regenerate")
    assert answer.text == whole.strip()
    (message,) = answer.messages
    assert len(message.history) >= 9
    for (at, _), (later, _) in zip(message.history, message.history[5:], strict=False):
        assert later - at > 4.5  # no more than five within five seconds
    shown = [text for _, text in message.history if text.startswith("word0")]
    assert len(shown) >= 5
    assert all(answer.text.startswith(text) for text in shown)


async def test_a_long_answer_is_split_between_sentences(here: Scene) -> None:
    sentences = [f"This is sentence number {number} of a long answer. " for number in range(150)]
    _, _, asked = await ask(here, "long", Reply(sentences))
    answer = await here.discord.answer_to(asked, ends="Regenerate")
    assert len(answer.messages) >= 3
    assert all(len(message.content) <= 2000 for message in answer.messages)
    assert all(message.content.endswith("answer.") for message in answer.messages)
    assert re.findall(r"\d+", answer.text) == [str(number) for number in range(150)]
    assert [bool(message.buttons()) for message in answer.messages] == [False] * (len(answer.messages) - 1) + [True]


async def test_code_blocks_are_closed_and_reopened_at_a_split(here: Scene) -> None:
    code = ["Look:\n```python\n", *(f"print('line {number} of the program')\n" for number in range(120)), "```\nDone."]
    _, _, asked = await ask(here, "code", Reply(code))
    answer = await here.discord.answer_to(asked, ends="Regenerate")
    assert len(answer.messages) >= 2
    for message in answer.messages:
        assert message.content.count("```") % 2 == 0
    assert answer.messages[1].content.startswith("```python")
    assert re.findall(r"line (\d+)", answer.text) == [str(number) for number in range(120)]


async def test_characters_beyond_the_basic_plane_count_twice(here: Scene) -> None:
    _, _, asked = await ask(here, "emojis", Reply(["😀" * 3000]))
    answer = await here.discord.answer_to(asked, ends="Regenerate")
    assert all(len(message.content.encode("utf-16-le")) // 2 <= 2000 for message in answer.messages)
    assert answer.text.count("😀") == 3000


async def test_nothing_in_an_answer_pings_or_can_be_clicked(here: Scene) -> None:
    text = "@everyone @here <@1> <@&2> <#3> see https://evil.example/x or [this](https://evil.example/y)"
    _, _, asked = await ask(here, "pings", Reply([text[:20], text[20:]]))
    answer = await here.discord.answer_to(asked)
    assert would_ping(answer.last) == []
    assert answer.last.allowed_mentions is not None
    # Also in a copy of the text: no mention, no link outside of code.
    outside = re.sub(r"`[^`]*`", "", answer.text)
    assert not re.search(r"@everyone|@here|<[@#]|https?://|\]\(", outside)
    assert "evil.example/x" in answer.text


async def test_answers_about_spoilered_images_are_spoilered(here: Scene) -> None:
    hidden = picture(spoiler=True)
    words = ["The butler ", "|| did it.\n\n", "Really."]
    _, ann, asked = await ask(here, "spoil", Reply(words, delay_s=0.1), attachments=[hidden])
    answer = await here.discord.answer_to(asked)
    assert answer.text.startswith("||")
    assert answer.text.endswith("||")
    assert answer.text.count("||") == 2
    revealed = [text for _, text in answer.last.history if "butler" in text and not text.startswith("||")]
    assert revealed == []
    follow_up = await here.discord.says(asked.channel, ann, "who?", reply_to=answer.last)
    assert (await here.discord.answer_to(follow_up)).text.startswith("||")


async def test_stop_ends_the_answer_and_aborts_the_request(here: Scene) -> None:
    _, ann, asked = await ask(here, "endless", Reply(["on and on ", Gate()]))
    first = await here.discord.first_sign(asked)
    await here.discord.until(lambda: "on and on" in first.content)
    aborted = len(here.vision.aborted)
    click = await here.discord.clicks(first, ann, "Stop")
    answer = await here.discord.answer_to(asked)
    assert "Stopped." in answer.text
    assert "on and on" in answer.text
    assert click.acknowledged == 6
    await wait_until(lambda: len(here.vision.aborted) > aborted)
    # The next question isn't blocked.
    again = await here.discord.says(asked.channel, ann, "next", attachments=[picture()], mention=True)
    assert "next" in (await here.discord.answer_to(again)).text


async def test_stop_on_the_second_message_of_an_answer(here: Scene) -> None:
    _, ann, asked = await ask(here, "very endless", Reply([*["a sentence of words. "] * 149, Gate()]))
    found = await here.discord.until(lambda: here.discord.answers_to(asked)[1:])
    await here.discord.until(lambda: "Stop" in str(found[-1].buttons()))
    await here.discord.clicks(found[-1], ann, "Stop")
    assert "Stopped." in (await here.discord.answer_to(asked, ends="Regenerate")).text


async def test_stop_by_command(here: Scene) -> None:
    channel, ann, asked = await ask(here, "endless too", Reply(["and on ", Gate()]))
    await here.discord.first_sign(asked)
    response = await here.discord.answer_to(await here.discord.command(channel, ann, "stop"))
    assert response.text == "Stopped."
    assert response.last.ephemeral
    assert "Stopped." in (await here.discord.answer_to(asked)).text
    response = await here.discord.answer_to(await here.discord.command(channel, ann, "stop"))
    assert "not answering" in response.text


async def test_only_the_asker_and_admins_press_buttons(here: Scene) -> None:
    _, _, asked = await ask(here, "mine", Reply(["and on ", Gate()]))
    ben = here.discord.user("ben")
    admin = here.discord.user("root", id=ADMIN)
    first = await here.discord.first_sign(asked)
    for label, text in (("Stop", "Stopped."), ("Regenerate", "")):
        refused = await here.discord.answer_to(await here.discord.clicks(first, ben, label))
        assert "Only the person who asked" in refused.text
        assert refused.last.ephemeral
        await here.discord.clicks(first, admin, label)
        if text:
            assert text in (await here.discord.answer_to(asked)).text
    await here.discord.until(lambda: "Stop" in str(first.buttons()), what="the admin's new answer")
    await here.discord.clicks(first, admin, "Stop")
    await here.discord.answer_to(asked)


async def test_regenerate_asks_again_in_place(here: Scene) -> None:
    _, ann, asked = await ask(here, "again?", Reply(["first try"]), times=1)
    answer = await here.discord.answer_to(asked)
    click = await here.discord.clicks(answer.last, ann, "Regenerate")
    await here.discord.until(lambda: "You asked: again?" in answer.last.content and answer.last.buttons())
    assert click.acknowledged == 6
    first, second = here.vision.about("again?")
    assert second.images == first.images
    assert second.body["temperature"] == 1.0
    assert len(here.discord.answers_to(asked)) == 1


async def test_regenerating_shorter_deletes_extra_messages(here: Scene) -> None:
    sentences = ["This is one of many sentences. "] * 150
    _, ann, asked = await ask(here, "shrinks", Reply(sentences), times=1)
    answer = await here.discord.answer_to(asked, ends="Regenerate")
    assert len(answer.messages) >= 3
    await here.discord.clicks(answer.last, ann, "Regenerate")
    shorter = await here.discord.until(
        lambda: len(here.discord.answers_to(asked)) == 1 and here.discord.answers_to(asked)
    )
    await here.discord.until(lambda: "You asked: shrinks" in shorter[0].content)


async def test_one_answer_at_a_time_for_each_person(here: Scene) -> None:
    channel, ann, asked = await ask(here, "busy", Reply(["and on ", Gate()]))
    first = await here.discord.first_sign(asked)
    second = await here.discord.says(channel, ann, "me again", attachments=[picture()], mention=True)
    assert "still answering" in (await here.discord.answer_to(second)).text
    by_command = await here.discord.command(channel, ann, "ask", question="and now?", picture=picture())
    refused = await here.discord.answer_to(by_command)
    assert "still answering" in refused.text
    assert refused.last.ephemeral
    await here.discord.clicks(first, ann, "Stop")
    await here.discord.answer_to(asked)


async def test_the_queue_position_is_shown(here: Scene) -> None:
    headers = {"x-minigpt4-queue-position": "3", "x-minigpt4-expected-wait": "12"}
    hold = Gate()
    _, _, asked = await ask(here, "in line", Reply([hold, "my turn"], headers=headers))
    first = await here.discord.first_sign(asked)
    await here.discord.until(lambda: "in line: 3 ahead of you, about 12 s" in first.content, what="the place")
    hold.open()
    assert (await here.discord.answer_to(asked)).text == "my turn"


async def test_the_queue_position_is_updated(here: Scene) -> None:
    hold = Gate()
    headers = {"x-minigpt4-queue-position": "3"}
    reply = Reply([hold, "my turn"], headers=headers, comments=("waiting, 2 ahead", "waiting, 1 ahead"))
    _, _, asked = await ask(here, "moving line", reply)
    first = await here.discord.first_sign(asked)
    await here.discord.until(lambda: "in line: 1 ahead" in first.content, what="the new place")
    hold.open()
    assert (await here.discord.answer_to(asked)).text == "my turn"


async def test_a_full_server_is_asked_again(here: Scene) -> None:
    _, _, asked = await ask(here, "full for a moment", refusal(429, retry_after="0.3"))
    first = await here.discord.first_sign(asked)
    await here.discord.until(lambda: "The server is full" in first.content, what="the reason for waiting")
    here.vision.on("full for a moment", count_and_question)
    assert "You asked" in (await here.discord.answer_to(asked)).text


@pytest.mark.parametrize(
    ("name", "reply", "said"),
    [
        ("full for long", refusal(429, retry_after="3600"), "busy"),
        ("key", refusal(401, "invalid_api_key"), "key"),
        ("engine", refusal(503, "engine_failed"), "failed while answering"),
        ("image", refusal(400, "invalid_image"), "can't read this picture"),
        ("context", refusal(400, "context_length_exceeded"), "too long"),
        ("large", refusal(413, "payload_too_large"), "too large"),
        ("broken", Reply(["half an ", Cut()]), "lost"),
        ("event", Reply(["half an ", ErrorEvent("engine_failed")]), "failed while answering"),
        ("five hundred", refusal(500), "failed while answering"),
        ("nothing", Reply([]), "no answer"),
        ("cut", Reply(["a lot"], finish_reason="length"), "maximum length"),
        ("dropped", Reply(["short"], headers={"x-minigpt4-dropped-messages": "2"}), "left out"),
    ],
)
async def test_failures_are_one_sentence(here: Scene, name: str, reply: Reply, said: str) -> None:
    _, _, asked = await ask(here, name, reply)
    answer = await here.discord.answer_to(asked)
    assert said in answer.text
    assert "SECRET" not in answer.text
    assert "Traceback" not in answer.text


async def test_a_deleted_question_is_still_answered(here: Scene) -> None:
    hold = Gate()
    _, _, asked = await ask(here, "deleted", Reply(["an ", hold, "answer"]))
    first = await here.discord.first_sign(asked)
    await here.discord.deletes(asked)
    hold.open()
    await here.discord.until(lambda: first.content == "an answer")


async def test_a_deleted_answer_is_sent_again(here: Scene) -> None:
    hold = Gate()
    _, _, asked = await ask(here, "moderated", Reply(["an ", hold, "answer"]))
    first = await here.discord.first_sign(asked)
    await here.discord.deletes(first)
    hold.open()
    assert (await here.discord.answer_to(asked)).text == "an answer"


@pytest.mark.parametrize(("status", "code"), [(403, 50005), (400, 50083)])
async def test_an_answer_whose_edits_are_refused_is_sent_again(here: Scene, status: int, code: int) -> None:
    hold = Gate()
    channel, _, asked = await ask(here, f"locked {code}", Reply(["an ", hold, "answer"]))
    first = await here.discord.first_sign(asked)
    here.discord.refused_edits[channel.id] = (status, code)
    hold.open()
    await here.discord.until(lambda: first.deleted, what="nothing unexplained is left")
    answer = await here.discord.answer_to(asked, ends="Regenerate")
    assert [message.content for message in answer.messages] == ["an answer"]
    here.discord.violations[:] = [one for one in here.discord.violations if " No " not in one]


async def test_an_expired_command_is_answered_in_the_channel(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    here.discord.acknowledge_seconds = -1.0
    await here.discord.command(channel, ann, "ask", question="too late?", picture=picture())

    def answered() -> bool:
        return any("You asked: too late?" in one.content for one in here.discord.messages.values())

    await here.discord.until(answered, what="an answer in the channel")
    here.discord.acknowledge_seconds = PATIENCE_S
    here.discord.violations[:] = [one for one in here.discord.violations if "Unknown interaction" not in one]


async def test_a_channel_without_write_permission_blocks_no_one(here: Scene) -> None:
    ann = here.discord.user()
    locked = await here.discord.channel("locked", bot_may_write=False)
    assert here.bot is not None
    abandoned = "can't write to the chat of user"
    before = here.bot.printed.count(abandoned)
    asked = await here.discord.says(locked, ann, "silence", attachments=[picture()], mention=True)
    await here.bot.prints(abandoned, times=before + 1)
    channel = await here.discord.channel()
    # The refused answer doesn't block its requester.
    other = await here.discord.says(channel, ann, "here then", attachments=[picture()], mention=True)
    assert "You asked" in (await here.discord.answer_to(other)).text
    assert here.discord.answers_to(asked) == []


async def test_an_outage_of_discord_delays_the_whole_answer(here: Scene) -> None:
    hold = Gate()
    _, _, asked = await ask(here, "outage", Reply(["an ", hold, "answer"]))
    await here.discord.first_sign(asked)
    here.discord.outage = 3
    hold.open()
    assert (await here.discord.answer_to(asked, ends="Regenerate")).text == "an answer"


async def test_a_slow_answer_outlives_its_interaction(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    hold = Gate()
    here.vision.on("patience", Reply(["an ", hold, "answer"]))
    asked = await here.discord.command(channel, ann, "ask", question="patience", picture=picture())
    await here.discord.first_sign(asked)
    asked.created -= 1000  # the token has expired
    hold.open()
    assert (await here.discord.answer_to(asked)).text == "an answer"
    # Both requests with the expired token are expected.
    here.discord.violations[:] = [one for one in here.discord.violations if "Invalid Webhook Token" not in one]


async def test_commands_are_acknowledged_before_anything_slow(here: Scene) -> None:
    channel = await here.discord.channel()
    slow = asyncio.Event()
    asked: list[Interaction] = []
    for number in range(8):
        user = here.discord.user(f"user{number}")
        late = picture(hold=slow)
        asked.append(await here.discord.command(channel, user, "ask", question=f"all {number}", picture=late))
    await here.discord.until(lambda: all(one.acknowledged for one in asked), what="all acknowledged")
    slow.set()
    for number, one in enumerate(asked):
        assert f"all {number}" in (await here.discord.answer_to(one)).text


@pytest.mark.parametrize("name", ["help", "privacy", "reset", "forget"])
async def test_short_commands_are_answered_to_the_asker_alone(here: Scene, name: str) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    answer = await here.discord.answer_to(await here.discord.command(channel, ann, name))
    assert answer.last.ephemeral
    expected = {"help": "/ask", "privacy": "two days", "reset": "new conversation", "forget": "forgotten"}[name]
    assert expected in answer.text


async def test_help_lists_what_is_enabled(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    text = (await here.discord.answer_to(await here.discord.command(channel, ann, "help"))).text
    for words in ("Describe picture", "Ask about picture…", "`/forget`", "up to 4"):
        assert words in text


async def test_commands_answer_in_the_persons_language(here: Scene) -> None:
    channel = await here.discord.channel()
    li = here.discord.user("li", locale="zh-CN")
    text = (await here.discord.answer_to(await here.discord.command(channel, li, "help"))).text
    assert "图片" in text
    menu = next(command for command in here.discord.commands if command["name"] == "Describe picture")
    assert menu["name_localizations"]["zh-CN"] == "描述图片"


async def test_reset_begins_a_new_conversation(here: Scene) -> None:
    channel, ann, asked = await ask(here, "before")
    await here.discord.answer_to(asked)
    await here.discord.answer_to(await here.discord.command(channel, ann, "reset"))
    after = await here.discord.says(channel, ann, "after", mention=True)
    assert "Send me a picture" in (await here.discord.answer_to(after)).text


async def test_forget_drops_the_images(here: Scene) -> None:
    channel, ann, asked = await ask(here, "remember me")
    await here.discord.answer_to(asked)
    await here.discord.answer_to(await here.discord.command(channel, ann, "forget"))
    after = await here.discord.says(channel, ann, "still there?", mention=True)
    assert "Send me a picture" in (await here.discord.answer_to(after)).text


async def test_logs_hold_no_contents_ids_or_secrets(here: Scene) -> None:
    upload = Upload(picture().data, "private-name.png")
    _, ann, asked = await ask(here, "a very private question", attachments=[upload])
    await here.discord.answer_to(asked)
    assert here.bot is not None
    for secret in ("a very private question", ann.id, "private-name", here.discord.token, "Traceback"):
        assert secret not in here.bot.printed
