"""A strict fake of Telegram's Bot API on loopback, and the steps of people in its chats.

Strict means: what the real server refuses (too long, empty, malformed markup, unchanged, too often, a second receiver)
is refused here with the same words. ``floods`` counts refusals for writing too often, ``mistakes`` lists what a good
bot never does.
"""

import asyncio
import html.parser
import itertools
import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from fakes.standstill import Standstill
from waiting import wait_until

TOKEN = "123456789:AAFakeToken-only-for-loopback-0123456789"
BOT = {"id": 123456789, "is_bot": True, "first_name": "Eyes", "username": "eyes_bot", "can_join_groups": True}
_TAGS = {"b", "i", "s", "u", "code", "pre", "tg-spoiler"}
Json = dict[str, Any]


class Refused(Exception):
    def __init__(self, code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.body: Json = {"ok": False, "error_code": code, "description": description}
        if parameters:
            self.body["parameters"] = parameters


class _Markup(html.parser.HTMLParser):
    """Parse Telegram's HTML into text and entities, or refuse it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.entities: list[str] = []
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in _TAGS:
            raise Refused(400, f'Bad Request: can\'t parse entities: Unsupported start tag "{tag}" at byte offset 0')
        if "code" in self.stack or ("pre" in self.stack and tag != "code"):
            raise Refused(400, "Bad Request: can't parse entities: code holds another entity")
        if tag in ("code", "pre") and set(self.stack) - {"pre"}:
            raise Refused(400, "Bad Request: can't parse entities: code within another entity")
        self.stack.append(tag)
        self.entities.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            raise Refused(400, f"Bad Request: can't parse entities: Unexpected end tag {tag}")

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(text: str, mode: str | None) -> tuple[str, list[str]]:
    if mode is None:
        return text, []
    markup = _Markup()
    markup.feed(text)
    markup.close()
    if markup.stack:
        raise Refused(400, f"Bad Request: can't parse entities: Can't find end tag of {markup.stack[-1]}")
    return markup.text, markup.entities


@dataclass
class Sent:
    """One message of the bot."""

    chat: int
    id: int
    text: str
    entities: list[str]
    buttons: list[str]
    reply_to: int | None
    thread: int | None
    at: float
    edits: int = 0
    html: str = ""
    deleted: bool = False
    labels: list[str] = field(default_factory=list)
    """The labels of the buttons."""


@dataclass
class FakeTelegram:
    """Start with ``async with FakeTelegram().running() as telegram``."""

    enforce: bool = True
    has_drafts: bool = True
    has_webhook: str = ""
    secret: str = ""
    url: str = ""
    allowed_updates: list[str] = field(default_factory=list)
    sent: dict[tuple[int, int], Sent] = field(default_factory=dict)
    drafts: dict[int, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    calls: list[tuple[float, str, Json]] = field(default_factory=list)
    toasts: list[str] = field(default_factory=list)
    guests: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[Json]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    floods: int = 0
    refuse_next: dict[int, list[Refused]] = field(default_factory=lambda: defaultdict(list))
    """Errors of the next writes in a chat, in order."""
    refuse_markup_in: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    """Chats that blocked the bot."""
    upgraded: dict[int, int] = field(default_factory=dict)
    """Groups that became supergroups, with their new ids."""
    uneditable: set[int] = field(default_factory=set)
    """Chats in which edits are refused."""
    second_receiver: bool = False
    conflicts: int = 0
    down: bool = False
    refused_while_down: int = 0
    lost_replies: set[int] = field(default_factory=set)
    """Chats where new messages are published, but the bot gets no response."""
    slow_chats: dict[int, asyncio.Event] = field(default_factory=dict)
    """Chats whose messages are held until the event is set."""
    files: dict[str, bytes] = field(default_factory=dict)
    slow_files: dict[str, asyncio.Event] = field(default_factory=dict)
    """Files whose downloads are held until the event is set."""
    has_files: bool = True
    local_folder: Path | None = None
    """If set, a Bot API server in local mode, which returns paths in this folder."""
    webhook_proxy: str = ""
    """The bot's address behind its https proxy: ``http://127.0.0.1:port``."""

    def __post_init__(self) -> None:
        self._updates: list[Json] = []
        self._arrived = asyncio.Event()
        self._polling: asyncio.Task[Any] | None = None
        self._numbers = itertools.count(1000)
        self._update_numbers = itertools.count(1)
        self._writes: dict[Any, deque[float]] = defaultdict(lambda: deque(maxlen=40))
        self._standstill = Standstill()

    # The server

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeTelegram"]:
        app = web.Application()
        app.router.add_route("*", "/file/bot{token}/{path:.*}", self._file)
        app.router.add_route("*", "/bot{token}/{method}", self._call)
        runner = web.AppRunner(app, shutdown_timeout=0.5, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with self._standstill.watched():
                yield self
        finally:
            await runner.cleanup()

    @asynccontextmanager
    async def files_elsewhere(self) -> AsyncIterator[str]:
        """Serve the files from another server; this one no longer has them."""
        app = web.Application()
        app.router.add_get("/store/file/bot{token}/{path:.*}", self._file)
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.has_files = False
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/store/file/bot"
        finally:
            await runner.cleanup()

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["path"]
        if not (self.has_files or request.path.startswith("/store/")):
            return web.Response(status=404)
        if name in self.slow_files:
            await self.slow_files[name].wait()
        data = self.files.get(name)
        if request.match_info["token"] != TOKEN or data is None:
            return web.Response(status=404)
        return web.Response(body=data)

    async def _call(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        values: Json = dict(await request.post())
        for name, value in values.items():
            if isinstance(value, str):
                with suppress(ValueError):
                    values[name] = value if name in ("text", "secret_token") else json.loads(value)
        try:
            if self.down:
                self.refused_while_down += 1
                raise Refused(502, "Bad Gateway")
            if request.match_info["token"] != TOKEN:
                raise Refused(401, "Unauthorized")
            handler = getattr(self, f"_do_{method}", None)
            if handler is None:
                raise Refused(404, "Not Found: method not found")
            if method != "getUpdates":
                self.calls.append((time.monotonic(), method, values))
            if (new := self.upgraded.get(int(values.get("chat_id", 0)))) is not None:
                description = "Bad Request: group chat was upgraded to a supergroup chat"
                raise Refused(400, description, migrate_to_chat_id=new)
            result = await handler(values) if asyncio.iscoroutinefunction(handler) else handler(values)
        except Refused as refusal:
            return web.json_response(refusal.body, status=refusal.body["error_code"])
        return web.json_response({"ok": True, "result": result})

    def _do_getMe(self, _: Json) -> Json:
        return BOT

    def _do_setMyCommands(self, values: Json) -> bool:
        self.commands[values.get("language_code", "")] = values["commands"]
        return True

    def _do_deleteWebhook(self, _: Json) -> bool:
        self.has_webhook = ""
        return True

    def _do_setWebhook(self, values: Json) -> bool:
        if not values["url"].startswith("https://"):
            raise Refused(400, "Bad Request: bad webhook: An HTTPS URL must be provided for webhook")
        self.has_webhook = values["url"]
        self.secret = values.get("secret_token", "")
        self.allowed_updates = values.get("allowed_updates", self.allowed_updates)
        return True

    async def _do_getUpdates(self, values: Json) -> list[Json]:
        if self.has_webhook:
            raise Refused(409, "Conflict: can't use getUpdates method while webhook is active")
        if self.second_receiver:
            raise self._conflict()
        self.allowed_updates = values.get("allowed_updates", self.allowed_updates)
        offset = int(values.get("offset", 0))
        self._updates = [one for one in self._updates if one["update_id"] >= offset]
        # The newer of two polls wins, so a bot that lost its connection can poll again at once.
        self._polling = mine = asyncio.current_task()
        if not self._updates:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), float(values.get("timeout", 0)))
        if self.second_receiver or self._polling is not mine:
            raise self._conflict()
        return self._updates[:100]

    def _conflict(self) -> Refused:
        self.conflicts += 1
        return Refused(
            409, "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
        )

    def _do_getFile(self, values: Json) -> Json:
        name = str(values["file_id"])
        if name not in self.files:
            raise Refused(400, "Bad Request: wrong file_id or the file is temporarily unavailable")
        if len(self.files[name]) > 20 * 2**20 and self.local_folder is None:
            raise Refused(400, "Bad Request: file is too big")
        path = name
        if self.local_folder is not None:
            (self.local_folder / name).write_bytes(self.files[name])
            path = str(self.local_folder / name)
        return {"file_id": name, "file_unique_id": name, "file_size": len(self.files[name]), "file_path": path}

    def _write(self, values: Json) -> tuple[str, list[str]]:
        chat = int(values["chat_id"])
        if self.refuse_next[chat]:
            raise self.refuse_next[chat].pop(0)
        if chat in self.gone:
            raise Refused(403, "Forbidden: bot was blocked by the user")
        now = time.monotonic()
        rates = [("all", 30, 1.0), (chat, 1, 1.0)] + ([((chat, "m"), 20, 60.0)] if chat < 0 else [])
        for name, count, period in rates if self.enforce else ():
            times = self._writes[name]
            is_often = len(times) >= count and now - times[-count] < period
            if is_often and not self._standstill.just_over():
                self.floods += 1
                wait = int(period - (now - times[-count])) + 1
                raise Refused(429, f"Too Many Requests: retry after {wait}", retry_after=wait)
        for name, _, _ in rates:
            self._writes[name].append(now)
        if values.get("parse_mode") and chat in self.refuse_markup_in:
            raise Refused(400, "Bad Request: can't parse entities: we don't want to")
        try:
            text, entities = parse(values.get("text", ""), values.get("parse_mode"))
        except Refused as refusal:
            self.mistakes.append(f"{refusal}: {values['text'][:200]}")
            raise
        if len(text.encode("utf-16-le")) // 2 > 4096:
            self.mistakes.append("too long")
            raise Refused(400, "Bad Request: message is too long")
        return text, entities

    async def _do_sendMessage(self, values: Json) -> Json:
        if (slow := self.slow_chats.get(int(values["chat_id"]))) is not None:
            await slow.wait()
        text, entities = self._write(values)
        if not text.strip():
            self.mistakes.append("empty")
            raise Refused(400, "Bad Request: message text is empty")
        if values.get("link_preview_options", {}).get("is_disabled") is not True:
            self.mistakes.append("link previews are on")
        reply = values.get("reply_parameters", {}).get("message_id")
        chat = int(values["chat_id"])
        number = next(self._numbers)
        entities += [one["type"] for one in values.get("entities", [])]
        self.sent[chat, number] = Sent(
            chat,
            number,
            text,
            entities,
            _labels(values),
            reply,
            values.get("message_thread_id"),
            time.monotonic(),
            html=values["text"],
            labels=_labels(values, "text"),
        )
        if chat in self.lost_replies:
            await asyncio.Event().wait()
        return self.as_json(self.sent[chat, number])

    def _do_editMessageText(self, values: Json) -> Json:
        message = self.sent.get((int(values["chat_id"]), int(values["message_id"])))
        if message is None or message.deleted:
            raise Refused(400, "Bad Request: message to edit not found")
        if message.chat in self.uneditable:
            raise Refused(400, "Bad Request: message can't be edited")
        text, entities = self._write(values)
        entities += [one["type"] for one in values.get("entities", [])]
        if (text, entities, _labels(values)) == (message.text, message.entities, message.buttons):
            raise Refused(400, "Bad Request: message is not modified: specified new message content is the same")
        message.text = text
        message.entities = entities
        message.buttons = _labels(values)
        message.html = values["text"]
        message.labels = _labels(values, "text")
        message.edits += 1
        return self.as_json(message)

    def _do_deleteMessage(self, values: Json) -> bool:
        message = self.sent.get((int(values["chat_id"]), int(values["message_id"])))
        if message is None or message.deleted:
            raise Refused(400, "Bad Request: message to delete not found")
        message.deleted = True
        return True

    def _do_sendMessageDraft(self, values: Json) -> bool:
        if not self.has_drafts:
            raise Refused(404, "Not Found")
        chat = int(values["chat_id"])
        if chat < 0 or not int(values["draft_id"]):
            self.mistakes.append("a draft outside of a private chat, or without a number")
            raise Refused(400, "Bad Request: PEER_ID_INVALID")
        text, _ = self._write(values)
        self.drafts[chat].append((int(values["draft_id"]), text))
        return True

    def _do_answerCallbackQuery(self, values: Json) -> bool:
        self.toasts.append(str(values.get("text", "")))
        return True

    def _do_answerGuestQuery(self, values: Json) -> Json:
        query = str(values["guest_query_id"])
        if query in self.guests:
            self.mistakes.append("answered a guest twice")
            raise Refused(400, "Bad Request: query is already answered")
        content = values["result"]["input_message_content"]
        self.guests[query], _ = parse(content["message_text"], content.get("parse_mode"))
        return {"inline_message_id": query}

    # What people see

    def shown(self, chat: int) -> list[Sent]:
        """The bot's messages in a chat, oldest first."""
        return [one for one in self.sent.values() if one.chat == chat and not one.deleted]

    async def answer(self, chat: int, count: int = 1) -> Sent:
        """The last of the bot's ``count`` messages, once its answer is complete."""
        await wait_until(
            lambda: len(self.shown(chat)) >= count and all(one.buttons != ["stop"] for one in self.shown(chat))
        )
        return self.shown(chat)[count - 1]

    def as_json(self, sent: Sent) -> Json:
        """A message of the bot in Telegram's JSON."""
        message = {
            "message_id": sent.id,
            "date": int(time.time()),
            "chat": chat_json(sent.chat),
            "from": BOT,
            "text": sent.text,
        }
        if sent.thread is not None:
            message |= {"message_thread_id": sent.thread, "is_topic_message": True}
        return message

    # What people do

    def upload(self, data: bytes) -> str:
        """A file on the server."""
        name = f"file{next(self._numbers)}"
        self.files[name] = data
        return name

    def photo(self, data: bytes) -> Json:
        """The fields of a message with a photo."""
        size = {"file_id": self.upload(data), "file_unique_id": "u", "width": 64, "height": 48, "file_size": len(data)}
        return {"photo": [{**size, "file_id": "thumbnail"}, size]}

    def document(self, data: bytes, kind: str | None = "image/png", name: str = "a.png", **more: Any) -> Json:
        """The fields of a message with a file."""
        document = {"file_id": self.upload(data), "file_unique_id": "u", "file_name": name, "file_size": len(data)}
        return {"document": {**document, **({"mime_type": kind} if kind else {}), **more}}

    def message(self, chat: int, user: int, text: str = "", *, language: str = "en", **fields: Any) -> Json:
        """A message by a person; mentions and commands get their entities."""
        where = "caption" if "photo" in fields or "document" in fields or "video" in fields else "text"
        message: Json = {
            "message_id": next(self._numbers),
            "date": int(time.time()),
            "chat": chat_json(chat),
            "from": person(user, language),
            **({where: text} if text else {}),
            **fields,
        }
        if f"@{BOT['username']}" in text:
            offset = len(text[: text.index(f"@{BOT['username']}")].encode("utf-16-le")) // 2
            entity = {"type": "mention", "offset": offset, "length": len(BOT["username"]) + 1}
            message["entities" if where == "text" else "caption_entities"] = [entity]
        return message

    async def push(self, update: Json | bytes, secret: str | None) -> int:
        """Post an update, or a body, to the bot's webhook as its https proxy does; returns the status."""
        body = update if isinstance(update, bytes) else json.dumps(update).encode()
        headers = {"content-type": "application/json"}
        if secret is not None:
            headers["X-Telegram-Bot-Api-Secret-Token"] = secret
        address = f"{self.webhook_proxy}{urlsplit(self.has_webhook).path}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(address, data=body, headers=headers) as response,
        ):
            return response.status

    async def update(self, kind: str, value: Json) -> None:
        """Add an update, delivered by the next poll or by webhook."""
        update = {"update_id": next(self._update_numbers), kind: value}
        if self.has_webhook:
            async with asyncio.timeout(60):
                while True:  # Telegram retries until the bot accepts it
                    try:
                        assert await self.push(update, self.secret) == 200
                    except aiohttp.ClientConnectorError:
                        await asyncio.sleep(0.1)
                    else:
                        return
        self._updates.append(update)
        self._arrived.set()

    async def say(self, chat: int, user: int, text: str = "", **fields: Any) -> Json:
        """A person writes."""
        message = self.message(chat, user, text, **fields)
        await self.update("message", message)
        return message

    async def press(self, sent: Sent, user: int, data: str) -> None:
        """A person presses a button."""
        query = {
            "id": str(next(self._numbers)),
            "from": person(user, "en"),
            "chat_instance": "1",
            "data": data,
            "message": self.as_json(sent),
        }
        await self.update("callback_query", query)


def person(user: int, language: str) -> Json:
    return {"id": user, "is_bot": False, "first_name": "Anna", "language_code": language}


def chat_json(chat: int) -> Json:
    if chat > 0:
        return {"id": chat, "type": "private", "first_name": "Anna"}
    return {"id": chat, "type": "supergroup", "title": "Group", "is_forum": True}


def _labels(values: Json, name: str = "callback_data") -> list[str]:
    rows = values.get("reply_markup", {}).get("inline_keyboard", [])
    return [button[name] for row in rows for button in row]
