"""Questions on Discord and the requests they become. One bot process for all tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import web
from drawing import draw, encode
from fakes.discord import Upload
from fakes.discord_bot import GENEROUS, Scene, picture, scene
from fakes.openai_replies import Gate, Reply, count_and_question

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEFAULT = "What is in this picture?"


@asynccontextmanager
async def own_server(visited: list[str]) -> AsyncIterator[str]:
    """A URL in the bot's own network; records requests in ``visited``."""

    async def note(request: web.Request) -> web.Response:
        visited.append(request.path)
        return web.Response(body=picture().data)

    app = web.Application()
    app.router.add_get("/{path:.*}", note)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/secret.png"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene(tmp_path_factory.mktemp("bot")) as made:
        async with made.running(f"{GENEROUS}pictures: {{max_bytes: 100000}}\naccess: {{deny: {{roles: [666]}}}}\n"):
            yield made
        assert made.discord.violations == []
        assert made.discord.limits.refused == []


async def test_a_mention_with_an_image_is_answered(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    red = picture()
    asked = await here.discord.says(channel, ann, "which colour is it?", attachments=[red], mention=True)
    answer = await here.discord.answer_to(asked)
    assert answer.text == "I see 1 picture(s). You asked: which colour is it?"
    (request,) = here.vision.about("which colour is it?")
    assert request.images == [red.data]


async def test_the_bot_types_while_it_answers(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    hold = Gate()
    here.vision.on("take your time", Reply([hold, count_and_question]))
    asked = await here.discord.says(channel, ann, "take your time", attachments=[picture()], mention=True)
    await here.discord.until(lambda: channel.typing, what="typing")
    hold.open()
    await here.discord.answer_to(asked)


async def test_without_text_the_default_question_is_asked(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    one = await here.discord.says(channel, ann, attachments=[picture()], mention=True)
    assert DEFAULT in (await here.discord.answer_to(one)).text
    two = await here.discord.says(channel, ann, attachments=[picture(), picture("blue")], mention=True)
    assert (await here.discord.answer_to(two)).text.startswith("I see 2 picture(s). You asked: What is in these")


async def test_a_private_message_needs_no_mention(here: Scene) -> None:
    ann = here.discord.user()
    channel = await here.discord.private_channel(ann)
    asked = await here.discord.says(channel, ann, "hm?", attachments=[picture()])
    assert "hm?" in (await here.discord.answer_to(asked)).text


async def test_a_reply_continues_with_conversation_and_image(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    red = picture()
    first = await here.discord.says(channel, ann, "what?", attachments=[red], mention=True)
    answer = await here.discord.answer_to(first)
    second = await here.discord.says(channel, ann, "and where?", reply_to=answer.last)
    await here.discord.answer_to(second)
    (request,) = here.vision.about("and where?")
    assert request.images == [red.data]
    assert [role for role, _ in request.transcript] == ["user", "assistant", "user"]
    assert request.transcript[0] == ("user", "what?")
    assert request.transcript[1][1] == answer.text


async def test_a_follow_up_without_reply_continues(here: Scene) -> None:
    ann = here.discord.user()
    channel = await here.discord.private_channel(ann)
    await here.discord.answer_to(await here.discord.says(channel, ann, "q1", attachments=[picture()]))
    await here.discord.answer_to(await here.discord.says(channel, ann, "goes on"))
    (request,) = here.vision.about("goes on")
    assert len(request.images) == 1
    assert len(request.transcript) == 3


async def test_people_in_one_channel_are_kept_apart(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    ben = here.discord.user("ben")
    red = picture()
    blue = picture("blue")
    await here.discord.answer_to(await here.discord.says(channel, ann, "a", attachments=[red], mention=True))
    await here.discord.answer_to(await here.discord.says(channel, ben, "b", attachments=[blue], mention=True))
    await here.discord.answer_to(await here.discord.says(channel, ann, "ann again", mention=True))
    (request,) = here.vision.about("ann again")
    assert request.images == [red.data]


async def test_two_people_in_one_conversation_are_named(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    ben = here.discord.user("ben")
    asked = await here.discord.says(channel, ann, "a?", attachments=[picture()], mention=True)
    answer = await here.discord.answer_to(asked)
    await here.discord.answer_to(await here.discord.says(channel, ben, "ben joins", reply_to=answer.last))
    (request,) = here.vision.about("ben joins")
    names = [message.get("name") for message in request.body["messages"] if message["role"] == "user"]
    assert names == ["user_1", "user_2"]


async def test_messages_by_bots_or_without_mention_are_ignored(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    robot = here.discord.user("robot", bot=True)
    ignored = [
        await here.discord.says(channel, ann, "not for you", attachments=[picture()]),
        await here.discord.says(channel, robot, "I am a bot", attachments=[picture()], mention=True),
    ]
    ignored.append(await here.discord.says(channel, ann, "nor this", reply_to=ignored[0]))
    # A later message is answered; answers to the earlier ones would be there by now.
    await here.discord.answer_to(await here.discord.says(channel, ann, "you", attachments=[picture()], mention=True))
    assert [here.discord.answers_to(message) for message in ignored] == [[], [], []]


async def test_an_image_sent_as_a_file_is_detected_by_content(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    for number, kind in enumerate(("application/octet-stream", None)):
        upload = Upload(encode(draw(), "WEBP"), "photo.bin", kind)
        asked = await here.discord.says(channel, ann, f"file {number}", attachments=[upload], mention=True)
        assert "I see 1 picture(s)" in (await here.discord.answer_to(asked)).text


async def test_an_image_that_servers_may_lack_is_sent_as_another(here: Scene) -> None:
    channel = await here.discord.channel()
    upload = Upload(encode(draw(), "BMP"), "photo.bmp", "image/bmp")  # the server refuses BMP
    asked = await here.discord.says(channel, here.discord.user(), "what?", attachments=[upload], mention=True)
    assert "I see 1 picture(s)" in (await here.discord.answer_to(asked)).text


@pytest.mark.parametrize(
    ("upload", "note"),
    [
        (Upload(b"just words", "a.png"), "not a picture"),
        (Upload(b"<svg/>", "a.svg", "image/svg+xml"), "not a picture"),
        (Upload(b"hello", "a.txt", "text/plain"), "not a picture"),
        (Upload(b"\0" * 64, "a.mp4", "video/mp4"), "moving"),
        (Upload(b"\x89PNG\r\n\x1a\n" + b"\0" * 200_000), "too large"),
        (Upload(b"\x89PNG\r\n\x1a\n" + b"\0" * 200_000, size=1000), "too large"),  # the declared size is wrong
        (Upload(b"x", status=404), "couldn't be downloaded"),
        (Upload(b"x", status=403), "couldn't be downloaded"),
        (Upload(b""), "not a picture"),
    ],
    ids=["words", "svg", "text", "video", "large", "lying", "gone", "expired", "empty"],
)
async def test_unusable_attachments_are_reported(here: Scene, upload: Upload, note: str) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    bad = await here.discord.says(channel, ann, "bad", attachments=[upload], mention=True)
    assert note in (await here.discord.answer_to(bad)).text
    question = f"one good, {note} {upload.name} {upload.size} {upload.status}"
    mixed = await here.discord.says(channel, ann, question, attachments=[upload, picture()], mention=True)
    answer = (await here.discord.answer_to(mixed)).text
    assert answer.startswith("I see 1 picture(s).")
    assert note in answer


async def test_a_large_file_is_not_even_fetched(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    asked = await here.discord.says(channel, ann, attachments=[Upload(b"x" * 200_000, "huge.png")], mention=True)
    await here.discord.answer_to(asked)
    asked = await here.discord.says(channel, ann, attachments=[Upload(b"x" * 200, "small.png")], mention=True)
    await here.discord.answer_to(asked)
    assert any(path.endswith("small.png") for path in here.discord.downloads)
    assert not any(path.endswith("huge.png") for path in here.discord.downloads)


async def test_too_many_images_are_reported(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    colors = ("red", "blue", "green", "black", "yellow", "orange")
    many = await here.discord.says(channel, ann, "six", attachments=[picture(color) for color in colors], mention=True)
    assert "Only 4 of 6 pictures" in (await here.discord.answer_to(many)).text
    assert len(here.vision.about("six")[0].images) == 4


async def test_a_mention_without_an_image_gets_a_hint(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    asked = await here.discord.says(channel, ann, "hello?", mention=True)
    assert "Send me a picture" in (await here.discord.answer_to(asked)).text
    assert here.vision.about("hello?") == []


async def test_a_thread_has_its_own_conversation(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    thread = await here.discord.thread(channel)
    asked = await here.discord.says(thread, ann, "in a thread", attachments=[picture()], mention=True)
    assert "in a thread" in (await here.discord.answer_to(asked)).text
    outside = await here.discord.says(channel, ann, "outside", mention=True)
    assert "Send me a picture" in (await here.discord.answer_to(outside)).text


async def test_a_forwarded_image_is_answered(here: Scene) -> None:
    ann = here.discord.user()
    ben = here.discord.user("ben")
    somewhere = await here.discord.channel()
    private = await here.discord.private_channel(ann)
    blue = picture("blue")
    original = await here.discord.says(somewhere, ben, "my holiday", attachments=[blue])
    forwarded = await here.discord.says(private, ann, forwards=original)
    assert DEFAULT in (await here.discord.answer_to(forwarded)).text
    assert here.vision.about(DEFAULT)[-1].images == [blue.data]


async def test_a_linked_image_is_answered(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    blue = picture("blue")
    embed = here.discord.picture_embed(blue)
    at_once = await here.discord.says(channel, ann, "linked", embeds=[embed], mention=True)
    await here.discord.answer_to(at_once)
    assert here.vision.about("linked")[0].images == [blue.data]


async def test_a_link_embedded_a_moment_later_is_answered(here: Scene) -> None:
    # In a channel of its own, as the number of typing events depends on timing.
    channel = await here.discord.channel()
    ann = here.discord.user()
    late = await here.discord.says(channel, ann, "see https://example.org/picture.png", mention=True)
    await here.discord.until(lambda: channel.typing, what="typing while the link is looked at")
    await here.discord.shows_embed(late, here.discord.picture_embed(picture("blue")))
    await here.discord.until(lambda: "I see 1 picture(s)" in here.discord.shown_for(late), what="an answer")


async def test_a_link_embedded_after_the_answer_is_answered(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    late = await here.discord.says(channel, ann, "see https://example.org/slow.png", mention=True)
    assert "Send me a picture" in (await here.discord.answer_to(late)).text
    for _ in range(2):  # Discord may send it more than once
        await here.discord.shows_embed(late, here.discord.picture_embed(picture("blue")))
    await here.discord.until(lambda: "I see 1 picture(s)" in here.discord.shown_for(late), what="an answer after all")
    # A later message is answered; a second answer would have begun by now.
    channel = await here.discord.channel()
    ben = here.discord.user("ben")
    await here.discord.answer_to(await here.discord.says(channel, ben, attachments=[picture()], mention=True))
    assert len(here.vision.about("see https://example.org/slow.png")) == 1


async def test_embeds_are_never_fetched_from_their_own_url(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    visited: list[str] = []
    async with own_server(visited) as inside:
        embed = {"type": "image", "url": inside, "thumbnail": {"url": inside}}
        asked = await here.discord.says(channel, ann, "local", embeds=[embed], mention=True)
        await here.discord.answer_to(asked)
    assert visited == []


async def test_embeds_are_fetched_from_discords_hosts(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    embed = here.discord.picture_embed(picture())
    embed["thumbnail"] = {"url": embed["thumbnail"]["proxy_url"]}
    asked = await here.discord.says(channel, ann, "no proxy", embeds=[embed], mention=True)
    assert "I see 1 picture(s)" in (await here.discord.answer_to(asked)).text


async def test_a_reply_to_a_hidden_image_points_to_the_menu(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    ben = here.discord.user("ben")
    theirs = await here.discord.says(channel, ben, "look", attachments=[picture()])
    asked = await here.discord.says(channel, ann, "what is it?", reply_to=theirs, mention=True)
    assert "Ask about picture…" in (await here.discord.answer_to(asked)).text
    denied = here.discord.user(roles=("666",))
    asked = await here.discord.says(channel, denied, "may I?", reply_to=theirs, mention=True)
    assert "can't use this bot" in (await here.discord.answer_to(asked)).text


async def test_the_menu_describes_any_image(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    ben = here.discord.user("ben")
    blue = picture("blue")
    theirs = await here.discord.says(channel, ben, "look", attachments=[blue])
    chosen = await here.discord.menu(theirs, ann, "Describe picture")
    assert DEFAULT in (await here.discord.answer_to(chosen)).text
    assert here.vision.about(DEFAULT)[-1].images == [blue.data]


async def test_the_menu_asks_and_a_reply_continues(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    ben = here.discord.user("ben")
    blue = picture("blue")
    theirs = await here.discord.says(channel, ben, attachments=[blue])
    chosen = await here.discord.menu(theirs, ann, "Ask about picture…")
    await here.discord.until(lambda: chosen.modal, what="the window for the question")
    submitted = await here.discord.submits(chosen, "is it blue?")
    answer = await here.discord.answer_to(submitted)
    assert here.vision.about("is it blue?")[0].images == [blue.data]
    await here.discord.answer_to(await here.discord.says(channel, ann, "really?", reply_to=answer.last))
    request = here.vision.about("really?")[0]
    assert request.images == [blue.data]
    assert len(request.transcript) == 3


async def test_the_menu_on_a_message_without_image_gets_a_hint(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    words = await here.discord.says(channel, ann, "only words")
    for entry in ("Describe picture", "Ask about picture…"):
        chosen = await here.discord.menu(words, ann, entry)
        answer = await here.discord.answer_to(chosen)
        assert "nothing here" in answer.text
        assert answer.last.ephemeral


async def test_the_ask_command_takes_several_images(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    red = picture()
    blue = picture("blue")
    asked = await here.discord.command(channel, ann, "ask", question="which?", picture=red, picture_2=blue)
    answer = await here.discord.answer_to(asked)
    assert answer.text.startswith("I see 2 picture(s)")
    assert here.vision.about("which?")[0].images == [red.data, blue.data]
    assert not answer.last.ephemeral
    again = await here.discord.command(channel, ann, "ask", question="and the sizes?")
    await here.discord.answer_to(again)
    assert len(here.vision.about("and the sizes?")[0].images) == 2


async def test_an_empty_ask_command_gets_a_private_hint(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    answer = await here.discord.answer_to(await here.discord.command(channel, ann, "ask"))
    assert "Send me a picture" in answer.text
    assert answer.last.ephemeral


@pytest.mark.parametrize("group", [False, True])
async def test_a_user_installed_app_answers_without_the_bot(here: Scene, group: bool) -> None:
    ann = here.discord.user()
    strange = await here.discord.strange_channel(ann, group=group)
    theirs = await here.discord.says(strange, here.discord.user("ben"), attachments=[picture()])
    chosen = await here.discord.menu(theirs, ann, "Describe picture")
    assert "I see 1 picture(s)" in (await here.discord.answer_to(chosen)).text
    asked = await here.discord.command(strange, ann, "ask", question="mine?", picture=picture())
    answer = await here.discord.answer_to(asked)
    before = len(here.vision.requests)
    await here.discord.clicks(answer.last, ann, "Regenerate")
    await here.discord.until(lambda: len(here.vision.requests) > before and "Regenerate" in str(answer.last.buttons()))


async def test_an_edited_question_is_answered_again_in_place(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    asked = await here.discord.says(channel, ann, "whta?", attachments=[picture()], mention=True)
    answer = await here.discord.answer_to(asked)
    await here.discord.edits(asked, f"{here.discord.bot.mention} what now?")
    await here.discord.until(lambda: "what now?" in answer.last.content and answer.last.buttons())
    assert len(here.discord.answers_to(asked)) == 1


async def test_mentions_and_custom_emojis_are_sent_without_ids(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    text = f"is <@{ann.id}> <:smile:123456> in <#777>?"
    await here.discord.answer_to(await here.discord.says(channel, ann, text, attachments=[picture()], mention=True))
    assert here.vision.requests[-1].text == "is @someone :smile: in #channel?"


async def test_the_same_message_twice_is_answered_once(here: Scene) -> None:
    channel = await here.discord.channel()
    ann = here.discord.user()
    asked = await here.discord.says(channel, ann, "only once", attachments=[picture()], mention=True)
    await here.discord._announce("MESSAGE_CREATE", asked)
    await here.discord.answer_to(asked)
    await here.discord.answer_to(await here.discord.says(channel, ann, "then", attachments=[picture()], mention=True))
    assert len(here.vision.about("only once")) == 1
    assert len(here.discord.answers_to(asked)) == 1
