"""``minigpt4-telegram`` as a real process, against a strict fake of Telegram and a scripted vision server.

One bot process serves all tests of this file, each in chats of its own, as in life.
"""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from drawing import draw, encode
from fakes.telegram import BOT, TOKEN, FakeTelegram, Refused, Sent
from fakes.vision import FakeVision, Reply

pytestmark = pytest.mark.asyncio(loop_scope="module")

BINARY = str(Path(sys.executable).with_name("minigpt4-telegram"))
RED, BLUE = encode(draw("red")), encode(draw("blue"))
_people = itertools.count(500_001)


@asynccontextmanager
async def bot_process(
    folder: Path, settings: dict[str, Any], **environment: str
) -> AsyncIterator["subprocess.Popen[bytes]"]:
    file = folder / "telegram.yaml"
    file.write_text(yaml.safe_dump({"database": str(folder / "bots.sqlite3"), **settings}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TELEGRAM_", "MINIGPT4_"))}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 — a moment; only its end is waited for
            [BINARY, "--settings", str(file)], stdout=log, stderr=log, env={**kept, **environment}, cwd=folder
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            # The bot says goodbye to the fake, which runs in this loop.
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@dataclass
class Scene:
    telegram: FakeTelegram
    vision: FakeVision
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def start(self, **environment: str) -> Any:
        defaults = {"TELEGRAM_TOKEN": TOKEN, "TELEGRAM_BASE_URL": f"{self.telegram.url}/bot"}
        defaults |= {"MINIGPT4_BASE_URL": self.vision.url}
        return bot_process(self.folder, self.settings, **{**defaults, **environment})

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def polled(self) -> None:
        await until(lambda: self.telegram._polling, within_s=90)  # a busy machine imports slowly

    async def answer(self, chat: int, count: int = 1) -> Sent:
        """The last of so many messages of the bot, when its answer is complete."""
        await until(
            lambda: (
                len(self.telegram.shown(chat)) >= count
                and all(one.buttons != ["stop"] for one in self.telegram.shown(chat))
            )
        )
        return self.telegram.shown(chat)[count - 1]


async def until(condition: Callable[[], object], within_s: float = 25) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def scene_in(folder: Path, settings: dict[str, Any] | None = None) -> AsyncIterator[Scene]:
    async with FakeTelegram().running() as telegram, FakeVision().running() as vision:
        yield Scene(telegram, vision, folder, settings or {})
        assert telegram.mistakes == []
        assert vision.mistakes == []
        assert TOKEN not in (folder / "log").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    settings = {"access": {"deny": {"users": [666]}}, "limits": {"chat_per_minute": None}}
    async with scene_in(tmp_path_factory.mktemp("bot"), settings) as scene, scene.start():
        await scene.polled()
        yield scene


@pytest.fixture
def anna() -> int:
    """A person nobody has met, and the private chat with them."""
    return next(_people)


@pytest.fixture
def group() -> int:
    return -next(_people)


def mention(text: str = "") -> str:
    return f"@{BOT['username']} {text}".strip()


async def test_a_photo_with_a_question(scene: Scene, anna: int) -> None:
    begun = time.monotonic()
    await scene.telegram.say(anna, anna, "How many?", **scene.telegram.photo(RED))
    await until(lambda: scene.telegram.shown(anna))
    assert scene.telegram.shown(anna)[0].at - begun < 1.0
    answer = await scene.answer(anna)
    assert (answer.text, answer.buttons) == ("I see 1 picture(s). You asked: How many?", ["again"])
    assert scene.vision.about("How many?")[-1].pictures == [RED]


async def test_a_photo_alone_in_the_persons_language(scene: Scene, anna: int) -> None:
    await scene.telegram.say(anna, anna, language="zh-hans", **scene.telegram.photo(RED))
    assert "这张图片里有什么？" in (await scene.answer(anna)).text


async def test_a_picture_sent_as_a_file(scene: Scene, anna: int) -> None:
    file = scene.telegram.document(RED, kind="application/octet-stream", name="x")
    await scene.telegram.say(anna, anna, "File?", **file)
    assert (await scene.answer(anna)).text.startswith("I see 1 picture")


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
async def test_files_that_can_not_be_used(
    scene: Scene, anna: int, data: bytes, fields: dict[str, Any], says: str
) -> None:
    await scene.telegram.say(anna, anna, "What?", **scene.telegram.document(data, **fields))
    assert says in (await scene.answer(anna)).text


async def test_videos_are_not_looked_at(scene: Scene, anna: int) -> None:
    video = {"file_id": "v", "file_unique_id": "v", "width": 1, "height": 1, "duration": 1}
    await scene.telegram.say(anna, anna, "What?", video=video)
    assert "only look at still pictures" in (await scene.answer(anna)).text


@pytest.mark.parametrize(("is_animated", "says"), [(False, "I see 1 picture"), (True, "still pictures")])
async def test_stickers(scene: Scene, anna: int, is_animated: bool, says: str) -> None:
    sticker = {
        "file_id": scene.telegram.upload(encode(draw("red"), "WEBP")),
        "file_unique_id": "s",
        "type": "regular",
        "width": 512,
        "height": 512,
        "is_animated": is_animated,
        "is_video": False,
    }
    await scene.telegram.say(anna, anna, sticker=sticker)
    assert says in (await scene.answer(anna)).text


async def test_an_album_is_one_question(scene: Scene, anna: int) -> None:
    colours = ("red", "blue", "green")
    for index, colour in enumerate(colours):
        photo = scene.telegram.photo(encode(draw(colour)))
        await scene.telegram.say(anna, anna, "Album?" if index == 1 else "", media_group_id="g1", **photo)
    assert (await scene.answer(anna)).text == "I see 3 picture(s). You asked: Album?"
    assert scene.vision.about("Album?")[-1].pictures == [encode(draw(colour)) for colour in colours]


async def test_too_many_pictures_are_said_to_be(scene: Scene, anna: int) -> None:
    for index in range(6):
        photo = scene.telegram.photo(encode(draw("red", size=(20 + index, 20))))
        await scene.telegram.say(anna, anna, "", media_group_id="g2", **photo)
    assert "Only 4 of 6 pictures" in (await scene.answer(anna)).text


async def test_follow_ups_with_and_without_reply(scene: Scene, anna: int) -> None:
    await scene.telegram.say(anna, anna, "First of Anna", **scene.telegram.photo(RED))
    first = await scene.answer(anna)
    await scene.telegram.say(anna, anna, "Second of Anna", reply_to_message=scene.telegram.as_json(first))
    await scene.answer(anna, 2)
    await scene.telegram.say(anna, anna, "Third of Anna")
    await scene.answer(anna, 3)
    asked = scene.vision.about("Third of Anna")[-1]
    assert [text for role, text in asked.words if role == "user"] == [
        "First of Anna",
        "Second of Anna",
        "Third of Anna",
    ]
    assert asked.pictures == [RED]


async def test_a_reply_to_somebodys_picture_in_a_group(scene: Scene, anna: int, group: int) -> None:
    ben = next(_people)
    picture = await scene.telegram.say(group, ben, "my holiday", **scene.telegram.photo(BLUE))
    question = await scene.telegram.say(group, anna, mention("Where is it?"), reply_to_message=picture)
    answer = await scene.answer(group)
    assert (answer.text, answer.reply_to) == ("I see 1 picture(s). You asked: Where is it?", question["message_id"])
    assert len(scene.telegram.shown(group)) == 1
    assert scene.vision.about("Where is it?")[-1].pictures == [BLUE]


async def test_groups_are_left_alone_unless_the_bot_is_meant(scene: Scene, anna: int, group: int) -> None:
    await scene.telegram.say(group, anna, "look at this", **scene.telegram.photo(RED))
    await scene.telegram.say(group, anna, "/ask@other_bot what?")
    await scene.telegram.say(group, anna, "/unknown")
    bot = {**scene.telegram.message(group, 1, mention("hi")), "from": {**BOT, "id": 5, "username": "b"}}
    await scene.telegram.update("message", bot)
    await scene.telegram.say(anna, anna, "/help")
    await scene.answer(anna)
    assert scene.telegram.shown(group) == []


async def test_people_in_a_group_are_kept_apart(scene: Scene, anna: int, group: int) -> None:
    ben = next(_people)
    await scene.telegram.say(group, anna, mention("Anna's question"), **scene.telegram.photo(RED))
    await scene.answer(group)
    await scene.telegram.say(group, ben, mention("Ben's words"))
    assert "Send me a picture" in (await scene.answer(group, 2)).text
    await scene.telegram.say(group, anna, "/ask Anna's second")
    await scene.answer(group, 3)
    assert scene.vision.about("Anna's second")[-1].pictures == [RED]


async def test_topics_are_kept_apart(scene: Scene, anna: int, group: int) -> None:
    opened = scene.telegram.message(group, anna, forum_topic_created={"name": "T", "icon_color": 1})
    opened["from"] = BOT
    topic = {"is_topic_message": True, "reply_to_message": opened}
    await scene.telegram.say(group, anna, "no question", message_thread_id=7, **topic)
    photo = scene.telegram.photo(RED)
    await scene.telegram.say(group, anna, mention("In topic 7"), message_thread_id=7, **topic, **photo)
    assert (await scene.answer(group)).thread == 7
    await scene.telegram.say(group, anna, mention("In topic 8"), message_thread_id=8, **topic)
    second = await scene.answer(group, 2)
    assert second.thread == 8
    assert "Send me a picture" in second.text


async def test_a_reply_to_the_bot_continues_for_anybody(scene: Scene, anna: int, group: int) -> None:
    await scene.telegram.say(group, anna, mention("Of Anna"), **scene.telegram.photo(RED))
    first = await scene.answer(group)
    ben = next(_people)
    await scene.telegram.say(group, ben, "Of Ben", reply_to_message=scene.telegram.as_json(first))
    await scene.answer(group, 2)
    asked = scene.vision.about("Of Ben")[-1]
    assert asked.pictures == [RED]
    assert [message.get("name") for message in asked.body["messages"]] == ["user_1", None, "user_2"]


async def test_a_picture_from_another_chat(scene: Scene, anna: int) -> None:
    outside = {"origin": {"type": "hidden_user", "date": 1, "sender_user_name": "x"}, **scene.telegram.photo(BLUE)}
    await scene.telegram.say(anna, anna, "Outside?", external_reply=outside)
    assert (await scene.answer(anna)).text.startswith("I see 1 picture")


async def test_private_answers_grow_as_drafts(scene: Scene, anna: int) -> None:
    pieces = ["One", " two", " three", " four"]
    scene.vision.on("Count", Reply(pieces=pieces, delay_s=0.9))
    await scene.telegram.say(anna, anna, "Count", **scene.telegram.photo(RED))
    await until(lambda: any(one.text == "One two three four" for one in scene.telegram.shown(anna)))
    drafts = scene.telegram.drafts[anna]
    assert len(drafts) >= 2
    assert len({number for number, _ in drafts}) == 1
    assert all("One two three four".startswith(text) for _, text in drafts)
    await until(lambda: len(scene.telegram.shown(anna)) == 1)
    assert scene.telegram.shown(anna)[0].buttons == ["again"]


async def test_answers_in_groups_grow_by_edits(scene: Scene, anna: int, group: int) -> None:
    scene.vision.on("Grow", Reply(pieces=["One", " two", " three"], delay_s=2.0))
    await scene.telegram.say(group, anna, mention("Grow"), **scene.telegram.photo(RED))
    await until(lambda: any(one.text.startswith("One") for one in scene.telegram.shown(group)))
    assert scene.telegram.shown(group)[0].buttons == ["stop"]
    await scene.answer(group)
    assert [one.text for one in scene.telegram.shown(group)] == ["One two three"]


async def test_long_answers_are_split_and_complete(scene: Scene, anna: int) -> None:
    sentences = [f"Sentence <{number}> & more & more & more. " for number in range(300)]
    scene.vision.on("Long", Reply(pieces=sentences))
    await scene.telegram.say(anna, anna, "Long", **scene.telegram.photo(RED))
    await until(lambda: scene.telegram.shown(anna) and scene.telegram.shown(anna)[-1].buttons == ["again"])
    pages = [one.text for one in scene.telegram.shown(anna)]
    assert len(pages) >= 3
    assert " ".join(page.strip() for page in pages) == "".join(sentences).strip()
    assert all(page.strip().endswith(".") for page in pages)


async def test_markup_and_links(scene: Scene, anna: int) -> None:
    answer = "**Bold** `code` <b>x</b> @everyone [go](https://evil.example) ||secret||\n```py\nif a < b:"
    scene.vision.on("Markup", Reply(pieces=[answer]))
    await scene.telegram.say(anna, anna, "Markup", **scene.telegram.photo(RED))
    shown = await scene.answer(anna)
    assert {"b", "code", "pre", "tg-spoiler"} <= set(shown.entities)
    assert "<a " not in shown.html
    assert "@everyone" not in shown.text
    assert "<code>https://evil.example</code>" in shown.html


async def test_markup_that_telegram_refuses_is_sent_plain(scene: Scene, anna: int) -> None:
    scene.telegram.refuse_markup_in.add(anna)
    scene.vision.on("Refused", Reply(pieces=["**Bold** & https://evil.example"]))
    await scene.telegram.say(anna, anna, "Refused", **scene.telegram.photo(RED))
    shown = await scene.answer(anna)
    assert shown.text.startswith("Bold & https:")
    assert "https://evil.example" not in shown.text


async def test_spoilers_stay_spoilered(scene: Scene, anna: int) -> None:
    await scene.telegram.say(anna, anna, "Hidden?", has_media_spoiler=True, **scene.telegram.photo(RED))
    shown = await scene.answer(anna)
    assert set(shown.entities) == {"tg-spoiler"}


async def test_the_stop_button_frees_the_slot(scene: Scene, anna: int) -> None:
    scene.vision.on("Stop me", Reply(pieces=["Part", " rest"], hold=asyncio.Event()))
    aborted = scene.vision.aborted
    await scene.telegram.say(anna, anna, "Stop me", **scene.telegram.photo(RED))
    await until(lambda: scene.telegram.drafts[anna])
    (placeholder,) = scene.telegram.shown(anna)
    assert placeholder.buttons == ["stop"]
    await scene.telegram.press(placeholder, next(_people), "stop")
    await until(lambda: "Only the person who asked can do this." in scene.telegram.toasts)
    await scene.telegram.press(placeholder, anna, "stop")
    await until(lambda: scene.vision.aborted == aborted + 1)
    await until(lambda: [one.text for one in scene.telegram.shown(anna)] == ["Part\n\n⏹ Stopped."])


async def test_the_stop_command(scene: Scene, anna: int) -> None:
    scene.vision.on("Stop too", Reply(pieces=["a", "b"], hold=asyncio.Event()))
    await scene.telegram.say(anna, anna, "/stop")
    assert "not answering" in (await scene.answer(anna)).text
    aborted = scene.vision.aborted
    await scene.telegram.say(anna, anna, "Stop too", **scene.telegram.photo(RED))
    await until(lambda: scene.vision.about("Stop too"))
    await scene.telegram.say(anna, anna, "/stop")
    await until(lambda: scene.vision.aborted == aborted + 1)


async def test_regenerate_writes_anew_in_place(scene: Scene, anna: int, group: int) -> None:
    await scene.telegram.say(group, anna, mention("Again"), **scene.telegram.photo(RED))
    answer = await scene.answer(group)
    scene.vision.on("Again", Reply(pieces=["A second answer"]))
    await scene.telegram.press(answer, anna, "again")
    await until(lambda: [one.text for one in scene.telegram.shown(group)] == ["A second answer"])
    assert scene.vision.about("Again")[-1].body["temperature"] == 1.0
    unknown = Sent(group, 7, "x", [], ["again"], None, None, 0.0)
    await scene.telegram.press(unknown, anna, "again")
    await until(lambda: any("no longer have this question" in toast for toast in scene.telegram.toasts))


async def test_an_edited_question_is_answered_anew(scene: Scene, anna: int) -> None:
    question = await scene.telegram.say(anna, anna, "First wording", **scene.telegram.photo(RED))
    await scene.answer(anna)
    await scene.telegram.update("edited_message", {**question, "caption": "Second wording", "edit_date": 1})
    await until(lambda: [one.text.endswith("Second wording") for one in scene.telegram.shown(anna)] == [True])


async def test_one_answer_at_a_time(scene: Scene, anna: int) -> None:
    hold = asyncio.Event()
    scene.vision.on("Slow one", Reply(hold=hold))
    await scene.telegram.say(anna, anna, "Slow one", **scene.telegram.photo(RED))
    await until(lambda: scene.vision.about("Slow one"))
    await scene.telegram.say(anna, anna, "Impatient", **scene.telegram.photo(RED))
    await until(lambda: any("still answering" in one.text for one in scene.telegram.shown(anna)))
    hold.set()
    await until(lambda: any(one.text.endswith("Slow one") for one in scene.telegram.shown(anna)))
    assert scene.vision.about("Impatient") == []


async def test_the_place_in_line_is_shown(scene: Scene, anna: int) -> None:
    hold = asyncio.Event()
    headers = {"x-minigpt4-queue-position": "4", "x-minigpt4-expected-wait": "20"}
    scene.vision.on("Line", Reply(headers=headers, hold=hold, pieces=["Done"]))
    await scene.telegram.say(anna, anna, "Line", **scene.telegram.photo(RED))
    await until(lambda: any("4 ahead of you, about 20 s" in one.text for one in scene.telegram.shown(anna)))
    hold.set()
    assert (await scene.answer(anna)).text == "Done"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(status=429, headers={"retry-after": "600"}), "⚠️ The server is busy. Try again in 10 min."),
        (Reply(status=400, code="invalid_image"), "⚠️ The server can't read this picture."),
        (Reply(status=500), "⚠️ Something went wrong."),
        (Reply(pieces=["Half", "x"], break_after=1), "Half\n\n⚠️ The connection to the server was lost"),
    ],
    ids=["full", "bad picture", "broken", "cut"],
)
async def test_errors_are_one_sentence(scene: Scene, anna: int, reply: Reply, says: str) -> None:
    scene.vision.on(f"Error for {anna}", reply)
    await scene.telegram.say(anna, anna, f"Error for {anna}", **scene.telegram.photo(RED))
    await until(lambda: any(one.text.startswith(says) for one in scene.telegram.shown(anna)))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/start", "I look at pictures"),
        ("/help", "/forget – forget me"),
        ("/privacy", "in memory only, for 60 min"),
        ("/forget", "I have forgotten"),
        ("/reset", "We start anew"),
        ("/ask", "Send me a picture"),
        ("/whatever", "Send me a picture"),
        ("hello", "Send me a picture"),
    ],
)
async def test_commands(scene: Scene, anna: int, command: str, says: str) -> None:
    await scene.telegram.say(anna, anna, command)
    assert says in (await scene.answer(anna)).text


async def test_commands_in_captions_and_with_the_bots_name(scene: Scene, anna: int, group: int) -> None:
    await scene.telegram.say(group, anna, f"/ask@{BOT['username']} Captioned", **scene.telegram.photo(RED))
    assert (await scene.answer(group)).text == "I see 1 picture(s). You asked: Captioned"


async def test_reset_and_forget_end_a_conversation(scene: Scene, anna: int) -> None:
    await scene.telegram.say(anna, anna, "Remember", **scene.telegram.photo(RED))
    first = await scene.answer(anna)
    await scene.telegram.say(anna, anna, "/reset")
    await scene.answer(anna, 2)
    await scene.telegram.say(anna, anna, "More?")
    assert "Send me a picture" in (await scene.answer(anna, 3)).text
    await scene.telegram.say(anna, anna, "/forget")
    await scene.answer(anna, 4)
    await scene.telegram.say(anna, anna, "More?", reply_to_message=scene.telegram.as_json(first))
    assert "no longer have the picture" in (await scene.answer(anna, 5)).text


async def test_denied_people_hear_why(scene: Scene) -> None:
    await scene.telegram.say(666, 666, "Denied", **scene.telegram.photo(RED))
    assert "You can't use this bot here" in (await scene.answer(666)).text
    assert scene.vision.about("Denied") == []


async def test_limits_hold(scene: Scene, anna: int) -> None:
    for number in range(7):
        await scene.telegram.say(anna, anna, f"Limit {number}", **scene.telegram.photo(RED))
        await scene.answer(anna, number + 1)
    assert "many questions in one minute" in scene.telegram.shown(anna)[-1].text
    assert scene.vision.about("Limit 5")
    assert not scene.vision.about("Limit 6")


async def test_flood_control_is_respected_and_the_text_arrives(scene: Scene, anna: int) -> None:
    scene.telegram.refuse_next.append(Refused(429, "Too Many Requests: retry after 2", retry_after=2))
    begun = time.monotonic()
    await scene.telegram.say(anna, anna, "Flooded", **scene.telegram.photo(RED))
    await until(lambda: any(one.text.endswith("Flooded") for one in scene.telegram.shown(anna)))
    assert time.monotonic() - begun >= 2


async def test_a_moment_of_trouble_at_telegram(scene: Scene, anna: int) -> None:
    scene.telegram.refuse_next.append(Refused(502, "Bad Gateway"))
    await scene.telegram.say(anna, anna, "Troubled", **scene.telegram.photo(RED))
    await until(lambda: any(one.text.endswith("Troubled") for one in scene.telegram.shown(anna)))


async def test_who_blocked_the_bot_is_left_alone(scene: Scene, anna: int) -> None:
    scene.telegram.gone.add(anna)
    await scene.telegram.say(anna, anna, "Blocked", **scene.telegram.photo(RED))
    await until(lambda: any(values.get("chat_id") == anna for _, _, values in scene.telegram.calls))
    scene.telegram.gone.discard(anna)
    await scene.telegram.say(anna, anna, "Back", **scene.telegram.photo(RED))
    await until(lambda: any(one.text.endswith("Back") for one in scene.telegram.shown(anna)))


async def test_a_deleted_placeholder_is_replaced(scene: Scene, anna: int, group: int) -> None:
    hold = asyncio.Event()
    scene.vision.on("Deleted", Reply(hold=hold, pieces=["Still here"]))
    await scene.telegram.say(group, anna, mention("Deleted"), **scene.telegram.photo(RED))
    await until(lambda: scene.telegram.shown(group))
    scene.telegram.shown(group)[0].deleted = True
    hold.set()
    await until(lambda: [one.text for one in scene.telegram.shown(group)] == ["Still here"])


async def test_a_guest_is_answered_once(scene: Scene, anna: int, group: int) -> None:
    picture = scene.telegram.message(group, next(_people), **scene.telegram.photo(RED))
    question = scene.telegram.message(group, anna, mention("Guest?"), reply_to_message=picture)
    await scene.telegram.update("guest_message", {**question, "guest_query_id": f"q{anna}"})
    await until(lambda: f"q{anna}" in scene.telegram.guests)
    assert scene.telegram.guests[f"q{anna}"] == "I see 1 picture(s). You asked: Guest?"
    assert scene.telegram.shown(group) == []


async def test_the_commands_are_published(scene: Scene) -> None:
    await until(lambda: set(scene.telegram.commands) == {"", "zh"})
    assert [one["command"] for one in scene.telegram.commands[""]][:2] == ["ask", "reset"]


async def test_another_receiver_is_named_once(scene: Scene, anna: int) -> None:
    scene.telegram.second_receiver = True
    scene.telegram._arrived.set()
    await until(lambda: "409 Conflict" in scene.log)
    await asyncio.sleep(1.5)
    assert scene.log.count("409 Conflict") == 1
    scene.telegram.second_receiver = False
    await scene.telegram.say(anna, anna, "/help")
    await scene.answer(anna)


async def test_logs_and_storage_hold_no_ids_and_no_contents(scene: Scene, anna: int) -> None:
    await scene.telegram.say(anna, anna, "Confidential words", **scene.telegram.photo(RED))
    await scene.answer(anna)
    for file in scene.folder.glob("bots.sqlite3*"):
        data = file.read_bytes()
        assert str(anna).encode() not in data
        assert b"Confidential" not in data
    assert str(anna) not in scene.log
    assert "Confidential" not in scene.log
    assert "Traceback" not in scene.log


async def test_no_flood_was_ever_met(scene: Scene) -> None:
    assert scene.telegram.floods == 0
