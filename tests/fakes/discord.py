"""A strict fake of Discord on loopback: gateway, REST and CDN, and the steps of people in it.

Strict means: what the real platform refuses (too long, empty, too often, too late, twice, without a permission) is
refused here with the same status, code and headers. ``violations`` lists refusals that a good bot never meets.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from fakes.discord_gateway import DIRECT_MESSAGES, GUILD_MESSAGES, MESSAGE_CONTENT, Gateway
from fakes.discord_limits import Limits
from fakes.discord_world import (
    EPHEMERAL,
    Channel,
    Json,
    Message,
    Refused,
    User,
    check_commands,
    check_message,
    check_modal,
    modal_input,
    snowflake,
    timestamp,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TOKEN = "MTAwMDAwMDAwMDAwMDAwMDAw.GfAkE0.not-a-real-token-only-for-loopback"


@dataclass
class Upload:
    """An attached file; its declared type and size may be wrong."""

    data: bytes
    name: str = "picture.png"
    kind: str | None = "image/png"
    spoiler: bool = False
    size: int | None = None
    """The declared size; None for the true one."""
    status: int = 200
    """The status of the CDN's response."""
    hold: asyncio.Event | None = None
    """The CDN sends half of the file, and the rest once this is set."""


@dataclass(eq=False)
class Interaction:
    """A command, a click or a submitted modal, with the bot's responses."""

    kind: int
    channel: Channel
    user: User
    data: Json
    message: Message | None = None
    created: float = field(default_factory=time.time)
    acknowledged: int | None = None
    """The type of the callback: 4 message, 5 thinking, 6 and 7 change the message, 9 modal."""
    acknowledged_after: float = 0.0
    original: Message | None = None
    followups: list[Message] = field(default_factory=list)
    modal: Json | None = None
    id: str = field(default_factory=snowflake)
    token: str = field(default_factory=lambda: f"interaction-{snowflake()}")


@dataclass
class Answer:
    """All messages that answer one question, in order."""

    messages: list[Message]

    @property
    def text(self) -> str:
        return "".join(message.content for message in self.messages)

    @property
    def last(self) -> Message:
        return self.messages[-1]


class FakeDiscord:
    """One server ("guild"), one bot. Start with ``running_discord``."""

    def __init__(self) -> None:
        self.bot = User("eyes", bot=True)
        self.app_id = self.bot.id  # as for all newer applications
        self.guild = snowflake()
        self.token = TOKEN
        self.gateway = Gateway(TOKEN, self._after_identify)
        self.limits = Limits()
        self.url = ""
        self.channels: dict[str, Channel] = {}
        self.messages: dict[str, Message] = {}
        self.interactions: dict[str, Interaction] = {}
        self.commands: list[Json] = []
        self.command_syncs = 0
        self.violations: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.downloads: list[str] = []
        self.interaction_seconds = 900.0
        self.acknowledge_seconds = 3.0
        self.refused_edits: dict[str, tuple[int, int]] = {}
        """Channel → (status, code) of refused edits in it."""
        self.lost_replies: set[str] = set()
        """Channels where new messages are published, but the bot gets no response."""
        self.outage = 0
        """The number of REST calls that fail next with 503 in HTML, as from a broken proxy."""
        self._files: dict[str, Upload] = {}
        self._changed = asyncio.Condition()

    # ------------------------------------------------------------------ people and channels

    def user(self, name: str = "ann", **more: Any) -> User:
        return User(name, **more)

    async def channel(self, name: str = "general", **more: Any) -> Channel:
        return await self._add(Channel(name, guild=self.guild, **more))

    async def thread(self, parent: Channel, name: str = "a-thread") -> Channel:
        return await self._add(Channel(name, 11, guild=self.guild, parent=parent))

    async def private_channel(self, user: User) -> Channel:
        """The bot's direct messages with ``user``."""
        channel = Channel(user.name, 1, recipient=user)
        self.channels[channel.id] = channel
        return channel

    async def strange_channel(self, user: User, *, group: bool = False) -> Channel:
        """A channel without the bot; only the user has installed the app."""
        kind, guild = (3, None) if group else (0, snowflake())
        channel = Channel("elsewhere", kind, guild=guild, recipient=user, bot_may_read=False, bot_may_write=False)
        self.channels[channel.id] = channel
        return channel

    async def _add(self, channel: Channel) -> Channel:
        self.channels[channel.id] = channel
        await self.gateway.dispatch("THREAD_CREATE" if channel.kind == 11 else "CHANNEL_CREATE", channel.payload())
        return channel

    # ------------------------------------------------------------------ what people do

    async def says(
        self,
        channel: Channel,
        user: User,
        text: str = "",
        *,
        attachments: Sequence[Upload] = (),
        embeds: Sequence[Json] = (),
        mention: bool = False,
        reply_to: Message | None = None,
        ping: bool = True,
        forwards: Message | None = None,
    ) -> Message:
        """Post a message. A reply mentions the author of the message replied to, unless ``ping`` is off."""
        mentions = [self.bot] if mention or self.bot.mention in text else []
        if mention:
            text = f"{self.bot.mention} {text}".strip()
        if reply_to is not None and ping and reply_to.author not in mentions:
            mentions.append(reply_to.author)
        message = Message(
            channel,
            user,
            text,
            attachments=[self.attach(channel, upload) for upload in attachments],
            embeds=list(embeds),
            mentions=mentions,
            reference=reply_to or forwards,
            reference_kind=1 if forwards else 0,
            snapshots=[forwards.snapshot()] if forwards else [],
            kind=19 if reply_to else 0,
        )
        await self._publish(message)
        return message

    async def edits(self, message: Message, text: str) -> None:
        """The author edits the text."""
        message.content = text
        message.edited_at = time.time()
        await self._announce("MESSAGE_UPDATE", message)

    async def shows_embed(self, message: Message, embed: Json) -> None:
        """Discord embeds a link some time after the message."""
        message.embeds.append(embed)
        await self._announce("MESSAGE_UPDATE", message)

    async def deletes(self, message: Message) -> None:
        message.deleted = True
        await self._announce("MESSAGE_DELETE", message)

    async def command(
        self, channel: Channel, user: User, name: str, **options: str | int | bool | Upload
    ) -> Interaction:
        """Use a slash command that the bot registered."""
        registered = self._registered(name, 1, channel)
        known = {option["name"]: option for option in registered.get("options", ())}
        assert set(options) <= set(known), f"/{name} has no {set(options) - set(known)}"
        missing = {key for key, option in known.items() if option.get("required")} - set(options)
        assert not missing, f"/{name} needs {missing}"
        data: Json = {"id": registered["id"], "name": name, "type": 1, "options": [], "resolved": {}}
        for key, given in options.items():
            value: Any = given
            if isinstance(given, Upload):
                attachment = self.attach(channel, given)
                data["resolved"].setdefault("attachments", {})[attachment["id"]] = attachment
                value = attachment["id"]
            data["options"].append({"name": key, "type": known[key]["type"], "value": value})
        return await self._interact(Interaction(2, channel, user, data))

    async def menu(self, message: Message, user: User, name: str) -> Interaction:
        """Choose an app's entry in a message's menu."""
        registered = self._registered(name, 3, message.channel)
        resolved = {"messages": {message.id: message.payload(self.bot)}}
        data = {"id": registered["id"], "name": name, "type": 3, "target_id": message.id, "resolved": resolved}
        return await self._interact(Interaction(2, message.channel, user, data))

    async def clicks(self, message: Message, user: User, label: str) -> Interaction:
        """Press a button by (part of) its label."""
        found = [button for text, button in message.buttons().items() if label.lower() in text.lower()]
        assert found, f"no button {label!r} among {list(message.buttons())}"
        assert not found[0].get("disabled"), f"the button {label!r} is disabled"
        data = {"component_type": 2, "custom_id": found[0]["custom_id"], "id": found[0].get("id", 1)}
        return await self._interact(Interaction(3, message.channel, user, data, message=message))

    async def submits(self, opened: Interaction, *values: str) -> Interaction:
        """Fill in and submit the modal that ``opened`` showed."""
        assert opened.modal is not None, "no modal is open"
        rows = []
        for row, value in zip(opened.modal["components"], values, strict=True):
            inner = modal_input(row)
            assert len(value) <= inner.get("max_length", 4000)
            filled = {"type": 4, "id": 2, "custom_id": inner["custom_id"], "value": value}
            key: Json = {"component": filled} if row["type"] == 18 else {"components": [filled]}
            rows.append({"type": row["type"], "id": 1} | key)
        data = {"custom_id": opened.modal["custom_id"], "components": rows}
        return await self._interact(Interaction(5, opened.channel, opened.user, data))

    def attach(self, channel: Channel, upload: Upload) -> Json:
        number = snowflake()
        name = f"SPOILER_{upload.name}" if upload.spoiler else upload.name
        path = f"attachments/{channel.id}/{number}/{name}"
        self._files[path] = upload
        url = f"{self.url}/{path}?ex=66&is=65&hm=abc&"
        body: Json = {"id": number, "filename": name, "url": url, "proxy_url": url, "flags": 0}
        body["size"] = len(upload.data) if upload.size is None else upload.size
        if upload.kind:
            body["content_type"] = upload.kind
        return body

    def picture_embed(self, upload: Upload) -> Json:
        """The embed for a link to an image; only the proxy's URL is reachable."""
        path = f"external/{snowflake()}/{upload.name}"
        self._files[path] = upload
        thumbnail = {"url": f"https://example.org/{upload.name}", "proxy_url": f"{self.url}/{path}"}
        return {"type": "image", "url": f"https://example.org/{upload.name}", "thumbnail": thumbnail}

    # ------------------------------------------------------------------ what the bot did

    async def until(self, happened: Callable[[], Any], *, within: float = 120.0, what: str = "") -> Any:
        """Wait until ``happened`` returns a true value, and return it."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: bool(happened())), within)
            except TimeoutError:
                shown = [message.content[:200] for message in self.messages.values() if message.author is self.bot]
                raise AssertionError(f"didn't happen within {within} s: {what}; the bot said: {shown[-5:]}") from None
            return happened()

    def answers_to(self, asked: Message | Interaction) -> list[Message]:
        """The bot's messages that reply to the message, or to another part of the answer; or the interaction's."""
        if isinstance(asked, Interaction):
            parts = ([asked.original] if asked.original else []) + asked.followups
            return [part for part in parts if not part.deleted]
        found: list[Message] = []
        for message in self.messages.values():
            if message.author is self.bot and not message.deleted and message.reference in (asked, *found):
                found.append(message)
        return found

    def shown_for(self, asked: Message | Interaction) -> str:
        """The text of all answers so far, finished or not."""
        return "\n".join(message.content for message in self.answers_to(asked))

    async def first_sign(self, asked: Message | Interaction, *, within: float = 120.0) -> Message:
        """The first message of an answer, finished or not."""
        found: list[Message] = await self.until(lambda: self.answers_to(asked), within=within, what="a sign of life")
        return found[0]

    async def answer_to(self, asked: Message | Interaction, *, ends: str = "", within: float = 120.0) -> Answer:
        """The finished answer: no message in it shows "thinking…" or a stop button.

        ``ends``: (part of) the label of a button that its last message must have. Answers of several messages need it:
        between two of them there is a moment without any button.
        """

        def finished() -> list[Message]:
            parts = self.answers_to(asked)
            quiet = not any(part.thinking or any("stop" in label.lower() for label in part.buttons()) for part in parts)
            if not quiet or not any(part.content for part in parts):
                return []
            return parts if any(ends in label for label in parts[-1].buttons() or [""]) else []

        return Answer(await self.until(finished, within=within, what="a finished answer"))

    # ------------------------------------------------------------------ events

    def _after_identify(self, intents: int) -> list[tuple[str, Json]]:
        ready = {
            "v": 10,
            "user": self.bot.payload(),
            "guilds": [{"id": self.guild, "unavailable": True}],
            "resume_gateway_url": f"{self.url.replace('http', 'ws')}/gateway",
            "session_type": "normal",
            "application": {"id": self.app_id, "flags": 1 << 19},
        }
        guild = {
            "id": self.guild,
            "name": "A guild",
            "owner_id": "1",
            "member_count": 3,
            "large": False,
            "joined_at": timestamp(),
            "roles": [_role(self.guild, "@everyone")],
            "channels": [c.payload() for c in self.channels.values() if c.guild == self.guild and c.kind == 0],
            "threads": [c.payload() for c in self.channels.values() if c.guild == self.guild and c.kind == 11],
            "members": [{"user": self.bot.payload()} | self.bot.member()],
            "voice_states": [],
            "presences": [],
            "emojis": [],
            "stickers": [],
        }
        return [("READY", ready), *([("GUILD_CREATE", guild)] if intents & 1 else [])]

    async def _publish(self, message: Message) -> None:
        message.history.append((time.time(), message.content))
        self.messages[message.id] = message
        await self._announce("MESSAGE_CREATE", message)

    async def _announce(self, event: str, message: Message) -> None:
        channel = message.channel
        if channel.bot_may_read and not message.ephemeral:
            intent = self.gateway.has_intent(MESSAGE_CONTENT)
            body = message.payload(self.bot, intent=intent)
            if event == "MESSAGE_DELETE":
                body = {"id": message.id, "channel_id": channel.id}
            if channel.guild:
                body |= {"guild_id": channel.guild, "member": message.author.member()}
            await self.gateway.dispatch(event, body, needs=DIRECT_MESSAGES if channel.private else GUILD_MESSAGES)
        async with self._changed:
            self._changed.notify_all()

    async def _interact(self, interaction: Interaction) -> Interaction:
        channel = interaction.channel
        user = interaction.user
        here = channel.bot_may_read
        body: Json = {
            "id": interaction.id,
            "application_id": self.app_id,
            "type": interaction.kind,
            "token": interaction.token,
            "version": 1,
            "data": interaction.data,
            "channel_id": channel.id,
            "channel": channel.payload(),
            "locale": user.locale,
            "app_permissions": "562949953421311" if here else "0",
            "entitlements": [],
            "attachment_size_limit": 10485760,
            "authorizing_integration_owners": {"0": channel.guild or "0"} if here else {"1": user.id},
            "context": {0: 0, 11: 0, 1: 1, 3: 2}[channel.kind],
        }
        if channel.guild:
            body |= {"guild_id": channel.guild, "guild_locale": "en-US"}
            body |= {"guild": {"id": channel.guild, "locale": "en-US", "features": []}}
            body["member"] = {"user": user.payload()} | user.member()
        else:
            body["user"] = user.payload()
        if interaction.message is not None:
            body["message"] = interaction.message.payload(self.bot)
        interaction.created = time.time()
        self.interactions[interaction.token] = interaction
        await self.gateway.dispatch("INTERACTION_CREATE", body)
        return interaction

    def _registered(self, name: str, kind: int, channel: Channel) -> Json:
        command = next((c for c in self.commands if c["name"] == name and c.get("type", 1) == kind), None)
        assert command is not None, f"{name!r} isn't among {[c['name'] for c in self.commands]}"
        context = {0: 0, 11: 0, 1: 1, 3: 2}[channel.kind]
        assert context in (command.get("contexts") or [0, 1, 2]), f"{name!r} isn't offered here"
        owner = 0 if channel.bot_may_read else 1
        assert owner in (command.get("integration_types") or [0]), f"{name!r} can't be used by this installation"
        return command

    # ------------------------------------------------------------------ HTTP

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._strictly], client_max_size=30 << 20)
        api = "/api/v10"
        message = "/api/v10/channels/{channel}/messages/{message}"
        hook = api + "/webhooks/{app}/{token}"
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/gateway", self.gateway.handle),
            ("GET", "/{kind:attachments|external}/{path:.*}", self._download),
            ("GET", f"{api}/users/@me", self._me),
            ("GET", f"{api}/oauth2/applications/@me", self._application),
            ("PUT", f"{api}/applications/{{app}}/commands", self._put_commands),
            ("GET", f"{api}/channels/{{channel}}", self._get_channel),
            ("POST", f"{api}/users/@me/channels", self._open_private),
            ("POST", f"{api}/channels/{{channel}}/messages", self._post),
            ("GET", f"{api}/channels/{{channel}}/messages", self._history),
            ("GET", message, self._get),
            ("PATCH", message, self._patch),
            ("DELETE", message, self._delete),
            ("POST", f"{api}/channels/{{channel}}/typing", self._type),
            ("PUT", f"{message}/reactions/{{emoji}}/@me", self._react),
            ("DELETE", f"{message}/reactions/{{emoji}}/@me", self._react),
            ("POST", f"{api}/interactions/{{id}}/{{token}}/callback", self._callback),
            ("POST", hook, self._follow_up),
            ("GET", f"{hook}/messages/{{message}}", self._hook_get),
            ("PATCH", f"{hook}/messages/{{message}}", self._hook_patch),
            ("DELETE", f"{hook}/messages/{{message}}", self._hook_delete),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        return app

    @web.middleware
    async def _strictly(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in Discord's format; requires the token and exactly ``application/json``."""
        path = request.path
        if not path.startswith("/api/"):
            return await handler(request)
        self.calls.append((request.method, path))
        if self.outage:
            self.outage -= 1
            return web.Response(status=503, text="<html>upstream connect error</html>", content_type="text/html")
        try:
            own = "/webhooks/" in path or path.endswith("/callback")
            if not own and request.headers.get("Authorization") != f"Bot {self.token}":
                raise Refused(401, 0, "401: Unauthorized")
            response = await handler(request)
        except web.HTTPNotFound:
            response = self._refuse(request, Refused(404, 0, "404: Not Found"))
        except Refused as refusal:
            response = self._refuse(request, refusal)
        if response.body is not None and isinstance(response, web.Response):
            response.headers["Content-Type"] = "application/json"
        async with self._changed:
            self._changed.notify_all()
        return response

    def _refuse(self, request: web.Request, refusal: Refused) -> web.Response:
        # Deleted messages and channels, and missing permissions, are no violations by the bot.
        if refusal.body["code"] not in (10008, 50001, 50013, 50083):
            self.violations.append(f"{request.method} {request.path}: {refusal}")
        return web.json_response(refusal.body, status=refusal.status)

    async def _limited(
        self, request: web.Request, route: str, place: str, act: Callable[[], Awaitable[Json | None]]
    ) -> web.StreamResponse:
        headers, refusal = self.limits.enter(route, place)
        if refusal is not None:
            return refusal
        try:
            body = await act()
        except Refused as refused:
            response = self._refuse(request, refused)
            response.headers.update(headers)
            return response
        return web.Response(status=204, headers=headers) if body is None else web.json_response(body, headers=headers)

    async def _me(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.bot.payload() | {"verified": True, "mfa_enabled": False, "flags": 0})

    async def _application(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "id": self.app_id,
                "name": self.bot.name,
                "icon": None,
                "description": "",
                "bot_public": True,
                "bot_require_code_grant": False,
                "verify_key": "0" * 64,
                "flags": 1 << 19,
                "owner": self.user("owner").payload(),
                "team": None,
            }
        )

    async def _put_commands(self, request: web.Request) -> web.StreamResponse:
        async def act() -> Json:
            commands = await request.json()
            check_commands(commands)
            ids = {"application_id": self.app_id, "version": snowflake(), "default_member_permissions": None}
            self.commands = [{"type": 1, "description": "", **c, **ids, "id": snowflake()} for c in commands]
            self.command_syncs += 1
            return self.commands  # type: ignore[return-value]

        return await self._limited(request, "commands", self.app_id, act)

    async def _get_channel(self, request: web.Request) -> web.StreamResponse:
        return await self._limited(
            request, "read", request.match_info["channel"], lambda: _later(self._channel(request).payload())
        )

    async def _open_private(self, request: web.Request) -> web.StreamResponse:
        recipient = (await request.json())["recipient_id"]
        for channel in self.channels.values():
            if channel.kind == 1 and channel.recipient and channel.recipient.id == recipient:
                return web.json_response(channel.payload())
        raise Refused(403, 50007, "Cannot send messages to this user")

    def _channel(self, request: web.Request, *, write: bool = False) -> Channel:
        channel = self.channels.get(request.match_info["channel"])
        if channel is None:
            raise Refused(404, 10003, "Unknown Channel")
        if not channel.bot_may_read:
            raise Refused(403, 50001, "Missing Access")
        if write and not channel.bot_may_write:
            raise Refused(403, 50013, "Missing Permissions")
        return channel

    def _message(self, request: web.Request, *, own: bool = False) -> Message:
        channel = self._channel(request)
        message = self.messages.get(request.match_info["message"])
        if message is None or message.deleted or message.ephemeral or message.channel is not channel:
            raise Refused(404, 10008, "Unknown Message")
        if own and message.author is not self.bot:
            raise Refused(403, 50005, "Cannot edit a message authored by another user")
        return message

    async def _post(self, request: web.Request) -> web.StreamResponse:
        async def act() -> Json:
            channel = self._channel(request, write=True)
            body, files = await _body(request)
            check_message(body, files=len(files))
            reference = None
            if (wanted := body.get("message_reference")) is not None:
                reference = self.messages.get(str(wanted["message_id"]))
                if reference is None or reference.deleted or reference.channel is not channel:
                    if wanted.get("fail_if_not_exists", True):
                        raise Refused(
                            400,
                            50035,
                            "Invalid Form Body",
                            {"message_reference": {"_errors": [{"code": "MESSAGE_REFERENCE_UNKNOWN_MESSAGE"}]}},
                        )
                    reference = None
            message = Message(channel, self.bot, body.get("content") or "", reference=reference)
            message.kind = 19 if reference else 0
            self._fill(message, body, files)
            await self._publish(message)
            if channel.id in self.lost_replies:
                await asyncio.Event().wait()
            return message.payload(self.bot)

        return await self._limited(request, "send", request.match_info["channel"], act)

    def _fill(self, message: Message, body: Json, files: list[Upload]) -> None:
        if "content" in body:
            message.content = (body["content"] or "").strip()
        message.embeds = body.get("embeds", message.embeds) or []
        message.components = body.get("components", message.components) or []
        message.allowed_mentions = body.get("allowed_mentions")
        message.attachments = message.attachments + [self.attach(message.channel, file) for file in files]
        message.flags = (message.flags & ~128 & ~4) | (body.get("flags", 0) & (EPHEMERAL | 4 | 4096))

    async def _history(self, request: web.Request) -> web.StreamResponse:
        intent = self.gateway.has_intent(MESSAGE_CONTENT)

        async def act() -> Json:
            channel = self._channel(request)
            after = int(request.query.get("after", "0"))
            limit = int(request.query.get("limit", "50"))
            found = [one for one in self.messages.values() if one.channel is channel and int(one.id) > after]
            shown = [one.payload(self.bot, intent=intent) for one in found if not (one.deleted or one.ephemeral)]
            return shown[:limit][::-1]  # type: ignore[return-value]

        return await self._limited(request, "read", request.match_info["channel"], act)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        intent = self.gateway.has_intent(MESSAGE_CONTENT)
        return await self._limited(
            request,
            "read",
            request.match_info["channel"],
            lambda: _later(self._message(request).payload(self.bot, intent=intent)),
        )

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        async def act() -> Json:
            message = self._message(request, own=True)
            if message.channel.id in self.refused_edits:
                raise Refused(*self.refused_edits[message.channel.id], "No")
            await self._edit(message, request)
            return message.payload(self.bot)

        return await self._limited(request, "edit", request.match_info["channel"], act)

    async def _edit(self, message: Message, request: web.Request) -> None:
        body, files = await _body(request)
        check_message(body, files=len(files), old=message)
        ephemeral = message.flags & EPHEMERAL
        self._fill(message, body, files)
        message.flags |= ephemeral
        message.edited_at = time.time()
        message.history.append((message.edited_at, message.content))
        await self._announce("MESSAGE_UPDATE", message)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        async def act() -> None:
            message = self._message(request)
            if message.author is not self.bot:
                raise Refused(403, 50013, "Missing Permissions")
            await self.deletes(message)

        return await self._limited(request, "delete", request.match_info["channel"], act)

    async def _type(self, request: web.Request) -> web.StreamResponse:
        async def act() -> None:
            self._channel(request, write=True).typing.append(time.time())

        return await self._limited(request, "typing", request.match_info["channel"], act)

    async def _react(self, request: web.Request) -> web.StreamResponse:
        async def act() -> None:
            message = self._message(request)
            emoji = request.match_info["emoji"]
            if request.method == "PUT":
                message.reactions.append(emoji)
            elif emoji in message.reactions:
                message.reactions.remove(emoji)

        return await self._limited(request, "react", request.match_info["channel"], act)

    async def _download(self, request: web.Request) -> web.StreamResponse:
        path = f"{request.match_info['kind']}/{request.match_info['path']}"
        upload = self._files.get(path)
        self.downloads.append(path)
        if upload is None or upload.status != 200:
            return web.Response(status=upload.status if upload else 404, text="This content is no longer available.")
        response = web.StreamResponse(headers={"Content-Type": upload.kind or "application/octet-stream"})
        await response.prepare(request)  # chunked, without a length
        try:
            if upload.hold is not None:
                half = len(upload.data) // 2
                await response.write(upload.data[:half])
                await upload.hold.wait()
                await response.write(upload.data[half:])
                await response.write_eof()
                return response
            for start in range(0, len(upload.data), 1 << 16):
                await response.write(upload.data[start : start + (1 << 16)])
            await response.write_eof()
        except ConnectionError:
            pass  # the bot closed the connection
        return response

    # ------------------------------------------------------------------ interactions

    async def _callback(self, request: web.Request) -> web.StreamResponse:
        interaction = self.interactions.get(request.match_info["token"])
        waited = time.time() - interaction.created if interaction else 0.0
        if interaction is None or interaction.id != request.match_info["id"] or waited > self.acknowledge_seconds:
            raise Refused(404, 10062, "Unknown interaction")
        if interaction.acknowledged is not None:
            raise Refused(400, 40060, "Interaction has already been acknowledged.")
        body, files = await _body(request)
        kind = body["type"]
        data = body.get("data") or {}
        if kind not in (4, 5, 6, 7, 9) or (kind in (6, 7) and interaction.message is None):
            raise Refused(400, 50035, "Invalid Form Body")
        if kind == 9 and interaction.kind == 5:
            raise Refused(400, 50035, "Invalid Form Body")
        if kind == 9:
            check_modal(data)
            interaction.modal = data
        message = interaction.message
        if kind == 4:
            check_message(data, files=len(files))
        if kind in (4, 5):
            message = self._new_hook_message(interaction, data, files, thinking=kind == 5)
            interaction.original = message
        elif kind == 7:
            assert message is not None
            check_message(data, files=len(files), old=message)
            self._fill(message, data, files)
            message.history.append((time.time(), message.content))
        interaction.acknowledged = kind
        interaction.acknowledged_after = waited
        if kind in (6, 7):
            interaction.original = message
        if message is not None and kind in (4, 5):
            await self._publish(message)
        elif message is not None and kind == 7:
            await self._announce("MESSAGE_UPDATE", message)
        if request.query.get("with_response") not in ("1", "true"):
            return web.Response(status=204)
        resource: Json = {"type": kind}
        if message is not None and kind != 9:
            resource["message"] = message.payload(self.bot)
        about: Json = {"id": interaction.id, "type": interaction.kind}
        if message is not None and kind in (4, 5):
            about |= {"response_message_id": message.id, "response_message_loading": kind == 5}
        return web.json_response({"interaction": about, "resource": resource})

    def _new_hook_message(
        self, interaction: Interaction, data: Json, files: list[Upload], *, thinking: bool = False
    ) -> Message:
        about = {"id": interaction.id, "type": interaction.kind, "user": interaction.user.payload()}
        message = Message(interaction.channel, self.bot, webhook_id=self.app_id)
        message.interaction = about | {"authorizing_integration_owners": {"0": self.guild}}
        message.kind = 20 if interaction.kind == 2 else 0
        self._fill(message, data, files)
        if thinking:
            message.flags |= 128
        return message

    def _hook(self, request: web.Request) -> Interaction:
        interaction = self.interactions.get(request.match_info["token"])
        if interaction is None or request.match_info["app"] != self.app_id:
            raise Refused(404, 10015, "Unknown Webhook")
        if time.time() - interaction.created > self.interaction_seconds:
            raise Refused(401, 50027, "Invalid Webhook Token")
        if interaction.acknowledged is None:
            raise Refused(404, 10015, "Unknown Webhook")
        return interaction

    def _hook_message(self, request: web.Request) -> Message:
        interaction = self._hook(request)
        wanted = request.match_info["message"]
        known = [message for message in (interaction.original, *interaction.followups) if message is not None]
        found = interaction.original if wanted == "@original" else next((m for m in known if m.id == wanted), None)
        if found is None or found.deleted:
            raise Refused(404, 10008, "Unknown Message")
        return found

    async def _follow_up(self, request: web.Request) -> web.StreamResponse:
        async def act() -> Json:
            interaction = self._hook(request)
            body, files = await _body(request)
            check_message(body, files=len(files))
            original = interaction.original
            if original is not None and original.thinking:  # the first one replaces "thinking…"
                ephemeral = original.flags & EPHEMERAL
                self._fill(original, body, files)
                original.flags |= ephemeral
                original.history.append((time.time(), original.content))
                await self._announce("MESSAGE_UPDATE", original)
                return original.payload(self.bot)
            if not interaction.channel.bot_may_read and len(interaction.followups) >= 5:
                raise Refused(400, 40094, "This interaction has reached the maximum number of follow up messages")
            message = self._new_hook_message(interaction, body, files)
            interaction.followups.append(message)
            await self._publish(message)
            return message.payload(self.bot)

        return await self._limited(request, "webhook", request.match_info["token"], act)

    async def _hook_get(self, request: web.Request) -> web.StreamResponse:
        return await self._limited(
            request,
            "webhook",
            request.match_info["token"],
            lambda: _later(self._hook_message(request).payload(self.bot)),
        )

    async def _hook_patch(self, request: web.Request) -> web.StreamResponse:
        async def act() -> Json:
            message = self._hook_message(request)
            await self._edit(message, request)
            return message.payload(self.bot)

        return await self._limited(request, "webhook", request.match_info["token"], act)

    async def _hook_delete(self, request: web.Request) -> web.StreamResponse:
        async def act() -> None:
            await self.deletes(self._hook_message(request))

        return await self._limited(request, "webhook", request.match_info["token"], act)


@asynccontextmanager
async def running_discord() -> AsyncIterator[FakeDiscord]:
    """The fake on a free port of loopback, in this event loop."""
    discord = FakeDiscord()
    runner = web.AppRunner(discord.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    discord.url = f"http://127.0.0.1:{port}"
    try:
        async with discord.limits.standstill.watched():
            yield discord
    finally:
        await runner.cleanup()


async def _later(body: Json) -> Json:
    return body


async def _body(request: web.Request) -> tuple[Json, list[Upload]]:
    """JSON, or a form with ``payload_json`` and files."""
    if request.content_type == "application/json":
        return await request.json(), []
    if request.content_type != "multipart/form-data":
        raise Refused(400, 50109, "The request body contains invalid JSON.")
    form = await request.post()
    files = [
        Upload(value.file.read(), value.filename, value.content_type)
        for value in form.values()
        if isinstance(value, web.FileField)
    ]
    return json.loads(str(form["payload_json"])), files


def _role(number: str, name: str) -> Json:
    return {
        "id": number,
        "name": name,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "position": 0,
        "permissions": "562949953421311",
        "managed": False,
        "mentionable": False,
        "flags": 0,
    }
