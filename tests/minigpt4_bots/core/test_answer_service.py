"""The core with the fake server, and a chat in memory instead of a platform."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import Cut, ErrorEvent, Gate, Reply, count_and_question, refusal
from fakes.openai_server import OpenAIServer, bots_server
from memory_chat import MemoryTarget
from minigpt4_bots.core.access import Denial, DenialReason, Requester
from minigpt4_bots.core.answer_service import AnswerService, StopOutcome
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, DownloadFailed, FileTooLarge, Question, QuotedMessage, Unusable
from minigpt4_bots.core.send_queue import Priority, Rate
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.streaming import Buttons
from minigpt4_bots.core.texts import Texts
from sealed_notes import seal_as_0_1_0
from waiting import wait_until

from minigpt4_serve.errors import MiniGPT4Error, Overloaded
from minigpt4_serve.server.http.auth import QuotaReservation
from minigpt4_serve.server.http.deadline import before
from minigpt4_serve.server.http.error_handlers import error_response
from minigpt4_serve.server.keys.key_ring import ApiKey, KeyLimits
from minigpt4_serve.server.keys.quotas import LocalQuotas, QuotaStore

ANNA = Requester("test", "1", "chat")
BEN = Requester("test", "2", "chat")


def make_attachment(data: bytes, **changes: Any) -> Attachment:
    async def load(_: int) -> bytes:
        return data

    return Attachment(load, **changes)


def failing(error: Exception) -> Attachment:
    async def load(_: int) -> bytes:
        raise error

    return Attachment(load)


class Scene:
    """A bot, its server and a chat."""

    def __init__(self, vision: OpenAIServer, folder: Path, **changes: Any) -> None:
        self.vision = vision
        self.chat = MemoryTarget()
        self.settings = BotSettings.model_validate(
            {"server": {"base_url": vision.url, "model": None}, "database": folder / "db", **changes}
        )
        self.bot = self.build()
        self._number = 0

    def build(self) -> AnswerService:
        return AnswerService.create(self.settings, "test", file=None, overall=[], rates_for=lambda _: [Rate(1, 0.005)])

    def question(self, text: str = "", *files: Attachment, requester: Requester = ANNA, **changes: Any) -> Question:
        self._number += 1
        key = MessageKey("chat", f"q{self._number}")
        return Question(requester, key, text, files, location="the location", **changes)

    async def ask(self, text: str = "", *files: Attachment, **changes: Any) -> Question:
        question = self.question(text, *files, **changes)
        await self.bot.ask(question, self.chat)
        return question

    @property
    def last(self) -> str:
        return self.chat.texts[-1]


@pytest.fixture
def vision() -> Iterator[OpenAIServer]:
    with bots_server() as server:
        yield server


@asynccontextmanager
async def scene_with(vision: OpenAIServer, folder: Path, **changes: Any) -> AsyncIterator[Scene]:
    scene = Scene(vision, folder, **changes)
    yield scene
    await scene.bot.close()


@pytest.fixture
async def scene(vision: OpenAIServer, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_with(vision, tmp_path) as scene:
        yield scene


def png(color: str) -> bytes:
    return encode(draw(color))


RED = png("red")
BLUE = png("blue")


async def test_a_picture_with_a_question_is_answered(scene: Scene) -> None:
    await scene.ask("How many?", make_attachment(RED))
    assert scene.chat.texts == ["I see 1 picture(s). You asked: How many?"]
    assert [content.buttons for content in scene.chat.shown.values()] == [Buttons.REGENERATE]
    assert scene.vision.requests[-1].images == [RED]
    assert await scene.bot.storage.unfinished_answers("test") == []


@pytest.mark.parametrize(("language", "asked"), [("en", "What is in this picture?"), ("zh-CN", "这张图片里有什么？")])
async def test_an_image_without_text_gets_the_default_question(scene: Scene, language: str, asked: str) -> None:
    await scene.ask("", make_attachment(RED), requester=replace(ANNA, language=language))
    assert scene.vision.requests[-1].text == asked


async def test_replies_carry_the_whole_conversation(scene: Scene) -> None:
    await scene.ask("One?", make_attachment(RED))
    await scene.ask("Two?", parent=MessageKey("chat", "b1"))
    await scene.ask("Three?", make_attachment(BLUE), parent=MessageKey("chat", "b2"))
    asked = scene.vision.requests[-1]
    assert [text for role, text in asked.transcript if role == "user"] == ["One?", "Two?", "Three?"]
    assert asked.transcript[1] == ("assistant", "I see 1 picture(s). You asked: One?")
    assert asked.images == [RED, BLUE]


@pytest.mark.parametrize("by_reply", [False, True])
async def test_long_conversations_keep_their_image(vision: OpenAIServer, tmp_path: Path, by_reply: bool) -> None:
    async with scene_with(vision, tmp_path, limits={"user_per_minute": None, "chat_per_minute": None}) as scene:
        await scene.ask("Question 0", make_attachment(RED, spoiler=True))
        for number in range(1, 16):
            parent = MessageKey("chat", f"b{number}") if by_reply else None
            await scene.ask(f"Question {number}", parent=parent)
            assert scene.last.endswith(f"Question {number}")
        asked = vision.requests[-1]
        assert asked.images == [RED]
        # Only the newest twenty messages above the question are sent.
        assert [text for role, text in asked.transcript if role == "user"] == [f"Question {n}" for n in range(5, 16)]
        assert all(content.spoiler for content in scene.chat.shown.values())
        assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b16"), scene.chat) is None
        assert vision.requests[-1].images == [RED]


@pytest.mark.parametrize("max_turns", [1, 2, 3])
async def test_images_of_truncated_history_are_still_sent(vision: OpenAIServer, tmp_path: Path, max_turns: int) -> None:
    async with scene_with(vision, tmp_path, answers={"max_turns": max_turns}, pictures={"max_count": 2}) as scene:
        await scene.ask("One?", make_attachment(RED))
        await scene.ask("Two?", parent=MessageKey("chat", "b1"))
        await scene.ask("Three?", make_attachment(BLUE), parent=MessageKey("chat", "b2"))
        assert vision.requests[-1].images == [RED, BLUE]
        await scene.ask("Four?", make_attachment(png("green")), parent=MessageKey("chat", "b3"))
        assert vision.requests[-1].images == [BLUE, png("green")]
        assert vision.requests[-1].transcript[0][0] == "user"


async def test_without_a_reply_each_person_has_a_conversation(scene: Scene) -> None:
    await scene.ask("Anna's", make_attachment(RED))
    await scene.ask("Ben's", make_attachment(BLUE), requester=BEN)
    await scene.ask("And now?")
    assert [text for role, text in scene.vision.requests[-1].transcript if role == "user"] == ["Anna's", "And now?"]
    assert scene.vision.requests[-1].images == [RED]


async def test_several_people_in_one_conversation_are_named(scene: Scene) -> None:
    await scene.ask("Anna's", make_attachment(RED))
    await scene.ask("Ben's", requester=BEN, parent=MessageKey("chat", "b1"))
    names = [message.get("name") for message in scene.vision.requests[-1].body["messages"]]
    assert names == ["user_1", None, "user_2"]


async def test_a_new_image_begins_a_new_conversation(scene: Scene) -> None:
    await scene.ask("One?", make_attachment(RED))
    await scene.ask("Two?", make_attachment(BLUE))
    assert scene.vision.requests[-1].images == [BLUE]


async def test_an_image_in_the_message_replied_to_is_sent(scene: Scene) -> None:
    async def fetch(_: MessageKey) -> QuotedMessage:
        return QuotedMessage("user", "A caption", (make_attachment(RED),), author="77")

    await scene.ask("Which colour?", parent=MessageKey("chat", "p1"), fetch=fetch)
    assert scene.vision.requests[-1].transcript == [("user", "Which colour?")]
    assert scene.vision.requests[-1].images == [RED]
    await scene.ask("", parent=MessageKey("chat", "p1"), fetch=fetch)
    assert scene.vision.requests[-1].text == "A caption"


async def test_an_evicted_reply_chain_is_fetched(scene: Scene) -> None:
    messages = {
        "p3": QuotedMessage("assistant", "A cat.", parent=MessageKey("chat", "p2")),
        "p2": QuotedMessage("user", "What is it?", (make_attachment(RED),)),
    }

    async def fetch(key: MessageKey) -> QuotedMessage | None:
        return messages.get(key.message)

    await scene.ask("And its colour?", parent=MessageKey("chat", "p3"), fetch=fetch)
    assert scene.vision.requests[-1].transcript == [
        ("user", "What is it?"),
        ("assistant", "A cat."),
        ("user", "And its colour?"),
    ]
    assert scene.vision.requests[-1].images == [RED]


async def test_an_evicted_image_is_asked_for(scene: Scene) -> None:
    async def fetch(_: MessageKey) -> QuotedMessage:
        return QuotedMessage("assistant", "A cat.")

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
        (make_attachment(b"%PDF-1.7"), "1 × not a picture"),
        (make_attachment(RED[:20]), "1 × not a picture"),
        (make_attachment(b""), "1 × not a picture"),
        (make_attachment(RED, size=2**30), "1 × too large: at most 10 MB"),
        (make_attachment(b"\x89PNG" + bytes(11 * 2**20)), "1 × too large"),
        (failing(FileTooLarge()), "1 × too large"),
        (failing(DownloadFailed()), "1 × couldn't be downloaded"),
        (make_attachment(RED, unusable=Unusable.MOVING), "1 × moving"),
        (make_attachment(RED, unusable=Unusable.NOT_AN_IMAGE), "1 × not a picture"),
    ],
)
async def test_unusable_attachments_are_reported(scene: Scene, file: Attachment, says: str) -> None:
    await scene.ask("With a good one", file, make_attachment(BLUE))
    assert scene.last.startswith("I see 1 picture(s).")
    assert says in scene.last
    await scene.ask("Alone", file)
    assert says in scene.last
    assert scene.vision.about("Alone") == []


async def test_too_many_images_are_reported(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.card = {"max_images": 2}
    async with scene_with(vision, tmp_path) as scene:
        await scene.ask("Three?", *(make_attachment(png(color)) for color in ("red", "blue", "green")))
        assert "Only 2 of 3 pictures" in scene.last
        await scene.ask("Four?", make_attachment(png("white")), parent=MessageKey("chat", "b1"))
        assert vision.requests[-1].images == [png("blue"), png("white")]
        assert "at most 2 fit" in scene.last


async def test_any_openai_compatible_server_works(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.card = {}
    async with scene_with(vision, tmp_path, server={"base_url": vision.url, "api_key": "k1"}) as scene:
        await scene.ask("Hi", make_attachment(RED))
        assert vision.requests[-1].key == "k1"
        assert scene.last.startswith("I see 1")


async def test_long_answers_are_complete_over_several_messages(scene: Scene) -> None:
    sentences = [f"This is sentence number {number}. " for number in range(100)]
    scene.vision.on("Long", Reply(sentences))
    await scene.ask("Long", make_attachment(RED))
    assert " ".join(" ".join(scene.chat.texts).split()) == "".join(sentences).strip()
    assert [content.buttons for content in scene.chat.shown.values()][-2:] == [Buttons.NONE, Buttons.REGENERATE]
    await scene.ask("More", parent=MessageKey("chat", "b2"))
    assert scene.vision.requests[-1].images == [RED]


async def test_the_queue_position_is_shown(scene: Scene) -> None:
    headers = {"x-minigpt4-queue-position": "3", "x-minigpt4-expected-wait": "12.0"}
    hold = Gate()
    scene.vision.on("Busy", Reply([hold, "Done"], headers=headers, comments=("waiting, 2 ahead",)))
    asking = asyncio.create_task(scene.ask("Busy", make_attachment(RED)))
    await wait_until(lambda: "2 ahead" in "".join(scene.chat.texts))
    hold.open()
    await asking
    assert scene.last == "Done"


async def test_a_full_server_is_asked_again(scene: Scene) -> None:
    scene.vision.on("Full", refusal(429, retry_after="0.2"), times=2)
    await scene.ask("Full", make_attachment(RED))
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
        (Reply(["Long"], finish_reason="length"), "Long\n\nThe answer reached its maximum length."),
        (Reply(["Ok"], finish_reason=None), "Ok"),
        (Reply(["Ok"], headers={"x-minigpt4-dropped-messages": "2"}), "Ok\n\nThe oldest messages"),
    ],
)
async def test_errors_are_one_plain_sentence(scene: Scene, reply: Reply, says: str) -> None:
    scene.vision.on("Try", reply)
    await scene.ask("Try", make_attachment(RED))
    assert scene.last.startswith(says)
    assert "SECRET" not in scene.last


async def _quota_used_up(limits: KeyLimits) -> None:
    """Two requests with one image each, at 13:30 UTC, by one key of minigpt4-serve."""
    quotas = LocalQuotas(QuotaStore(lambda: 86400 * 20_000 + 13.5 * 3600))
    key = ApiKey(id="bot", name="bot", sha256="0" * 64, created=datetime.now(UTC), limits=limits)
    for _ in range(2):
        reservation = QuotaReservation(key, quotas)
        await reservation.reserve()
        await reservation.consume(1)


async def _queue_full() -> None:
    raise Overloaded.queue_full(7.2)


async def _deadline_exceeded() -> None:
    async with before(asyncio.get_running_loop().time()):
        await asyncio.Event().wait()


_SHARE = "⚠️ This bot's share of the picture server is used up. Try again in "
_OPERATOR = "This bot's API key has no quota left on the vision server for another "


@pytest.mark.parametrize(
    ("refused", "says", "logged"),
    [
        (_queue_full, "⚠️ The server is busy. Try again in 8 s.", "an answer failed: overloaded"),
        (partial(_quota_used_up, KeyLimits(requests_per_minute=1)), f"{_SHARE}60 s.", f"{_OPERATOR}60 seconds."),
        (partial(_quota_used_up, KeyLimits(concurrent_requests=1)), f"{_SHARE}1 s.", f"{_OPERATOR}1 second."),
        (partial(_quota_used_up, KeyLimits(images_per_day=1)), f"{_SHARE}11 h.", f"{_OPERATOR}11 hours."),
        (
            _deadline_exceeded,
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
    async with scene_with(vision, tmp_path, server={"base_url": vision.url, "patience_s": 0}) as scene:
        await scene.ask("Try", make_attachment(RED))
        assert scene.chat.texts == [says]
    (record,) = [record for record in caplog.records if record.name.startswith("minigpt4_bots")]
    assert record.getMessage().startswith(logged)
    assert len(scene.vision.about("Try")) == 1


async def test_a_wait_is_shown_without_retry_after(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.on("Full", refusal(429))
    async with scene_with(vision, tmp_path, server={"base_url": vision.url, "patience_s": 0}) as scene:
        await scene.ask("Full", make_attachment(RED))
        assert scene.last == "⚠️ The server is busy. Try again in 5 s."


async def test_failures_use_no_quota_and_can_be_retried(vision: OpenAIServer, tmp_path: Path) -> None:
    vision.on("Try", refusal(500), times=1)
    async with scene_with(vision, tmp_path, limits={"user_per_day": 1}) as scene:
        await scene.ask("Try", make_attachment(RED))
        assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.chat) is None
        assert scene.chat.texts == ["I see 1 picture(s). You asked: Try"]
        denial = await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.chat)
        assert denial is not None
        assert denial.reason is DenialReason.USER_PER_DAY
        assert "all your questions for today" in scene.bot.describe_denial(ANNA, denial)


async def test_an_unreachable_server_is_reported(tmp_path: Path) -> None:
    async with scene_with(OpenAIServer(port=9), tmp_path) as scene:
        await scene.ask("Hello?", make_attachment(RED))
        assert scene.last.startswith("⚠️ The picture server can't be reached")


async def test_stop_aborts_the_request(scene: Scene) -> None:
    scene.vision.on("Slow", Reply(["Part", Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED)))
    await wait_until(lambda: scene.chat.texts == ["Part"])
    assert await scene.bot.stop_message(BEN, MessageKey("chat", "b1")) is StopOutcome.NOT_OWNER
    assert scene.bot.stop(BEN) is StopOutcome.NOTHING_RUNNING
    assert await scene.bot.stop_message(ANNA, MessageKey("chat", "b1")) is StopOutcome.STOPPED
    await asking
    assert scene.chat.texts == ["Part\n\n⏹ Stopped."]
    await wait_until(lambda: len(scene.vision.aborted) == 1)
    assert scene.vision.active == 0


@pytest.mark.parametrize("outcome", [RED, b"not an image", OSError("gone")], ids=["image", "damaged", "lost"])
async def test_a_stop_while_images_are_read_keeps_the_question(scene: Scene, outcome: bytes | OSError) -> None:
    arrived = asyncio.Event()

    async def load(_: int) -> bytes:
        await arrived.wait()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    asking = asyncio.create_task(scene.ask("Early", Attachment(load)))
    await wait_until(lambda: scene.chat.shown)
    assert await scene.bot.stop_message(ANNA, MessageKey("chat", "b1")) is StopOutcome.STOPPED
    await wait_until(lambda: scene.last == "⏹ Stopped.")
    arrived.set()
    await asking
    assert scene.chat.texts == ["⏹ Stopped."]
    assert scene.vision.requests == []
    denial = await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.chat)
    if outcome == RED:
        assert denial is None
        assert scene.last == "I see 1 picture(s). You asked: Early"
    else:
        assert denial == Denial(DenialReason.EXPIRED)


async def test_buttons_work_before_their_message_id_is_known(scene: Scene) -> None:
    scene.vision.on("Slow", Reply(["Part", Gate()]))
    scene.chat.ids_arrive = asyncio.Event()
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED)))
    await wait_until(lambda: scene.chat.shown)
    presses = [asyncio.create_task(scene.bot.stop_message(who, MessageKey("chat", "b1"))) for who in (BEN, ANNA)]
    await asyncio.sleep(0)
    scene.chat.ids_arrive.set()
    assert await asyncio.gather(*presses) == [StopOutcome.NOT_OWNER, StopOutcome.STOPPED]
    await asking
    assert "⏹ Stopped." in scene.last


async def test_buttons_of_unknown_messages_do_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_bots.core.answer_service._MESSAGE_ID_WITHIN_S", 0.01)
    scene.chat.ids_arrive = asyncio.Event()
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED)))
    await wait_until(lambda: scene.chat.shown)
    assert await scene.bot.stop_message(ANNA, MessageKey("chat", "x9")) is StopOutcome.NOTHING_RUNNING
    scene.chat.ids_arrive.set()
    await asking


async def test_one_answer_at_a_time_for_each_person(scene: Scene) -> None:
    hold = Gate()
    scene.vision.on("Slow", Reply([hold, count_and_question]))
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED)))
    await wait_until(lambda: scene.vision.active)
    await scene.ask("Second", make_attachment(RED))
    assert "I'm still answering" in scene.last
    await scene.ask("Ben's", make_attachment(RED), requester=BEN)
    assert scene.last.endswith("Ben's")
    hold.open()
    await asking


@pytest.mark.parametrize("call", ["record_question", "begin_answer", "user_times"])
async def test_database_errors_do_not_lock_the_person_out(
    scene: Scene, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as failing_storage:
        failing_storage.setattr(scene.bot.storage, call, fail)
        await scene.ask("In trouble", make_attachment(RED))
        assert scene.last == Texts()("error.internal_error")
    async with asyncio.timeout(60):
        await scene.ask("Afterwards", make_attachment(RED))
    assert scene.last.endswith("Afterwards")


async def test_a_stop_before_the_count_stops(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = asyncio.Event()
    count = scene.bot.storage.record_question

    async def count_late(**question: Any) -> int:
        await counting.wait()
        return await count(**question)

    monkeypatch.setattr(scene.bot.storage, "record_question", count_late)
    asking = asyncio.create_task(scene.ask("What is it?", make_attachment(RED)))
    await wait_until(lambda: scene.bot.stop(ANNA) is StopOutcome.STOPPED)
    counting.set()
    await asking
    assert scene.chat.texts == []
    assert await scene.bot.storage.unfinished_answers("test") == []


async def test_one_notice_at_a_time_is_queued_per_person(scene: Scene) -> None:
    async with scene.bot.send_queue.slot("chat", Priority.FIRST):  # the only one in this chat
        first = asyncio.create_task(scene.bot.reply(ANNA, scene.chat, "Reply 0"))
        await asyncio.sleep(0)  # it is queued now
        for number in range(1, 5):
            await scene.bot.reply(ANNA, scene.chat, f"Reply {number}")
        other = asyncio.create_task(scene.bot.reply(BEN, scene.chat, "Hi"))
    await asyncio.gather(first, other)
    assert scene.chat.texts == ["Reply 0", "Hi"]
    await scene.bot.reply(ANNA, scene.chat, "Later")
    assert scene.last == "Later"


async def test_regenerate_asks_at_a_higher_temperature_in_place(scene: Scene) -> None:
    await scene.ask("What?", make_attachment(RED))
    assert await scene.bot.regenerate(BEN, MessageKey("chat", "b1"), scene.chat) == Denial(DenialReason.NOT_OWNER)
    scene.vision.on("What?", Reply(["Another answer"]))
    assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.chat) is None
    assert scene.chat.texts == ["Another answer"]
    assert scene.vision.requests[-1].body["temperature"] == 1.0
    assert "temperature" not in scene.vision.requests[0].body
    assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b99"), scene.chat) == Denial(DenialReason.EXPIRED)


async def test_an_edited_question_is_answered_again_in_place(scene: Scene) -> None:
    question = await scene.ask("First wording", make_attachment(RED))
    assert scene.bot.was_asked(question.key)
    await scene.bot.ask(replace(question, text="Second wording"), scene.chat)
    assert scene.chat.texts == ["I see 1 picture(s). You asked: Second wording"]
    assert not scene.bot.was_asked(MessageKey("chat", "b1"))


async def test_editing_a_question_restarts_its_answer(scene: Scene) -> None:
    scene.vision.on("First", Reply([Gate()]))
    question = scene.question("First", make_attachment(RED))
    first = asyncio.create_task(scene.bot.ask(question, scene.chat))
    await wait_until(lambda: scene.vision.active)
    await scene.bot.ask(replace(question, text="Second"), scene.chat)
    await first
    assert scene.chat.texts == ["I see 1 picture(s). You asked: Second"]


async def test_spoilers_stay_spoilered(scene: Scene) -> None:
    await scene.ask("Hidden", make_attachment(RED, spoiler=True))
    assert [content.spoiler for content in scene.chat.shown.values()] == [True]
    await scene.ask("Still", parent=MessageKey("chat", "b1"))
    assert [content.spoiler for content in scene.chat.shown.values()] == [True, True]


async def test_reset_begins_a_new_conversation(scene: Scene) -> None:
    await scene.ask("One?", make_attachment(RED))
    scene.bot.reset(ANNA)
    await scene.ask("Two?")
    assert "Send me a picture" in scene.last


async def test_forget_drops_the_conversation(scene: Scene) -> None:
    await scene.ask("One?", make_attachment(RED))
    scene.bot.forget(ANNA)
    await scene.ask("Two?", parent=MessageKey("chat", "b1"))
    assert scene.vision.about("Two?") == []


async def test_images_expire(vision: OpenAIServer, tmp_path: Path) -> None:
    async with scene_with(vision, tmp_path, pictures={"lifetime_s": 0.3}) as scene:
        await scene.ask("One?", make_attachment(RED))
        await asyncio.sleep(0.4)
        await scene.ask("Two?")
        assert vision.about("Two?") == []


async def test_a_deleted_chat_ends_the_answer(scene: Scene) -> None:
    scene.vision.on("Slow", Reply(["a", Gate()]))
    scene.chat.is_gone = True
    await scene.ask("Slow", make_attachment(RED))
    scene.chat.is_gone = False
    assert await scene.bot.regenerate(ANNA, MessageKey("chat", "b1"), scene.chat) is not None
    await scene.ask("Next", make_attachment(RED))
    assert scene.last.endswith("Next")


async def test_an_answer_cut_off_by_a_crash_is_explained(scene: Scene) -> None:
    scene.vision.on("Slow", Reply([Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED), requester=replace(ANNA, language="zh")))
    await wait_until(lambda: scene.vision.active and scene.chat.shown)
    explained: list[tuple[str, str | None, str]] = []

    async def explain(place: str, message: str | None, text: str) -> None:
        explained.append((place, message, text))

    # A new process with the same database.
    again = scene.build()
    await again.explain_unfinished(explain)
    await again.explain_unfinished(explain)
    await again.close()
    assert explained == [("the location", "b1", "⚠️ 回答途中我被重启了。请再问一次。")]
    asking.cancel()


async def test_unexplained_answers_are_left_for_the_next_start(scene: Scene) -> None:
    scene.vision.on("Slow", Reply([Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED)))
    await wait_until(lambda: scene.vision.active)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(await scene.bot.storage.unfinished_answers("test")) == 1


async def test_close_explains_interrupted_answers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4_bots.core.answer_service._CLOSE_WITHIN_S", 60.0)
    scene.vision.on("Slow", Reply(["Part", Gate()]))
    asking = asyncio.create_task(scene.ask("Slow", make_attachment(RED)))
    await wait_until(lambda: scene.chat.texts == ["Part"])
    await scene.bot.close()
    await asking
    assert "I was restarted" in scene.last


async def test_notes_sealed_by_0_1_0_are_dropped_and_counters_kept(vision: OpenAIServer, tmp_path: Path) -> None:
    async with scene_with(vision, tmp_path, limits={"user_per_day": 2}) as scene:
        await scene.ask("Yesterday's version", make_attachment(RED))
        old = seal_as_0_1_0((tmp_path / "db.key").read_bytes(), '{"place": "", "message": null, "language": "en"}')
        await scene.bot.storage.begin_answer(platform="test", user="u", note=old)
        again = scene.build()

        async def explain(*_: object) -> None:
            raise AssertionError("a note that can't be read was explained")

        await again.explain_unfinished(explain)
        assert await again.storage.unfinished_answers("test") == []
        await again.ask(scene.question("Second", make_attachment(RED)), scene.chat)
        await again.ask(scene.question("Third", make_attachment(RED)), scene.chat)
        assert "all your questions for today" in scene.last
        await again.close()
