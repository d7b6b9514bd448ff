"""The fake Discord is as strict as the real one: discord.py with valid and invalid requests."""

import asyncio
from collections.abc import AsyncIterator

import discord
import pytest
import yarl
from discord import app_commands
from drawing import draw, encode
from fakes.discord import FakeDiscord, Upload, running_discord
from fakes.discord_gateway import MESSAGE_CONTENT
from fakes.discord_world import would_ping


class Library(discord.Client):
    """A minimal bot that records messages and commands."""

    def __init__(self, *, content: bool = False) -> None:
        intents = discord.Intents(guilds=True, messages=True, message_content=content)
        super().__init__(intents=intents, guild_ready_timeout=0.1)  # the fake sends its one guild at once
        self.tree = app_commands.CommandTree(self)
        self.messages: asyncio.Queue[discord.Message] = asyncio.Queue()
        self.asked: asyncio.Queue[discord.Interaction] = asyncio.Queue()

        @self.tree.command(description="asks")
        async def ask(
            interaction: discord.Interaction, question: str, picture: discord.Attachment | None = None
        ) -> None:
            self.asked.put_nowait(interaction)

    async def on_message(self, message: discord.Message) -> None:
        if message.author != self.user:
            self.messages.put_nowait(message)


@pytest.fixture
async def world() -> AsyncIterator[FakeDiscord]:
    async with running_discord() as fake:
        fake.acknowledge_seconds = 600.0  # instead of 3, as this process may stall for longer
        yield fake


@pytest.fixture
async def library(world: FakeDiscord, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Library]:
    monkeypatch.setattr(discord.http.Route, "BASE", f"{world.url}/api/v10")
    address = yarl.URL(world.url).with_scheme("ws") / "gateway"
    monkeypatch.setattr(discord.gateway.DiscordWebSocket, "DEFAULT_GATEWAY", address)
    client = Library()
    await client.login(world.token)
    running = asyncio.create_task(client.connect())
    ready = asyncio.create_task(client.wait_until_ready())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        ready.cancel()
        running.result()  # raises what kept it from connecting
    await client.tree.sync()
    yield client
    await client.close()
    await running


async def test_contents_need_the_intent_or_an_address_to_the_bot(world: FakeDiscord, library: Library) -> None:
    channel = await world.channel()
    ann = world.user()
    picture = Upload(encode(draw()))
    others = await world.says(channel, ann, "look", attachments=[picture])
    seen = await library.messages.get()
    assert (seen.content, seen.attachments) == ("", [])
    await world.says(channel, ann, "look", attachments=[picture], mention=True)
    seen = await library.messages.get()
    assert seen.content.endswith("look")
    assert await seen.attachments[0].read() == picture.data
    await world.says(channel, ann, "what's that?", reply_to=others, mention=True)
    reference = (await library.messages.get()).reference
    assert reference is not None
    assert isinstance(reference.resolved, discord.Message)
    assert reference.resolved.attachments == []
    private = await world.private_channel(ann)
    await world.says(private, ann, "hello")
    assert (await library.messages.get()).content == "hello"


async def test_privileged_intents_close_the_connection(world: FakeDiscord, library: Library) -> None:
    greedy = Library(content=True)
    await greedy.login(world.token)
    with pytest.raises(discord.PrivilegedIntentsRequired):
        await greedy.connect()
    await greedy.close()
    world.gateway.granted |= MESSAGE_CONTENT
    impostor = Library()
    with pytest.raises(discord.LoginFailure):
        await impostor.login("wrong")
    await impostor.close()


async def test_a_torn_connection_is_resumed_and_nothing_is_missed(world: FakeDiscord, library: Library) -> None:
    channel = await world.channel()
    ann = world.user()
    for code in (None, 4000):
        await world.gateway.drop(code)
        await world.says(channel, ann, "while you were away", mention=True)
        assert "away" in (await asyncio.wait_for(library.messages.get(), 60)).content
    assert (world.gateway.identified, world.gateway.resumed) == (1, 2)


async def test_refusals_have_the_platforms_codes(world: FakeDiscord, library: Library) -> None:
    channel = await world.channel()
    locked = await world.channel("locked", bot_may_write=False)
    strange = await world.strange_channel(world.user())
    place = library.get_partial_messageable(int(channel.id))
    message = await place.send("hello")
    others = await world.says(channel, world.user(), "mine")

    async def refusal(act: object) -> tuple[int, int]:
        with pytest.raises(discord.HTTPException) as refused:
            await act  # type: ignore[misc]
        return refused.value.status, refused.value.code

    assert await refusal(place.send("x" * 2001)) == (400, 50035)
    assert await refusal(place.send(" ")) == (400, 50006)
    assert await refusal(place.get_partial_message(int(others.id)).edit(content="yours")) == (403, 50005)
    assert await refusal(library.get_partial_messageable(int(locked.id)).send("x")) == (403, 50013)
    assert await refusal(library.get_partial_messageable(int(strange.id)).send("x")) == (403, 50001)
    await world.deletes(world.messages[str(message.id)])
    assert await refusal(message.edit(content="gone")) == (404, 10008)


async def test_rate_limits_are_fixed_windows_per_channel(world: FakeDiscord, library: Library) -> None:
    world.limits.sizes["send"] = (5, 1.0)
    one = await world.channel()
    other = await world.channel()
    place = library.get_partial_messageable(int(one.id))
    async with asyncio.timeout(120):
        await place.send("0")  # the library learns the bucket
        await asyncio.gather(*(place.send(str(n)) for n in range(1, 9)))
        await library.get_partial_messageable(int(other.id)).send("elsewhere")
    assert sorted(m.content for m in world.messages.values() if m.channel is one) == [str(n) for n in range(9)]
    first, *_, last = [m.history[0][0] for m in world.messages.values() if m.channel is one]
    assert last - first >= 0.9
    assert not world.limits.refused
    # Sent regardless of the headers: refused with the wait in the response.
    for _ in range(6):
        _, refused = world.limits.enter("send", "x")
    assert refused is not None
    assert (refused.status, refused.headers["Via"]) == (429, "1.1 google")


async def test_interactions_are_answered_once_in_time_and_for_a_while(world: FakeDiscord, library: Library) -> None:
    channel = await world.channel()
    ann = world.user()
    asked = await world.command(channel, ann, "ask", question="what?", picture=Upload(b"x"))
    interaction = await library.asked.get()
    await interaction.response.defer(thinking=True)
    assert asked.original is not None
    assert asked.original.thinking
    await interaction.followup.send("an answer", wait=True)
    assert (await world.answer_to(asked)).text == "an answer"
    assert asked.followups == []  # it replaced "thinking…"
    with pytest.raises(discord.HTTPException, match="already been acknowledged"):
        await library.http.request(  # bypasses the library's own check
            discord.http.Route("POST", "/interactions/{id}/{token}/callback", id=int(asked.id), token=asked.token),
            json={"type": 5},
        )
    world.interaction_seconds = -1.0
    with pytest.raises(discord.HTTPException, match="Invalid Webhook Token"):
        await interaction.edit_original_response(content="too late")
    world.acknowledge_seconds = -1.0
    await world.command(channel, ann, "ask", question="again?")
    with pytest.raises(discord.NotFound, match="Unknown interaction"):
        await (await library.asked.get()).response.send_message("late")


async def test_commands_are_checked(world: FakeDiscord, library: Library) -> None:
    assert [command["name"] for command in world.commands] == ["ask"]
    world.limits.sizes["commands"] = (10, 10.0)  # not under test here
    for bad in ({"name": "Ask", "description": "x"}, {"name": "ask"}, {"name": "a" * 33, "type": 3}):
        with pytest.raises(discord.HTTPException):
            await library.http.bulk_upsert_global_commands(int(world.app_id), [bad])  # type: ignore[list-item]
    assert world.command_syncs == 1


@pytest.mark.parametrize(
    ("allowed", "pinged"),
    [(None, 3), ({"parse": []}, 0), ({"parse": ["everyone"]}, 1), ({"parse": [], "users": ["5"]}, 1)],
)
async def test_pings_are_reported(world: FakeDiscord, allowed: dict[str, object] | None, pinged: int) -> None:
    channel = await world.channel()
    message = await world.says(channel, world.bot, "<@5> @everyone <@&7> `<@8>`")
    message.allowed_mentions = allowed
    assert len(would_ping(message)) == pinged
