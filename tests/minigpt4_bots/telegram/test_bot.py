"""``minigpt4-telegram`` as a process, with a strict fake of Telegram and a scripted vision server.

One bot process serves all tests of this file, each in chats of its own, as in life.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from drawing import draw, encode
from fakes.openai_replies import Cut, Feed, Gate, Reply, count_and_question, refusal
from fakes.telegram import BOT, Refused, Sent
from fakes.telegram_bot import BLUE, RED, Scene, mention, new_user, scene
from waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PER_DAY = 6
# A limit per day, as a slow machine may not ask seven questions within a minute. The images of an album are sent
# together, but may be handled seconds apart.
SETTINGS = f"""
access: {{deny: {{users: [666]}}}}
limits: {{user_per_minute: null, user_per_day: {PER_DAY}, chat_per_minute: null}}
telegram: {{album_wait_s: 3}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene(tmp_path_factory.mktemp("bot")) as made, made.running(SETTINGS):
        yield made


@pytest.fixture
def anna() -> int:
    """A new user and their private chat."""
    return new_user()


@pytest.fixture
def group() -> int:
    return -new_user()


async def test_a_photo_with_a_question_is_answered(here: Scene, anna: int) -> None:
    await here.telegram.say(anna, anna, "How many?", **here.telegram.photo(RED))
    answer = await here.answer(anna)
    assert (answer.text, answer.buttons) == ("I see 1 picture(s). You asked: How many?", ["again"])
    assert here.vision.about("How many?")[-1].images == [RED]


async def test_the_placeholder_waits_for_nothing(here: Scene, anna: int) -> None:
    photo = here.telegram.photo(RED)
    slow = asyncio.Event()
    here.telegram.slow_files[photo["photo"][-1]["file_id"]] = slow
    await here.telegram.say(anna, anna, "Slow file?", **photo)
    await wait_until(lambda: here.telegram.shown(anna))  # before the image arrives
    (first,) = here.telegram.shown(anna)
    assert "Looking" in first.text
    assert first.buttons == ["stop"]
    slow.set()
    assert (await here.answer(anna)).text.startswith("I see 1 picture")


async def test_a_photo_alone_gets_a_question_in_ones_language(here: Scene, anna: int) -> None:
    await here.telegram.say(anna, anna, language="zh-hans", **here.telegram.photo(RED))
    assert "这张图片里有什么？" in (await here.answer(anna)).text


async def test_an_image_sent_as_a_file_is_answered(here: Scene, anna: int) -> None:
    file = here.telegram.document(RED, kind="application/octet-stream", name="x")
    await here.telegram.say(anna, anna, "File?", **file)
    assert (await here.answer(anna)).text.startswith("I see 1 picture")


@pytest.mark.parametrize(
    ("data", "fields", "says"),
    [
        (b"no picture", {"kind": "image/png"}, "not a picture"),
        (b"%PDF", {"kind": "application/pdf", "name": "a.pdf"}, "not a picture"),
        (RED, {"file_size": 99 * 2**20}, "too large: at most 10 MB"),
        (bytes(21 * 2**20), {"file_size": 100}, "too large"),
        (b"\x89PNG" + bytes(11 * 2**20), {"file_size": 100}, "too large"),
        (RED, {"file_id": "lost"}, "couldn't be downloaded"),
    ],
    ids=["text", "pdf", "declared size", "platform's limit", "real size", "lost"],
)
async def test_unusable_files_are_reported(
    here: Scene, anna: int, data: bytes, fields: dict[str, Any], says: str
) -> None:
    await here.telegram.say(anna, anna, "What?", **here.telegram.document(data, **fields))
    assert says in (await here.answer(anna)).text


async def test_videos_are_declined(here: Scene, anna: int) -> None:
    video = {"file_id": "v", "file_unique_id": "v", "width": 1, "height": 1, "duration": 1}
    await here.telegram.say(anna, anna, "What?", video=video)
    assert "only look at still pictures" in (await here.answer(anna)).text


@pytest.mark.parametrize(("is_animated", "says"), [(False, "I see 1 picture"), (True, "still pictures")])
async def test_stickers_are_images_unless_animated(here: Scene, anna: int, is_animated: bool, says: str) -> None:
    sticker = {
        "file_id": here.telegram.upload(encode(draw("red"), "WEBP")),
        "file_unique_id": "s",
        "type": "regular",
        "width": 512,
        "height": 512,
        "is_animated": is_animated,
        "is_video": False,
    }
    await here.telegram.say(anna, anna, sticker=sticker)
    assert says in (await here.answer(anna)).text


async def test_an_album_is_one_question(here: Scene, anna: int) -> None:
    colors = ("red", "blue", "green")
    for index, color in enumerate(colors):
        photo = here.telegram.photo(encode(draw(color)))
        await here.telegram.say(anna, anna, "Album?" if index == 1 else "", media_group_id="g1", **photo)
    assert (await here.answer(anna)).text == "I see 3 picture(s). You asked: Album?"
    assert here.vision.about("Album?")[-1].images == [encode(draw(color)) for color in colors]


async def test_too_many_images_are_reported(here: Scene, anna: int) -> None:
    for index in range(6):
        photo = here.telegram.photo(encode(draw("red", size=(20 + index, 20))))
        await here.telegram.say(anna, anna, "", media_group_id="g2", **photo)
    assert "Only 4 of 6 pictures" in (await here.answer(anna)).text


async def test_follow_ups_continue_with_and_without_reply(here: Scene, anna: int) -> None:
    await here.telegram.say(anna, anna, "First of Anna", **here.telegram.photo(RED))
    first = await here.answer(anna)
    await here.telegram.say(anna, anna, "Second of Anna", reply_to_message=here.telegram.as_json(first))
    await here.answer(anna, 2)
    await here.telegram.say(anna, anna, "Third of Anna")
    await here.answer(anna, 3)
    asked = here.vision.about("Third of Anna")[-1]
    assert [text for role, text in asked.transcript if role == "user"] == [
        "First of Anna",
        "Second of Anna",
        "Third of Anna",
    ]
    assert asked.images == [RED]


async def test_a_reply_to_any_image_in_a_group_is_answered(here: Scene, anna: int, group: int) -> None:
    ben = new_user()
    picture = await here.telegram.say(group, ben, "my holiday", **here.telegram.photo(BLUE))
    question = await here.telegram.say(group, anna, mention("Where is it?"), reply_to_message=picture)
    answer = await here.answer(group)
    assert (answer.text, answer.reply_to) == ("I see 1 picture(s). You asked: Where is it?", question["message_id"])
    assert len(here.telegram.shown(group)) == 1
    assert here.vision.about("Where is it?")[-1].images == [BLUE]


async def test_group_messages_without_a_mention_are_ignored(here: Scene, anna: int, group: int) -> None:
    await here.telegram.say(group, anna, "look at this", **here.telegram.photo(RED))
    await here.telegram.say(group, anna, "/ask@other_bot what?")
    for person in (anna, 666):  # also no denial
        await here.telegram.say(group, person, "/unknown")
    bot = {**here.telegram.message(group, 1, mention("hi")), "from": {**BOT, "id": 5, "username": "b"}}
    await here.telegram.update("message", bot)
    await here.telegram.say(anna, anna, "/help")
    await here.answer(anna)
    assert here.telegram.shown(group) == []


async def test_people_in_a_group_are_kept_apart(here: Scene, anna: int, group: int) -> None:
    ben = new_user()
    await here.telegram.say(group, anna, mention("Anna's question"), **here.telegram.photo(RED))
    await here.answer(group)
    await here.telegram.say(group, ben, mention("Ben's words"))
    assert "Send me a picture" in (await here.answer(group, 2)).text
    await here.telegram.say(group, anna, "/ask Anna's second")
    await here.answer(group, 3)
    assert here.vision.about("Anna's second")[-1].images == [RED]


async def test_topics_are_kept_apart(here: Scene, anna: int, group: int) -> None:
    opened = here.telegram.message(group, anna, forum_topic_created={"name": "T", "icon_color": 1})
    opened["from"] = BOT
    topic = {"is_topic_message": True, "reply_to_message": opened}
    await here.telegram.say(group, anna, "no question", message_thread_id=7, **topic)
    photo = here.telegram.photo(RED)
    await here.telegram.say(group, anna, mention("In topic 7"), message_thread_id=7, **topic, **photo)
    assert (await here.answer(group)).thread == 7
    await here.telegram.say(group, anna, mention("In topic 8"), message_thread_id=8, **topic)
    second = await here.answer(group, 2)
    assert second.thread == 8
    assert "Send me a picture" in second.text


async def test_a_reply_to_the_bot_continues_for_anyone(here: Scene, anna: int, group: int) -> None:
    await here.telegram.say(group, anna, mention("Of Anna"), **here.telegram.photo(RED))
    first = await here.answer(group)
    ben = new_user()
    await here.telegram.say(group, ben, "Of Ben", reply_to_message=here.telegram.as_json(first))
    await here.answer(group, 2)
    asked = here.vision.about("Of Ben")[-1]
    assert asked.images == [RED]
    assert [message.get("name") for message in asked.body["messages"]] == ["user_1", None, "user_2"]


async def test_an_image_quoted_from_another_chat_is_answered(here: Scene, anna: int) -> None:
    outside = {"origin": {"type": "hidden_user", "date": 1, "sender_user_name": "x"}, **here.telegram.photo(BLUE)}
    await here.telegram.say(anna, anna, "Outside?", external_reply=outside)
    assert (await here.answer(anna)).text.startswith("I see 1 picture")


async def test_private_answers_grow_as_drafts(here: Scene, anna: int) -> None:
    words = Feed()
    here.vision.on("Count", Reply(words))
    await here.telegram.say(anna, anna, "Count", **here.telegram.photo(RED))
    shown = ""
    for word in ("One", " two", " three"):
        words.add(word)
        shown += word
        await wait_until(lambda shown=shown: [text for _, text in here.telegram.drafts[anna]][-1:] == [shown])
    words.add(" four")
    words.end()
    await wait_until(lambda: [one.text for one in here.telegram.shown(anna)] == ["One two three four"])
    assert len({number for number, _ in here.telegram.drafts[anna]}) == 1
    assert here.telegram.shown(anna)[0].buttons == ["again"]


async def test_answers_in_groups_grow_by_edits(here: Scene, anna: int, group: int) -> None:
    hold = Gate()
    here.vision.on("Grow", Reply(["One", " two", hold, " three"]))
    await here.telegram.say(group, anna, mention("Grow"), **here.telegram.photo(RED))
    await wait_until(lambda: any(one.text == "One two" for one in here.telegram.shown(group)))
    assert here.telegram.shown(group)[0].buttons == ["stop"]
    hold.open()
    await here.answer(group)
    assert [one.text for one in here.telegram.shown(group)] == ["One two three"]


async def test_a_group_upgraded_before_the_answer_gets_it(here: Scene, anna: int, group: int) -> None:
    supergroup = -new_user()
    here.telegram.upgraded[group] = supergroup
    await here.telegram.say(group, anna, mention("Upgraded?"), **here.telegram.photo(RED))
    answer = await here.answer(supergroup)
    # The question has another id in the supergroup.
    assert (answer.text, answer.reply_to) == ("I see 1 picture(s). You asked: Upgraded?", None)
    assert here.telegram.shown(group) == []


async def test_a_group_upgraded_during_an_answer_gets_all_of_it(here: Scene, anna: int, group: int) -> None:
    supergroup = -new_user()
    hold = Gate()
    here.vision.on("Growing group", Reply(["One", " two", hold, " three"]))
    await here.telegram.say(group, anna, mention("Growing group"), **here.telegram.photo(RED))
    await wait_until(lambda: any(one.text == "One two" for one in here.telegram.shown(group)))
    here.telegram.upgraded[group] = supergroup
    hold.open()
    answer = await here.answer(supergroup)
    assert [one.text for one in here.telegram.shown(supergroup)] == ["One two three"]
    assert answer.buttons == ["again"]


async def test_long_answers_are_split_and_complete(here: Scene, anna: int) -> None:
    sentences = [f"Sentence <{number}> & more & more & more. " for number in range(300)]
    here.vision.on("Long", Reply(sentences))
    await here.telegram.say(anna, anna, "Long", **here.telegram.photo(RED))
    await wait_until(lambda: here.telegram.shown(anna) and here.telegram.shown(anna)[-1].buttons == ["again"])
    pages = [one.text for one in here.telegram.shown(anna)]
    assert len(pages) >= 3
    assert " ".join(page.strip() for page in pages) == "".join(sentences).strip()
    assert all(page.strip().endswith(".") for page in pages)


async def test_markup_is_rendered_and_links_are_defused(here: Scene, anna: int) -> None:
    answer = "**Bold** `code` <b>x</b> @everyone [go](https://evil.example) ||secret||\n```py\nif a < b:"
    here.vision.on("Markup", Reply([answer]))
    await here.telegram.say(anna, anna, "Markup", **here.telegram.photo(RED))
    shown = await here.answer(anna)
    assert {"b", "code", "pre", "tg-spoiler"} <= set(shown.entities)
    assert "<a " not in shown.html
    assert "@everyone" not in shown.text
    assert "<code>https://evil.example</code>" in shown.html


async def test_markup_that_telegram_refuses_is_sent_plain(here: Scene, anna: int) -> None:
    here.telegram.refuse_markup_in.add(anna)
    here.vision.on("Refused", Reply(["**Bold** & https://evil.example"]))
    await here.telegram.say(anna, anna, "Refused", **here.telegram.photo(RED))
    shown = await here.answer(anna)
    assert shown.text.startswith("Bold & https:")
    assert "https://evil.example" not in shown.text


async def test_spoilers_stay_spoilered(here: Scene, anna: int) -> None:
    await here.telegram.say(anna, anna, "Hidden?", has_media_spoiler=True, **here.telegram.photo(RED))
    shown = await here.answer(anna)
    assert set(shown.entities) == {"tg-spoiler"}


async def test_the_stop_button_aborts_the_request(here: Scene, anna: int) -> None:
    here.vision.on("Stop me", Reply(["Part", Gate()]))
    aborted = len(here.vision.aborted)
    await here.telegram.say(anna, anna, "Stop me", **here.telegram.photo(RED))
    await wait_until(lambda: here.telegram.drafts[anna])
    (placeholder,) = here.telegram.shown(anna)
    assert placeholder.buttons == ["stop"]
    await here.telegram.press(placeholder, new_user(), "stop")
    await wait_until(lambda: "Only the person who asked can do this." in here.telegram.toasts)
    await here.telegram.press(placeholder, anna, "stop")
    await wait_until(lambda: len(here.vision.aborted) == aborted + 1)
    await wait_until(lambda: [one.text for one in here.telegram.shown(anna)] == ["Part\n\n⏹ Stopped."])


async def test_the_stop_command_aborts_the_request(here: Scene, anna: int) -> None:
    here.vision.on("Stop too", Reply(["a", Gate()]))
    await here.telegram.say(anna, anna, "/stop")
    assert "not answering" in (await here.answer(anna)).text
    aborted = len(here.vision.aborted)
    await here.telegram.say(anna, anna, "Stop too", **here.telegram.photo(RED))
    await wait_until(lambda: here.vision.about("Stop too"))
    await here.telegram.say(anna, anna, "/stop")
    await wait_until(lambda: len(here.vision.aborted) == aborted + 1)


async def test_regenerate_answers_again_in_place(here: Scene, anna: int, group: int) -> None:
    await here.telegram.say(group, anna, mention("Again"), **here.telegram.photo(RED))
    answer = await here.answer(group)
    here.vision.on("Again", Reply(["A second answer"]))
    await here.telegram.press(answer, anna, "again")
    await wait_until(lambda: [one.text for one in here.telegram.shown(group)] == ["A second answer"])
    assert here.vision.about("Again")[-1].body["temperature"] == 1.0
    unknown = Sent(group, 7, "x", [], ["again"], None, None, 0.0)
    await here.telegram.press(unknown, anna, "again")
    await wait_until(lambda: any("no longer have this question" in toast for toast in here.telegram.toasts))


async def test_an_edited_question_is_answered_again(here: Scene, anna: int) -> None:
    question = await here.telegram.say(anna, anna, "First wording", **here.telegram.photo(RED))
    await here.answer(anna)
    await here.telegram.update("edited_message", {**question, "caption": "Second wording", "edit_date": 1})
    await wait_until(lambda: [one.text.endswith("Second wording") for one in here.telegram.shown(anna)] == [True])


async def test_one_answer_at_a_time(here: Scene, anna: int) -> None:
    hold = Gate()
    here.vision.on("Slow one", Reply([hold, count_and_question]))
    await here.telegram.say(anna, anna, "Slow one", **here.telegram.photo(RED))
    await wait_until(lambda: here.vision.about("Slow one"))
    await here.telegram.say(anna, anna, "Impatient", **here.telegram.photo(RED))
    await wait_until(lambda: any("still answering" in one.text for one in here.telegram.shown(anna)))
    hold.open()
    await wait_until(lambda: any(one.text.endswith("Slow one") for one in here.telegram.shown(anna)))
    assert here.vision.about("Impatient") == []


async def test_the_queue_position_is_shown(here: Scene, anna: int) -> None:
    hold = Gate()
    headers = {"x-minigpt4-queue-position": "4", "x-minigpt4-expected-wait": "20"}
    here.vision.on("Line", Reply([hold, "Done"], headers=headers))
    await here.telegram.say(anna, anna, "Line", **here.telegram.photo(RED))
    await wait_until(lambda: any("4 ahead of you, about 20 s" in one.text for one in here.telegram.shown(anna)))
    hold.open()
    assert (await here.answer(anna)).text == "Done"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(429, retry_after="600"), "⚠️ The server is busy. Try again in 10 min."),
        (refusal(400, "invalid_image"), "⚠️ The server can't read this picture."),
        (refusal(500), "⚠️ The picture server failed while answering."),
        (Reply(["Half", Cut()]), "Half\n\n⚠️ The connection to the server was lost"),
    ],
    ids=["full", "bad picture", "broken", "cut"],
)
async def test_errors_are_one_sentence(here: Scene, anna: int, reply: Reply, says: str) -> None:
    here.vision.on(f"Error for {anna}", reply)
    await here.telegram.say(anna, anna, f"Error for {anna}", **here.telegram.photo(RED))
    await wait_until(lambda: any(one.text.startswith(says) for one in here.telegram.shown(anna)))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/start", "I look at pictures"),
        ("/help", "/forget – forget me"),
        ("/privacy", "in memory only, for 60 min"),
        ("/forget", "I have forgotten"),
        ("/reset", "new conversation"),
        ("/ask", "Send me a picture"),
        ("/whatever", "Send me a picture"),
        ("hello", "Send me a picture"),
    ],
)
async def test_commands_are_answered(here: Scene, anna: int, command: str, says: str) -> None:
    await here.telegram.say(anna, anna, command)
    assert says in (await here.answer(anna)).text


async def test_a_flood_of_commands_is_answered_once(here: Scene, anna: int) -> None:
    here.telegram.slow_chats[anna] = all_arrived = asyncio.Event()
    for _ in range(5):
        await here.telegram.say(anna, anna, "/help")
    await here.telegram.say(ben := new_user(), ben, "/help")  # sent last, answered first
    await here.answer(ben)
    all_arrived.set()
    await here.answer(anna)
    await here.telegram.say(anna, anna, "/privacy")
    assert "in memory only" in (await here.answer(anna, 2)).text


async def test_commands_work_in_captions_and_with_the_bots_name(here: Scene, anna: int, group: int) -> None:
    await here.telegram.say(group, anna, f"/ask@{BOT['username']} Captioned", **here.telegram.photo(RED))
    assert (await here.answer(group)).text == "I see 1 picture(s). You asked: Captioned"


async def test_reset_and_forget_end_a_conversation(here: Scene, anna: int) -> None:
    await here.telegram.say(anna, anna, "Remember", **here.telegram.photo(RED))
    first = await here.answer(anna)
    await here.telegram.say(anna, anna, "/reset")
    await here.answer(anna, 2)
    await here.telegram.say(anna, anna, "More?")
    assert "Send me a picture" in (await here.answer(anna, 3)).text
    await here.telegram.say(anna, anna, "/forget")
    await here.answer(anna, 4)
    await here.telegram.say(anna, anna, "More?", reply_to_message=here.telegram.as_json(first))
    assert "no longer have the picture" in (await here.answer(anna, 5)).text


async def test_denied_people_get_the_reason(here: Scene) -> None:
    await here.telegram.say(666, 666, "Denied", **here.telegram.photo(RED))
    assert "You can't use this bot here" in (await here.answer(666)).text
    assert here.vision.about("Denied") == []


async def test_denied_people_may_stop_and_be_forgotten(here: Scene) -> None:
    replies = {
        "/stop": "not answering you",
        "/privacy": "in memory only",
        "/forget": "I have forgotten",
        "/help": "You can't use this bot here",
        "/reset": "You can't use this bot here",
        "/start": "You can't use this bot here",
    }
    group = -new_user()
    for number, (command, says) in enumerate(replies.items(), 1):
        await here.telegram.say(group, 666, command)
        assert says in (await here.answer(group, number)).text


async def test_limits_hold(here: Scene, anna: int) -> None:
    today = time.time() // 86400
    for number in range(PER_DAY + 1):
        await here.telegram.say(anna, anna, f"Limit {number}", **here.telegram.photo(RED))
        await here.answer(anna, number + 1)
    assert here.vision.about(f"Limit {PER_DAY - 1}")
    if time.time() // 86400 == today:  # the count restarts at midnight
        assert "all your questions for today" in here.telegram.shown(anna)[-1].text
        assert not here.vision.about(f"Limit {PER_DAY}")


async def test_flood_control_is_respected_and_the_text_arrives(here: Scene, anna: int) -> None:
    here.telegram.refuse_next[anna].append(Refused(429, "Too Many Requests: retry after 2", retry_after=2))
    begun = time.monotonic()
    await here.telegram.say(anna, anna, "Flooded", **here.telegram.photo(RED))
    await wait_until(lambda: any(one.text.endswith("Flooded") for one in here.telegram.shown(anna)))
    assert time.monotonic() - begun >= 2


async def test_passing_errors_of_telegram_are_retried(here: Scene, anna: int) -> None:
    here.telegram.refuse_next[anna].append(Refused(502, "Bad Gateway"))
    await here.telegram.say(anna, anna, "Troubled", **here.telegram.photo(RED))
    await wait_until(lambda: any(one.text.endswith("Troubled") for one in here.telegram.shown(anna)))


async def test_a_chat_that_blocked_the_bot_gets_nothing(here: Scene, anna: int) -> None:
    assert here.bot is not None
    abandoned = "can't write to the chat of user"
    before = here.bot.printed.count(abandoned)
    here.telegram.gone.add(anna)
    await here.telegram.say(anna, anna, "Blocked", **here.telegram.photo(RED))
    await here.bot.prints(abandoned, times=before + 1)
    here.telegram.gone.discard(anna)
    await here.telegram.say(anna, anna, "Back", **here.telegram.photo(RED))
    await wait_until(lambda: any(one.text.endswith("Back") for one in here.telegram.shown(anna)))


async def test_an_answer_whose_edits_are_refused_is_sent_again(here: Scene, anna: int, group: int) -> None:
    hold = Gate()
    here.vision.on("Locked", Reply([hold, "Still here"]))
    await here.telegram.say(group, anna, mention("Locked"), **here.telegram.photo(RED))
    await wait_until(lambda: here.telegram.shown(group))
    here.telegram.uneditable.add(group)
    hold.open()
    await wait_until(lambda: [one.text for one in here.telegram.shown(group)] == ["Still here"])


async def test_optional_fields_of_telegram_may_be_missing(here: Scene, anna: int) -> None:
    photo = here.telegram.photo(RED)
    for size in photo["photo"]:
        size.pop("file_size", None)
    message = here.telegram.message(anna, anna, "Bare?", **photo)
    del message["from"]["language_code"]
    await here.telegram.update("message", message)
    assert (await here.answer(anna)).text.startswith("I see 1 picture")


async def test_a_deleted_placeholder_is_replaced(here: Scene, anna: int, group: int) -> None:
    hold = Gate()
    here.vision.on("Deleted", Reply([hold, "Still here"]))
    await here.telegram.say(group, anna, mention("Deleted"), **here.telegram.photo(RED))
    await wait_until(lambda: here.telegram.shown(group))
    here.telegram.shown(group)[0].deleted = True
    hold.open()
    await wait_until(lambda: [one.text for one in here.telegram.shown(group)] == ["Still here"])


async def test_a_guest_is_answered_once(here: Scene, anna: int, group: int) -> None:
    picture = here.telegram.message(group, new_user(), **here.telegram.photo(RED))
    question = here.telegram.message(group, anna, mention("Guest?"), reply_to_message=picture)
    await here.telegram.update("guest_message", {**question, "guest_query_id": f"q{anna}"})
    await wait_until(lambda: f"q{anna}" in here.telegram.guests)
    assert here.telegram.guests[f"q{anna}"] == "I see 1 picture(s). You asked: Guest?"
    assert here.telegram.shown(group) == []


async def test_the_commands_are_published(here: Scene) -> None:
    await wait_until(lambda: set(here.telegram.commands) == {"", "zh"})
    assert [one["command"] for one in here.telegram.commands[""]][:2] == ["ask", "reset"]


async def test_another_receiver_is_named_once(here: Scene, anna: int) -> None:
    assert here.bot is not None
    here.telegram.second_receiver = True
    here.telegram._arrived.set()
    await wait_until(lambda: here.telegram.conflicts >= 3)
    await here.bot.prints("409 Conflict")
    here.telegram.second_receiver = False
    await here.telegram.say(anna, anna, "/help")
    await here.answer(anna)
    assert here.bot.printed.count("409 Conflict") == 1


async def test_logs_and_storage_hold_no_ids_and_no_contents(here: Scene, anna: int) -> None:
    await here.telegram.say(anna, anna, "Confidential words", **here.telegram.photo(RED))
    await here.answer(anna)
    stored = b"".join(file.read_bytes() for file in here.folder.glob("minigpt4-bots.sqlite3*"))
    assert len(stored) > 1000
    assert str(anna).encode() not in stored
    assert b"Confidential" not in stored
    assert here.bot is not None
    for secret in (str(anna), "Confidential", "Traceback"):
        assert secret not in here.bot.printed


async def test_no_rate_limit_was_exceeded(here: Scene) -> None:
    assert here.telegram.floods == 0
