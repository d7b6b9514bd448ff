"""Pages, the waiting line and delivery, without a platform: properties over random texts, times and refusals."""

import asyncio
import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minigpt4_bots.markup import ZERO_WIDTH, fence_at, safe_markdown, spoiler_is_open, utf16_length
from minigpt4_bots.streaming import (
    Buttons,
    ChatGone,
    Content,
    Display,
    MessageGone,
    Pages,
    Rate,
    Ticket,
    Traffic,
    TryLater,
    Urgency,
    WaitingLine,
    deliver,
)

WORDS = st.sampled_from(
    ["cat", "a red circle.", "\n\n", "\n", "```\n", "\n```\n", "code()", "||", "**bold**", "`x`", "😀", "图片。",
     "@everyone", "https://evil.example/x", "[a](http://b.example)", " ", "supercalifragilistic" * 5, "<@1>", "~~~\n"]
)  # fmt: skip
TEXTS = st.lists(WORDS, max_size=80).map("".join)
TICKS = st.lists(WORDS | st.sampled_from(["`", "``", "\\", "`@here`"]), max_size=40).map("".join)


def pages_of(text: str, limit: int, cuts: list[int] | None = None) -> list[str]:
    pages = Pages(limit, lambda page: utf16_length(safe_markdown(page)))
    for begin, end in itertools.pairwise([0, *(cuts or []), len(text)]):
        pages.feed(text[begin:end])
    return [pages[index] for index in range(len(pages))]


def essence(text: str) -> str:
    """What must survive the splitting: everything but blanks, fences and spoiler bars."""
    return re.sub(r"[\s`~|]", "", text)


@given(TEXTS, st.integers(64, 400), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_pages_keep_every_word_within_the_limit_however_the_text_arrives(
    text: str, limit: int, chance: random.Random
) -> None:
    cuts = sorted(chance.randint(0, len(text)) for _ in range(10))
    pages = pages_of(text, limit, cuts)
    assert all(utf16_length(safe_markdown(page)) <= limit for page in pages)
    assert "".join(map(essence, pages)) == essence(text)


@given(TEXTS, st.integers(64, 400))
@settings(max_examples=100, deadline=None)
def test_settled_pages_close_their_code_and_spoilers(text: str, limit: int) -> None:
    for page in pages_of(text, limit)[:-1]:
        assert fence_at(page) is None
        assert not spoiler_is_open(page)


def test_a_settled_page_never_changes() -> None:
    pages = Pages(100, len)
    text = "One sentence is here. " * 40
    seen: list[str] = []
    for character in text:
        pages.feed(character)
        assert pages.settled[: len(seen)] == seen
        seen = list(pages.settled)
    assert len(seen) >= 7


@pytest.mark.parametrize(
    ("text", "first_ends"),
    [
        ("First part. " * 8 + "\n\n" + "Second part. " * 10, "First part."),
        ("A sentence here. " * 20, "here."),
        ("no sentence end just words " * 20, ""),
        ("这是一句话。" * 40, "。"),
        ("Text before the code, long enough to fill half.\n" * 2 + "```py\n" + "x = 1\n" * 40 + "```", "half."),
    ],
)
def test_pages_end_where_a_reader_would_end_them(text: str, first_ends: str) -> None:
    first = pages_of(text, 150)[0]
    assert first.endswith(first_ends)
    assert 50 <= len(first) <= 150


def test_code_is_closed_and_opened_again_with_its_language() -> None:
    pages = pages_of("```python\n" + "print('hello')\n" * 40 + "```\nThat's all.", 200)
    assert len(pages) > 2
    assert all(page.startswith("```python\n") and page.endswith("\n```") for page in pages[:-1])
    assert pages[-1].endswith("That's all.")


def test_a_spoiler_goes_on_over_pages() -> None:
    pages = pages_of("||" + "The butler did it. " * 20 + "|| The end.", 150)
    assert all(page.startswith("||") and page.endswith("||") for page in pages[:-1])


def test_what_is_seen_as_one_character_is_not_cut() -> None:
    family = "👨‍👩‍👧‍👦"
    for page in pages_of(family * 30, 100)[:-1]:
        assert page.endswith("👦")


# The waiting line, with a clock of its own


def served(line: WaitingLine, until: float) -> list[tuple[float, str, int]]:
    """Run the line: (time, chat, number) of each grant; what is granted arrives at once."""
    now, done = 0.0, list[tuple[float, str, int]]()
    while now <= until:
        for ticket in line.grant(now):
            done.append((now, ticket.chat, ticket.number))
            line.arrived(ticket, now)
        at = line.next_at()
        if at is None:
            break
        now = max(now, at)
    return done


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(Urgency))), max_size=60),
    st.integers(1, 8),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_rates_hold_overall_and_per_chat_and_everybody_is_served(
    wishes: list[tuple[int, Urgency]], overall: int, per_chat: int
) -> None:
    line = WaitingLine([Rate(overall, 1.0)], lambda _: [Rate(per_chat, 2.0)])
    for chat, urgency in wishes:
        line.join(str(chat), urgency)
    done = served(line, 1e6)
    assert len(done) == len(wishes)
    times = [at for at, _, _ in done]
    assert all(sum(at - 1.0 < other <= at for other in times) <= overall for at in times)
    for chat in {chat for _, chat, _ in done}:
        own = [at for at, where, _ in done if where == chat]
        assert all(sum(at - 2.0 < other <= at for other in own) <= per_chat for at in own)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(list(Urgency))), max_size=60),
    st.integers(1, 6),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_rates_hold_at_the_platform_however_late_writes_arrive(
    wishes: list[tuple[int, Urgency]], overall: int, per_chat: int, chance: random.Random
) -> None:
    line = WaitingLine([Rate(overall, 1.0)], lambda _: [Rate(per_chat, 2.0)])
    for chat, urgency in wishes:
        line.join(str(chat), urgency)
    now, counted, replies = 0.0, list[tuple[float, str]](), list[tuple[float, Ticket]]()
    while len(counted) < len(wishes) or replies:
        for ticket in line.grant(now):
            replied = now + chance.uniform(0, 4)
            counted.append((chance.uniform(now, replied), ticket.chat))
            replies.append((replied, ticket))
        at = line.next_at()
        now = min(reply for reply, _ in replies) if replies else now
        now = now if at is None or replies else at
        for reply in [one for one in replies if one[0] <= now]:
            line.arrived(reply[1], now)
            replies.remove(reply)
    for rate, period, where in ((overall, 0.999, None), *((per_chat, 1.999, str(chat)) for chat in range(4))):
        times = [at for at, chat in counted if where in (None, chat)]
        assert all(sum(at - period < other <= at for other in times) <= rate for at in times)


def test_a_write_that_hangs_keeps_others_waiting_only_for_a_moment() -> None:
    line = WaitingLine([Rate(2, 1.0)], lambda _: [Rate(1, 1.0)])
    for chat in ("hangs", "hangs too", "fine"):
        line.join(chat, Urgency.ANSWER)
    assert [ticket.chat for ticket in line.grant(0.0)] == ["hangs", "hangs too"]
    at = line.next_at()
    assert at is not None
    assert at <= 5.0
    assert [ticket.chat for ticket in line.grant(at)] == ["fine"]


def test_nobody_waits_for_another_chat() -> None:
    line = WaitingLine([Rate(30, 1.0)], lambda _: [Rate(1, 3.0)])
    for _ in range(10):
        line.join("busy", Urgency.PROGRESS)
    line.join("quiet", Urgency.PROGRESS)
    assert [(at, chat) for at, chat, _ in served(line, 0.0)] == [(0.0, "busy"), (0.0, "quiet")]


def test_a_chat_on_hold_keeps_nobody_else_waiting() -> None:
    line = WaitingLine([Rate(30, 1.0)], lambda _: [Rate(1, 1.0)])
    line.hold("flooded", 40.0)
    line.join("flooded", Urgency.ANSWER)
    line.join("other", Urgency.PROGRESS)
    assert [(at, chat) for at, chat, _ in served(line, 100.0)] == [(0.0, "other"), (40.0, "flooded")]


def test_texts_that_stay_overtake_progress() -> None:
    line = WaitingLine([Rate(1, 1.0)], lambda _: [Rate(1, 1.0)])
    for chat in "abc":
        line.join(chat, Urgency.PROGRESS)
    line.join("d", Urgency.ANSWER)
    assert next(chat for _, chat, _ in served(line, 100.0)) == "d"


def test_progress_leaves_room_in_the_allowance() -> None:
    line = WaitingLine([], lambda _: [Rate(18, 60.0)])
    for _ in range(30):
        line.join("group", Urgency.PROGRESS)
    assert sum(at < 60 for at, _, _ in served(line, 59.9)) == 12


def test_leaving_the_line_frees_the_place() -> None:
    line = WaitingLine([], lambda _: [Rate(1, 5.0)])
    gone, stays = line.join("a", Urgency.ANSWER), line.join("a", Urgency.ANSWER)
    line.leave(gone)
    line.leave(gone)
    assert [number for _, _, number in served(line, 0.0)] == [stays.number]


# Delivery onto a stage that misbehaves


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


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not happened():
            await asyncio.sleep(0.002)


def display_for(stage: FakeStage) -> Display:
    return Display(limit=stage.limit, measure=stage.measure, status="Looking …")


def quick_traffic() -> Traffic:
    return Traffic([Rate(1000, 0.1)], lambda _: [Rate(1, 0.001)])


@given(TEXTS.filter(str.strip), st.booleans(), st.sampled_from([0.0, 0.3]), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_complete_final_text_always_arrives(
    text: str, previews: bool, refusals: float, chance: random.Random
) -> None:
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


async def test_progress_that_is_deleted_again_and_again_comes_back_only_when_complete() -> None:
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


async def test_a_message_that_may_not_be_edited_is_replaced_and_removed() -> None:
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


# Markup


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("plain words", "plain words"),
        ("@everyone look", f"@{ZERO_WIDTH}everyone look"),
        ("<@123> <@&4> <#5>", f"<{ZERO_WIDTH}@{ZERO_WIDTH}123> <{ZERO_WIDTH}@{ZERO_WIDTH}&4> <{ZERO_WIDTH}#5>"),
        ("https://evil.example/a?b=c.", "`https://evil.example/a?b=c`."),
        ("<https://evil.example>", "`https://evil.example`"),
        ("[click](https://evil.example)", "click (`https://evil.example`)"),
        ("![x](http://a.example/p(1).png)", "x (`http://a.example/p(1).png`)"),
        ("[https://good.example](https://evil.example)", "`https://good.example` (`https://evil.example`)"),
        ("go to evil.example/x now", "go to `evil.example/x` now"),
        ("tg://user?id=5", "`tg://user?id=5`"),
        ("e.g. 3.14 and so on... end.", "e.g. 3.14 and so on... end."),
        ("`@everyone` stays code", "`@everyone` stays code"),
        ("run /stop now", f"run /{ZERO_WIDTH}stop now"),
        ("and/or", "and/or"),
        ("```py\nx = '@a'", "```py\nx = '@a'\n```"),
        ("```\na\n```\nafter", "```\na\n```\nafter"),
        ("||secret", "||secret||"),
        ("||secret|| open", "||secret|| open"),
        ("a || b", "a || b"),
        ("cat```\n```\n@everyone", "cat\u02cb\u02cb\u02cb\n```\n@everyone\n```"),
        ("a ` b\n`@everyone`", "a \u02cb b\n`@everyone`"),
        ("x``` y `@here`", "x\u02cb\u02cb\u02cb y `@here`"),
        ("\\`@here`", f"\\{ZERO_WIDTH}`@here`"),
        ("````a ``` b````", "`a \u02cb\u02cb\u02cb b`"),
        ("``a`b``", "``a`b``"),
    ],
)
def test_safe_markdown(given_: str, shown: str) -> None:
    assert safe_markdown(given_) == shown


@pytest.mark.parametrize("text", ["words", "||inner|| words", "```\ncode\n```", "a `b||c` d"])
def test_a_spoiler_covers_all(text: str) -> None:
    shown = safe_markdown(text, spoiler=True)
    assert shown.startswith("||")
    assert shown.endswith("||")
    assert "||" not in shown[2:-2]


@given(TICKS)
@settings(max_examples=200, deadline=None)
def test_nothing_in_an_answer_can_be_clicked(text: str) -> None:
    # As Discord reads it: blocks first, then a backtick's partner wherever it stands.
    shown = re.sub(r"```.*?```", "", safe_markdown(text), flags=re.DOTALL)
    shown = re.sub(r"(?<!\\)(`+)(?!`)(.*?[^`])\1(?!`)", "", shown, flags=re.DOTALL)
    assert not re.search(r"https?://|@\w|<[@#]|\]\(", shown)
