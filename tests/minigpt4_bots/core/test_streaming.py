"""Delivery onto a stage that misbehaves: the complete final text always arrives."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from answer_texts import TEXTS, pages_of
from hypothesis import given, settings
from hypothesis import strategies as st
from minigpt4_bots.core.markup import safe_markdown, utf16_length
from minigpt4_bots.core.send_queue import Rate, Traffic
from minigpt4_bots.core.streaming import Buttons, ChatGone, Content, Display, MessageGone, TryLater, deliver
from waiting import until


@dataclass
class FakeStage:
    """Keeps messages; refuses by chance."""

    limit: int = 200
    previews: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    refusals: float = 0.0
    shown: dict[str, Content] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)
    gone: bool = False

    def measure(self, text: str, spoiler: bool) -> int:
        return utf16_length(safe_markdown(text, spoiler=spoiler))

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


def display_for(stage: FakeStage) -> Display:
    return Display(limit=stage.limit, measure=stage.measure, status="Looking …")


def quick_traffic() -> Traffic:
    return Traffic([Rate(1000, 0.1)], lambda _: [Rate(1, 0.001)])


@given(TEXTS.filter(str.strip), st.booleans(), st.sampled_from([0.0, 0.3]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_complete_final_text_always_arrives(text: str, previews: bool, refusals: float, seed: int) -> None:
    # Not ``st.randoms``: how often tasks draw depends on the clock, and Hypothesis ends an example that draws often.
    chance = random.Random(seed)

    async def scene() -> tuple[FakeStage, list[str]]:
        stage = FakeStage(previews=previews, refusals=refusals, chance=chance)
        display = display_for(stage)
        writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
        for begin in range(0, len(text), 40):
            display.feed(text[begin : begin + 40])
            if chance.random() < 0.5:
                await asyncio.sleep(0.001)
        display.finish()
        return stage, await writing

    stage, messages = asyncio.run(scene())
    assert list(stage.shown) == messages
    pages = pages_of(text, stage.limit)
    assert [stage.shown[message].text for message in messages] == [page for page in pages if page.strip()]
    assert [stage.shown[message].buttons for message in messages] == [Buttons.NONE] * (len(messages) - 1) + [
        Buttons.AGAIN
    ]


async def test_progress_shows_a_stop_button_and_the_end_another() -> None:
    stage = FakeStage()
    display = display_for(stage)
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: [(one.text, one.buttons) for one in stage.shown.values()] == [("Looking …", Buttons.STOP)])
    display.feed("Half")
    await until(lambda: [(one.text, one.buttons) for one in stage.shown.values()] == [("Half", Buttons.STOP)])
    display.finish()
    await writing
    assert [(one.text, one.buttons) for one in stage.shown.values()] == [("Half", Buttons.AGAIN)]


async def test_previews_grow_and_one_message_stays() -> None:
    stage = FakeStage(previews=True)
    display = display_for(stage)
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: stage.shown)
    shown = ""
    for piece in ("One", " two", " three"):
        display.feed(piece)
        shown += piece
        await until(lambda shown=shown: stage.drafts[-1:] == [shown])
    display.finish()
    messages = await writing
    assert stage.history == ["Looking …", "One two three"]
    assert list(stage.shown) == messages


async def test_a_stage_that_can_not_preview_after_all_is_edited() -> None:
    class Old(FakeStage):
        async def preview(self, content: Content) -> None:
            self.previews = False

    stage = Old(previews=True)
    display = display_for(stage)
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: stage.shown)
    display.feed("Words")
    await until(lambda: not stage.previews)
    display.finish()
    await writing
    assert (stage.history, [one.text for one in stage.shown.values()]) == (["Looking …"], ["Words"])


async def test_a_deleted_message_is_sent_again() -> None:
    stage = FakeStage()
    display = display_for(stage)
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: stage.shown)
    stage.shown.clear()
    display.feed("Answer")
    display.finish()
    assert [stage.shown[message].text for message in await writing] == ["Answer"]


async def test_progress_deleted_repeatedly_returns_when_complete() -> None:
    stage = FakeStage()
    display = display_for(stage)
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: stage.shown)
    for piece in ("One", " two", " three"):
        stage.shown.clear()
        display.feed(piece)
        await asyncio.sleep(0.01)
    assert stage.history == ["Looking …"]
    display.finish()
    assert [stage.shown[message].text for message in await writing] == ["One two three"]


async def test_a_message_that_cannot_be_edited_is_replaced() -> None:
    class Locked(FakeStage):
        async def edit(self, message: str, content: Content) -> None:
            raise MessageGone(remains=True)

    stage = Locked()
    display = display_for(stage)
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: stage.shown)
    display.feed("Answer")
    display.finish()
    messages = await writing
    assert [(one.text, one.buttons) for one in stage.shown.values()] == [("Answer", Buttons.AGAIN)]
    assert list(stage.shown) == messages


async def test_even_the_quickest_preview_comes_below_a_stop_button() -> None:
    stage = FakeStage(previews=True)
    display = display_for(stage)
    display.feed("Quick")
    writing = asyncio.create_task(deliver(display, stage, quick_traffic(), "chat"))
    await until(lambda: stage.drafts)
    assert [one.buttons for one in stage.shown.values()] == [Buttons.STOP]
    display.finish()
    await writing
    assert [(one.text, one.buttons) for one in stage.shown.values()] == [("Quick", Buttons.AGAIN)]


async def test_a_chat_that_is_gone_ends_the_delivery() -> None:
    stage = FakeStage(gone=True)
    with pytest.raises(ChatGone):
        await deliver(display_for(stage), stage, quick_traffic(), "chat")


async def test_a_note_below_open_code_stands_outside_of_it() -> None:
    stage = FakeStage()
    display = display_for(stage)
    display.feed("```py\nx = 1")
    display.finish("Stopped.")
    (message,) = await deliver(display, stage, quick_traffic(), "chat")
    assert stage.shown[message].text == "```py\nx = 1\n```\n\nStopped."
