"""Delivery to a target that fails: the complete final text always arrives."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from answer_texts import TEXTS, split_pages
from hypothesis import given, settings
from hypothesis import strategies as st
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.markup import safe_markdown, utf16_length
from minigpt4_bots.core.send_queue import Rate, SendQueue
from minigpt4_bots.core.streaming import Buttons, ChatGone, Content, MessageGone, StreamingMessage, TryLater, deliver
from waiting import wait_until


@dataclass
class FakeTarget:
    """Stores messages; refuses writes at random."""

    limit: int = 200
    previews: bool = False
    rate_key: str = "chat"
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    refusals: float = 0.0
    shown: dict[str, Content] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)
    gone: bool = False

    def measure(self, text: str, spoiler: bool) -> int:
        return utf16_length(safe_markdown(text, spoiler=spoiler))

    def key_for(self, message: str) -> MessageKey:
        return MessageKey("chat", message)

    def _maybe_refuse(self) -> None:
        if self.gone:
            raise ChatGone
        if self.chance.random() < self.refusals:
            raise TryLater(0.002)

    async def send(self, content: Content) -> str:
        self._maybe_refuse()
        message = f"m{len(self.history)}"
        self.history.append(content.text)
        self.shown[message] = content
        return message

    async def edit(self, message: str, content: Content) -> None:
        self._maybe_refuse()
        if message not in self.shown:
            raise MessageGone
        assert self.shown[message] != content, "an edit that changes nothing"
        self.shown[message] = content

    async def delete(self, message: str) -> None:
        self._maybe_refuse()
        self.shown.pop(message, None)

    async def preview(self, content: Content) -> None:
        self._maybe_refuse()
        self.drafts.append(content.text)


def message_for(target: FakeTarget) -> StreamingMessage:
    return StreamingMessage(limit=target.limit, measure=target.measure, status="Looking …")


def fast_send_queue() -> SendQueue:
    return SendQueue([Rate(1000, 0.1)], lambda _: [Rate(1, 0.001)])


@given(TEXTS.filter(str.strip), st.booleans(), st.sampled_from([0.0, 0.3]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_complete_final_text_always_arrives(text: str, previews: bool, refusals: float, seed: int) -> None:
    # Not ``st.randoms``: the number of draws depends on timing, and Hypothesis limits it.
    chance = random.Random(seed)

    async def scene() -> tuple[FakeTarget, list[str]]:
        target = FakeTarget(previews=previews, refusals=refusals, chance=chance)
        message = message_for(target)
        writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
        for begin in range(0, len(text), 40):
            message.feed(text[begin : begin + 40])
            if chance.random() < 0.5:
                await asyncio.sleep(0.001)
        message.finish()
        return target, await writing

    target, messages = asyncio.run(scene())
    assert list(target.shown) == messages
    pages = split_pages(text, target.limit)
    assert [target.shown[message].text for message in messages] == [page for page in pages if page.strip()]
    assert [target.shown[message].buttons for message in messages] == [Buttons.NONE] * (len(messages) - 1) + [
        Buttons.REGENERATE
    ]


async def test_progress_shows_a_stop_button_and_the_end_another() -> None:
    target = FakeTarget()
    message = message_for(target)
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(
        lambda: [(one.text, one.buttons) for one in target.shown.values()] == [("Looking …", Buttons.STOP)]
    )
    message.feed("Half")
    await wait_until(lambda: [(one.text, one.buttons) for one in target.shown.values()] == [("Half", Buttons.STOP)])
    message.finish()
    await writing
    assert [(one.text, one.buttons) for one in target.shown.values()] == [("Half", Buttons.REGENERATE)]


async def test_previews_grow_and_one_message_stays() -> None:
    target = FakeTarget(previews=True)
    message = message_for(target)
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(lambda: target.shown)
    shown = ""
    for delta in ("One", " two", " three"):
        message.feed(delta)
        shown += delta
        await wait_until(lambda shown=shown: target.drafts[-1:] == [shown])
    message.finish()
    messages = await writing
    assert target.history == ["Looking …", "One two three"]
    assert list(target.shown) == messages


async def test_a_stage_that_can_not_preview_after_all_is_edited() -> None:
    class Old(FakeTarget):
        async def preview(self, content: Content) -> None:
            self.previews = False

    target = Old(previews=True)
    message = message_for(target)
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(lambda: target.shown)
    message.feed("Words")
    await wait_until(lambda: not target.previews)
    message.finish()
    await writing
    assert (target.history, [one.text for one in target.shown.values()]) == (["Looking …"], ["Words"])


async def test_a_deleted_message_is_sent_again() -> None:
    target = FakeTarget()
    message = message_for(target)
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(lambda: target.shown)
    target.shown.clear()
    message.feed("Answer")
    message.finish()
    assert [target.shown[message].text for message in await writing] == ["Answer"]


async def test_progress_deleted_repeatedly_returns_when_complete() -> None:
    target = FakeTarget()
    message = message_for(target)
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(lambda: target.shown)
    for delta in ("One", " two", " three"):
        target.shown.clear()
        message.feed(delta)
        await asyncio.sleep(0.01)
    assert target.history == ["Looking …"]
    message.finish()
    assert [target.shown[message].text for message in await writing] == ["One two three"]


async def test_a_message_that_cannot_be_edited_is_replaced() -> None:
    class Locked(FakeTarget):
        async def edit(self, message: str, content: Content) -> None:
            raise MessageGone(remains=True)

    target = Locked()
    message = message_for(target)
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(lambda: target.shown)
    message.feed("Answer")
    message.finish()
    messages = await writing
    assert [(one.text, one.buttons) for one in target.shown.values()] == [("Answer", Buttons.REGENERATE)]
    assert list(target.shown) == messages


async def test_even_the_quickest_preview_comes_below_a_stop_button() -> None:
    target = FakeTarget(previews=True)
    message = message_for(target)
    message.feed("Quick")
    writing = asyncio.create_task(deliver(message, target, fast_send_queue()))
    await wait_until(lambda: target.drafts)
    assert [one.buttons for one in target.shown.values()] == [Buttons.STOP]
    message.finish()
    await writing
    assert [(one.text, one.buttons) for one in target.shown.values()] == [("Quick", Buttons.REGENERATE)]


async def test_a_chat_that_is_gone_ends_the_delivery() -> None:
    target = FakeTarget(gone=True)
    with pytest.raises(ChatGone):
        await deliver(message_for(target), target, fast_send_queue())


async def test_a_note_below_open_code_stands_outside_of_it() -> None:
    target = FakeTarget()
    message = message_for(target)
    message.feed("```py\nx = 1")
    message.finish("Stopped.")
    (message,) = await deliver(message, target, fast_send_queue())
    assert target.shown[message].text == "```py\nx = 1\n```\n\nStopped."
