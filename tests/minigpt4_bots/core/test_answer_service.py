"""The core against the fake server, with a stage in memory instead of a platform."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import Cut, ErrorEvent, Gate, Reply, count_and_question, refusal
from fakes.openai_server import OpenAIServer, bots_server
from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.answer_service import Answering
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.markup import safe_markdown, utf16_length
from minigpt4_bots.core.question import Attachment, NotFetched, Question, Quoted, TooLarge
from minigpt4_bots.core.send_queue import Rate, Urgency
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.streaming import Buttons, ChatGone, Content, MessageGone
from waiting import until

from minigpt4_serve.errors import MiniGPT4Error, Overloaded
from minigpt4_serve.server.http.auth import Admission
from minigpt4_serve.server.http.deadline import before
from minigpt4_serve.server.http.error_handlers import error_response
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits
from minigpt4_serve.server.keys.quotas import LocalQuotas, QuotaStore

ANNA = Asker("test", "1", "chat")
BEN = Asker("test", "2", "chat")


@dataclass
class Room:
    """A chat in memory: an ``Outlet`` for all who are in it."""

    shown: dict[str, Content] = field(default_factory=dict)
    limit: int = 500
    previews: bool = False
    traffic_key: str = "chat"
    sent: int = 0
    is_gone: bool = False
    telling: asyncio.Event | None = None
    """Until then messages are seen by all, but the bot isn't told their ids."""

    def measure(self, text: str, spoiler: bool) -> int:
        return utf16_length(safe_markdown(text, spoiler=spoiler))

    def key_of(self, message: str) -> MessageKey:
        return MessageKey("chat", message)

    async def send(self, content: Content) -> str:
        if self.is_gone:
            raise ChatGone
        self.sent += 1
        message = f"b{self.sent}"
        self.shown[message] = content
        if self.telling is not None:
            await self.telling.wait()
        return message

    async def edit(self, message: str, content: Content) -> None:
        if message not in self.shown:
            raise MessageGone
        self.shown[message] = content

    async def delete(self, message: str) -> None:
        del self.shown[message]

    async def preview(self, content: Content) -> None:
        raise AssertionError("not asked for")

    @property
    def texts(self) -> list[str]:
        return [content.text for content in self.shown.values()]


def file_of(data: bytes, **changes: Any) -> Attachment:
    async def load(_: int) -> bytes:
        return data

    return Attachment(load, **changes)


def failing(error: Exception) -> Attachment:
    async def load(_: int) -> bytes:
        raise error

    return Attachment(load)


class Scene:
    """A bot, its server and a room."""

    def __init__(self, vision: OpenAIServer, folder: Path, **changes: Any) -> None:
        self.vision = vision
        self.room = Room()
        self.settings = BotSettings.model_validate(
            {"server": {"base_url": vision.url, "model": None}, "database": folder / "db", **changes}
        )
        self.bot = self.build()
        self._number = 0

    def build(self) -> Answering:
        return Answering.build(self.settings, "test", file=None, overall=[], rates_of=lambda _: [Rate(1, 0.005)])

    def question(self, text: str = "", *files: Attachment, asker: Asker = ANNA, **changes: Any) -> Question:
        self._number += 1
        key = MessageKey("chat", f"q{self._number}")
        return Question(asker, key, text, files, place="the room", **changes)

    async def ask(self, text: str = "", *files: Attachment, **changes: Any) -> Question:
        question = self.question(text, *files, **changes)
        await self.bot.ask(question, self.room)
        return question

    @property
    def last(self) -> str:
        return self.room.texts[-1]


@pytest.fixture
def vision() -> Iterator[OpenAIServer]:
    with bots_server() as server:
        yield server


@asynccontextmanager
async def scene_of(vision: OpenAIServer, folder: Path, **changes: Any) -> AsyncIterator[Scene]:
    scene = Scene(vision, folder, **changes)
    yield scene
    await scene.bot.close()


@pytest.fixture
async def scene(vision: OpenAIServer, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_of(vision, tmp_path) as scene:
        yield scene


def png(colour: str) -> bytes:
    return encode(draw(colour))


RED, BLUE = png("red"), png("blue")


async def test_a_picture_with_a_question_is_answered(scene: Scene) -> None:
    await scene.ask("How many?", file_of(RED))
    assert scene.room.texts == ["I see 1 picture(s). You asked: How many?"]
    assert [content.buttons for content in scene.room.shown.values()] == [Buttons.AGAIN]
    assert scene.vision.requests[-1].images == [RED]
    assert scene.bot.storage.unfinished_answers("test") == []


@pytest.mark.parametrize(("language", "asked"), [("en", "What is in this picture?"), ("zh-CN", "这张图片里有什么？")])
async def test_an_image_without_text_gets_the_default_question(scene: Scene, language: str, asked: str) -> None:
    await scene.ask("", file_of(RED), asker=replace(ANNA, language=language))
    assert scene.vision.requests[-1].text == asked


async def test_replies_carry_the_whole_conversation(scene: Scene) -> None:
    await scene.ask("One?", file_of(RED))
    await scene.ask("Two?", parent=MessageKey("chat", "b1"))
    await scene.ask("Three?", file_of(BLUE), parent=MessageKey("chat", "b2"))
    asked = scene.vision.requests[-1]
    assert [text for role, text in asked.transcript if role == "user"] == ["One?", "Two?", "Three?"]
    assert asked.transcript[1] == ("assistant", "I see 1 picture(s). You asked: One?")
    assert asked.images == [RED, BLUE]


@pytest.mark.parametrize("by_reply", [False, True])
async def test_long_conversations_keep_their_image(vision: OpenAIServer, tmp_path: Path, by_reply: bool) -> None:
    async with scene_of(vision, tmp_path, limits={"user_per_minute": None, "chat_per_minute": None}) as scene:
        await scene.ask("Question 0", file_of(RED, spoiler=True))
        for number in range(1, 16):
            parent = MessageKey("chat", f"b{number}") if by_reply else None
            await scene.ask(f"Question {number}", parent=parent)
            assert scene.last.endswith(f"Question {number}")
        asked = vision.requests[-1]
        assert asked.images == [RED]
        # Words are cut: the newest twenty messages above the question go along.
        assert [text for role, text in asked.transcript if role == "user"] == [f"Question {n}" for n in range(5, 16)]
        assert all(content.spoiler for content in scene.room.shown.values())
        assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b16"), scene.room) is None
        assert vision.requests[-1].images == [RED]


@pytest.mark.parametrize("max_turns", [1, 2, 3])
async def test_images_of_truncated_history_are_still_sent(vision: OpenAIServer, tmp_path: Path, max_turns: int) -> None:
    async with scene_of(vision, tmp_path, answers={"max_turns": max_turns}, pictures={"max_count": 2}) as scene:
        await scene.ask("One?", file_of(RED))
        await scene.ask("Two?", parent=MessageKey("chat", "b1"))
        await scene.ask("Three?", file_of(BLUE), parent=MessageKey("chat", "b2"))
        assert vision.requests[-1].images == [RED, BLUE]
        await scene.ask("Four?", file_of(png("green")), parent=MessageKey("chat", "b3"))
        assert vision.requests[-1].images == [BLUE, png("green")]
        assert vision.requests[-1].transcript[0][0] == "user"


async def test_without_a_reply_each_person_has_a_conversation(scene: Scene) -> None:
    await scene.ask("Anna's", file_of(RED))
    await scene.ask("Ben's", file_of(BLUE), asker=BEN)
    await scene.ask("And now?")
    assert [text for role, text in scene.vision.requests[-1].transcript if role == "user"] == ["Anna's", "And now?"]
    assert scene.vision.requests[-1].images == [RED]


async def test_several_people_in_one_conversation_are_named(scene: Scene) -> None:
    await scene.ask("Anna's", file_of(RED))
    await scene.ask("Ben's", asker=BEN, parent=MessageKey("chat", "b1"))
    names = [message.get("name") for message in scene.vision.requests[-1].body["messages"]]
    assert names == ["user_1", None, "user_2"]


async def test_a_new_image_begins_a_new_conversation(scene: Scene) -> None:
    await scene.ask("One?", file_of(RED))
    await scene.ask("Two?", file_of(BLUE))
    assert scene.vision.requests[-1].images == [BLUE]


async def test_an_image_in_the_message_replied_to_is_sent(scene: Scene) -> None:
    async def fetch(_: MessageKey) -> Quoted:
        return Quoted("user", "A caption", (file_of(RED),), author="77")

    await scene.ask("Which colour?", parent=MessageKey("chat", "p1"), fetch=fetch)
    assert scene.vision.requests[-1].transcript == [("user", "Which colour?")]
    assert scene.vision.requests[-1].images == [RED]
    await scene.ask("", parent=MessageKey("chat", "p1"), fetch=fetch)
    assert scene.vision.requests[-1].text == "A caption"


async def test_an_evicted_reply_chain_is_fetched(scene: Scene) -> None:
    messages = {
        "p3": Quoted("assistant", "A cat.", parent=MessageKey("chat", "p2")),
        "p2": Quoted("user", "What is it?", (file_of(RED),)),
    }

    async def fetch(key: MessageKey) -> Quoted | None:
        return messages.get(key.message)

    await scene.ask("And its colour?", parent=MessageKey("chat", "p3"), fetch=fetch)
    assert scene.vision.requests[-1].transcript == [
        ("user", "What is it?"),
        ("assistant", "A cat."),
        ("user", "And its colour?"),
    ]
    assert scene.vision.requests[-1].images == [RED]


async def test_an_evicted_image_is_asked_for(scene: Scene) -> None:
    async def fetch(_: MessageKey) -> Quoted:
        return Quoted("assistant", "A cat.")

    await scene.ask("And its colour?", parent=MessageKey("chat", "p3"), fetch=fetch)
    assert scene.last == "I no longer have the picture of this conversation. Please send it again."
    assert scene.vision.requests == []


async def test_text_without_an_image_gets_a_hint(scene: Scene) -> None:
    await scene.ask("Hello")
    assert "Send me a picture" in scene.last
    assert scene.vision.requests == []


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (file_of(b"%PDF-1.7"), "1 × not a picture"),
        (file_of(RED[:20]), "1 × not a picture"),
        (file_of(b""), "1 × not a picture"),
        (file_of(RED, size=2**30), "1 × too large: at most 10 MB"),
        (file_of(b"\x89PNG" + bytes(11 * 2**20)), "1 × too large"),
        (failing(TooLarge()), "1 × too large"),
        (failing(NotFetched()), "1 × couldn't be downloaded"),
        (file_of(RED, unusable="moving"), "1 × moving"),
        (file_of(RED, unusable="not_a_picture"), "1 × not a picture"),
    ],
)
async def test_unusable_attachments_are_reported(scene: Scene, file: Attachment, says: str) -> None:
    await scene.ask("With a good one", file, file_of(BLUE))
    assert scene.last.startswith("I see 1 picture(s).")
    assert says in scene.last
    await scene.ask("Alone", file)
    assert says in scene.last
    assert scene.vision.about("Alone") == []


async def test_too_many_images_are_reported(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.card = {"max_images": 2}
    async with scene_of(vision, tmp_path) as scene:
        await scene.ask("Three?", *(file_of(png(colour)) for colour in ("red", "blue", "green")))
        assert "Only 2 of 3 pictures" in scene.last
        await scene.ask("Four?", file_of(png("white")), parent=MessageKey("chat", "b1"))
        assert vision.requests[-1].images == [png("blue"), png("white")]
        assert "at most 2 fit" in scene.last


async def test_any_openai_compatible_server_works(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.card = {}
    async with scene_of(vision, tmp_path, server={"base_url": vision.url, "api_key": "k1"}) as scene:
        await scene.ask("Hi", file_of(RED))
        assert vision.requests[-1].key == "k1"
        assert scene.last.startswith("I see 1")


async def test_long_answers_are_complete_over_several_messages(scene: Scene) -> None:
    sentences = [f"This is sentence number {number}. " for number in range(100)]
    scene.vision.on("Long", Reply(sentences))
    await scene.ask("Long", file_of(RED))
    assert " ".join(" ".join(scene.room.texts).split()) == "".join(sentences).strip()
    assert [content.buttons for content in scene.room.shown.values()][-2:] == [Buttons.NONE, Buttons.AGAIN]
    await scene.ask("More", parent=MessageKey("chat", "b2"))
    assert scene.vision.requests[-1].images == [RED]


async def test_the_queue_position_is_shown(scene: Scene) -> None:
    headers = {"x-minigpt4-queue-position": "3", "x-minigpt4-expected-wait": "12.0"}
    hold = Gate()
    scene.vision.on("Busy", Reply([hold, "Done"], headers=headers, comments=("waiting, 2 ahead",)))
    asking = asyncio.create_task(scene.ask("Busy", file_of(RED)))
    await until(lambda: "2 ahead" in "".join(scene.room.texts))
    hold.open()
    await asking
    assert scene.last == "Done"


async def test_a_full_server_is_asked_again(scene: Scene) -> None:
    scene.vision.on("Full", refusal(429, retry_after="0.2"), times=2)
    await scene.ask("Full", file_of(RED))
    assert scene.last.startswith("I see 1 picture")
    assert len(scene.vision.about("Full")) == 3


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal(429, retry_after="3600"), "⚠️ The server is busy. Try again in 60 min."),
        (refusal(503, "engine_failed"), "⚠️ The picture server failed while answering."),
        (refusal(401), "⚠️ The picture server doesn't accept this bot's key."),
        (refusal(400, "invalid_image"), "⚠️ The server can't read this picture."),
        (refusal(400, "context_length_exceeded"), "⚠️ This conversation has become too long."),
        (refusal(400, "whatever"), "⚠️ The server refused the question."),
        (refusal(404, "model_not_found"), "⚠️ The server doesn't have the model"),
        (refusal(413), "⚠️ The pictures are too large"),
        (refusal(500), "⚠️ The picture server failed"),
        (Reply([Cut()]), "⚠️ The picture server can't be reached"),
        (Reply(["Half ", Cut()]), "Half \n\n⚠️ The connection to the server was lost"),
        (Reply(["Half ", ErrorEvent("engine_failed")]), "Half \n\n⚠️ The picture server failed"),
        (Reply(["Half ", ErrorEvent("deadline_exceeded")]), "Half \n\n⚠️ The time for this answer"),
        (refusal(408), "⚠️ The time for this answer ran out."),
        (Reply([]), "The model gave no answer."),
        (Reply(["Long"], finish_reason="length"), "Long\n\nThe answer reached its longest allowed length."),
        (Reply(["Ok"], finish_reason=None), "Ok"),
        (Reply(["Ok"], headers={"x-minigpt4-dropped-messages": "2"}), "Ok\n\nThe oldest messages"),
    ],
)
async def test_errors_are_one_plain_sentence(scene: Scene, reply: Reply, says: str) -> None:
    scene.vision.on("Try", reply)
    await scene.ask("Try", file_of(RED))
    assert scene.last.startswith(says)
    assert "SECRET" not in scene.last


async def _a_key_with(limits: KeyLimits) -> None:
    """Two requests with a picture each, at 13:30 UTC, by one key on minigpt4-serve."""
    quotas = LocalQuotas(QuotaStore(lambda: 86400 * 20_000 + 13.5 * 3600))
    key = ApiKey(id="bot", name="bot", sha256="0" * 64, created=datetime.now(UTC), limits=limits)
    for _ in range(2):
        admission = Admission(key, quotas)
        await admission.begin()
        await admission.charge(1)


async def _a_full_house() -> None:
    raise Overloaded.queue_full(7.2)


async def _a_deadline() -> None:
    async with before(asyncio.get_running_loop().time()):
        await asyncio.Event().wait()


_SHARE = "⚠️ This bot's share of the picture server is used up. Try again in "
_OPERATOR = "This bot's key has used up its share of the vision server, for another "


@pytest.mark.parametrize(
    ("refused", "says", "logged"),
    [
        (_a_full_house, "⚠️ The server is busy. Try again in 8 s.", "an answer failed: overloaded"),
        (partial(_a_key_with, KeyLimits(requests_per_minute=1)), f"{_SHARE}60 s.", f"{_OPERATOR}60 seconds."),
        (partial(_a_key_with, KeyLimits(concurrent_requests=1)), f"{_SHARE}1 s.", f"{_OPERATOR}1 second."),
        (partial(_a_key_with, KeyLimits(images_per_day=1)), f"{_SHARE}11 h.", f"{_OPERATOR}11 hours."),
        (
            _a_deadline,
            "⚠️ The time for this answer ran out. Ask for a shorter one, or try again in a minute.",
            "an answer failed: deadline_exceeded",
        ),
    ],
    ids=["full", "a minute's requests", "requests at once", "a day's pictures", "deadline"],
)
async def test_overload_quotas_and_deadlines_have_own_messages(
    refused: Callable[[], Awaitable[None]],
    says: str,
    logged: str,
    vision: OpenAIServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(MiniGPT4Error) as raised:
        await refused()
    real = error_response(raised.value)
    headers = {name: real.headers[name] for name in ("retry-after", "x-should-retry") if name in real.headers}
    vision.on("Try", Reply(status=real.status_code, body=json.loads(bytes(real.body)), headers=headers))
    async with scene_of(vision, tmp_path, server={"base_url": vision.url, "patience_s": 0}) as scene:
        await scene.ask("Try", file_of(RED))
        assert scene.room.texts == [says]
    (record,) = [record for record in caplog.records if record.name == "minigpt4_bots.core.answer_service"]
    assert record.getMessage().startswith(logged)
    assert len(scene.vision.about("Try")) == 1


async def test_a_wait_is_shown_without_retry_after(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.on("Full", refusal(429))
    async with scene_of(vision, tmp_path, server={"base_url": vision.url, "patience_s": 0}) as scene:
        await scene.ask("Full", file_of(RED))
        assert scene.last == "⚠️ The server is busy. Try again in 5 s."


async def test_failures_use_no_quota_and_can_be_retried(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.on("Try", refusal(500), times=1)
    async with scene_of(vision, tmp_path, limits={"user_per_day": 1}) as scene:
        await scene.ask("Try", file_of(RED))
        assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.room) is None
        assert scene.room.texts == ["I see 1 picture(s). You asked: Try"]
        assert "all your questions for today" in (
            await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.room) or ""
        )


async def test_an_unreachable_server_is_reported(tmp_path: Path) -> None:
    async with scene_of(OpenAIServer(port=9), tmp_path) as scene:
        await scene.ask("Anybody?", file_of(RED))
        assert scene.last.startswith("⚠️ The picture server can't be reached")


async def test_stop_aborts_the_request(scene: Scene) -> None:
    scene.vision.on("Slow", Reply(["Part", Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED)))
    await until(lambda: scene.room.texts == ["Part"])
    assert await scene.bot.stop_shown(BEN, MessageKey("chat", "b1")) == "Only the person who asked can do this."
    assert scene.bot.stop(BEN) == "I'm not answering you at the moment."
    assert await scene.bot.stop_shown(ANNA, MessageKey("chat", "b1")) == "Stopped."
    await asking
    assert scene.room.texts == ["Part\n\n⏹ Stopped."]
    await until(lambda: len(scene.vision.aborted) == 1)
    assert scene.vision.active == 0


async def test_buttons_work_before_their_message_id_is_known(scene: Scene) -> None:
    scene.vision.on("Slow", Reply(["Part", Gate()]))
    scene.room.telling = asyncio.Event()
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED)))
    await until(lambda: scene.room.shown)
    presses = [asyncio.create_task(scene.bot.stop_shown(who, MessageKey("chat", "b1"))) for who in (BEN, ANNA)]
    await asyncio.sleep(0)
    scene.room.telling.set()
    assert await asyncio.gather(*presses) == ["Only the person who asked can do this.", "Stopped."]
    await asking
    assert "⏹ Stopped." in scene.last


async def test_buttons_of_unknown_messages_do_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_bots.core.answer_service._KNOWN_WITHIN_S", 0.01)
    scene.room.telling = asyncio.Event()
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED)))
    await until(lambda: scene.room.shown)
    assert await scene.bot.stop_shown(ANNA, MessageKey("chat", "x9")) == "I'm not answering you at the moment."
    scene.room.telling.set()
    await asking


async def test_one_answer_at_a_time_for_each_person(scene: Scene) -> None:
    hold = Gate()
    scene.vision.on("Slow", Reply([hold, count_and_question]))
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED)))
    await until(lambda: scene.vision.active)
    await scene.ask("Second", file_of(RED))
    assert "I'm still answering" in scene.last
    await scene.ask("Ben's", file_of(RED), asker=BEN)
    assert scene.last.endswith("Ben's")
    hold.open()
    await asking


@pytest.mark.parametrize("call", ["record_question", "begin_answer", "move_answer", "finish_answer"])
async def test_database_errors_do_not_lock_the_person_out(
    scene: Scene, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as trouble:
        trouble.setattr(scene.bot.storage, call, fail)
        with pytest.raises(sqlite3.OperationalError):
            await scene.ask("In trouble", file_of(RED))
    async with asyncio.timeout(60):
        await scene.ask("Afterwards", file_of(RED))
    assert scene.last.endswith("Afterwards")


async def test_one_notice_at_a_time_is_queued_per_person(scene: Scene) -> None:
    async with scene.bot.traffic.slot("chat", Urgency.FIRST):  # the room's only one
        first = asyncio.create_task(scene.bot.reply(ANNA, scene.room, "Reply 0"))
        await asyncio.sleep(0)  # it has begun to wait
        for number in range(1, 5):
            await scene.bot.reply(ANNA, scene.room, f"Reply {number}")
        other = asyncio.create_task(scene.bot.reply(BEN, scene.room, "Hi"))
    await asyncio.gather(first, other)
    assert scene.room.texts == ["Reply 0", "Hi"]
    await scene.bot.reply(ANNA, scene.room, "Later")
    assert scene.last == "Later"


async def test_regenerate_asks_at_a_higher_temperature_in_place(scene: Scene) -> None:
    await scene.ask("What?", file_of(RED))
    assert await scene.bot.regenerate(BEN, MessageKey("chat", "b1"), scene.room) == (
        "Only the person who asked can do this."
    )
    scene.vision.on("What?", Reply(["Another answer"]))
    assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.room) is None
    assert scene.room.texts == ["Another answer"]
    assert scene.vision.requests[-1].body["temperature"] == 1.0
    assert "temperature" not in scene.vision.requests[0].body
    assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b99"), scene.room) == (
        "I no longer have this question. Please send the picture again."
    )


async def test_an_edited_question_is_answered_again_in_place(scene: Scene) -> None:
    question = await scene.ask("First wording", file_of(RED))
    assert scene.bot.was_asked(question.key)
    await scene.bot.ask(replace(question, text="Second wording"), scene.room)
    assert scene.room.texts == ["I see 1 picture(s). You asked: Second wording"]
    assert not scene.bot.was_asked(MessageKey("chat", "b1"))


async def test_editing_a_question_restarts_its_answer(scene: Scene) -> None:
    scene.vision.on("First", Reply([Gate()]))
    question = scene.question("First", file_of(RED))
    first = asyncio.create_task(scene.bot.ask(question, scene.room))
    await until(lambda: scene.vision.active)
    await scene.bot.ask(replace(question, text="Second"), scene.room)
    await first
    assert scene.room.texts == ["I see 1 picture(s). You asked: Second"]


async def test_spoilers_stay_spoilered(scene: Scene) -> None:
    await scene.ask("Hidden", file_of(RED, spoiler=True))
    assert [content.spoiler for content in scene.room.shown.values()] == [True]
    await scene.ask("Still", parent=MessageKey("chat", "b1"))
    assert [content.spoiler for content in scene.room.shown.values()] == [True, True]


async def test_reset_begins_a_new_conversation(scene: Scene) -> None:
    await scene.ask("One?", file_of(RED))
    assert "start anew" in scene.bot.reset(ANNA)
    await scene.ask("Two?")
    assert "Send me a picture" in scene.last


async def test_forget_drops_the_conversation(scene: Scene) -> None:
    await scene.ask("One?", file_of(RED))
    scene.bot.forget(ANNA)
    await scene.ask("Two?", parent=MessageKey("chat", "b1"))
    assert scene.vision.about("Two?") == []


async def test_images_expire(vision: OpenAIServer, tmp_path: Path) -> None:
    async with scene_of(vision, tmp_path, pictures={"lifetime_s": 0.3}) as scene:
        await scene.ask("One?", file_of(RED))
        await asyncio.sleep(0.4)
        await scene.ask("Two?")
        assert vision.about("Two?") == []


async def test_a_deleted_chat_ends_the_answer(scene: Scene) -> None:
    scene.vision.on("Slow", Reply(["a", Gate()]))
    scene.room.is_gone = True
    await scene.ask("Slow", file_of(RED))
    scene.room.is_gone = False
    assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.room) is not None
    await scene.ask("Next", file_of(RED))
    assert scene.last.endswith("Next")


async def test_an_answer_cut_off_by_a_crash_is_explained(scene: Scene) -> None:
    scene.vision.on("Slow", Reply([Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED), asker=replace(ANNA, language="zh")))
    await until(lambda: scene.vision.active and scene.room.shown)
    told: list[tuple[str, str | None, str]] = []

    async def explain(place: str, message: str | None, text: str) -> None:
        told.append((place, message, text))

    # The same database, as a new process finds it.
    again = scene.build()
    await again.explain_unfinished(explain)
    await again.explain_unfinished(explain)
    await again.close()
    assert told == [("the room", "b1", "⚠️ 回答途中我被重启了。请再问一次。")]
    asking.cancel()


async def test_unexplained_answers_are_left_for_the_next_start(scene: Scene) -> None:
    scene.vision.on("Slow", Reply([Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED)))
    await until(lambda: scene.vision.active)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(scene.bot.storage.unfinished_answers("test")) == 1


async def test_close_explains_interrupted_answers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_bots.core.answer_service._GOODBYE_S", 60.0)
    scene.vision.on("Slow", Reply(["Part", Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", file_of(RED)))
    await until(lambda: scene.room.texts == ["Part"])
    await scene.bot.close()
    await asking
    assert "I was restarted" in scene.last
