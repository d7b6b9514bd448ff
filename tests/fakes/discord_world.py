"""The state of the fake Discord: people, channels, messages and commands, in the platform's own JSON.

Checks the documented limits of messages and commands.
"""

import itertools
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

EPOCH_MS = 1420070400000
EPHEMERAL = 64
_sequence = itertools.count()


def snowflake(at: float | None = None) -> str:
    """An id that contains the time (now, or ``at`` seconds since the epoch), like Discord's."""
    ms = int((time.time() if at is None else at) * 1000) - EPOCH_MS
    return str((ms << 22) | (next(_sequence) & 0x3FFFFF))


def timestamp(at: float | None = None) -> str:
    moment = time.gmtime(time.time() if at is None else at)
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", moment)


class Refused(Exception):
    """The real server's error: an HTTP status and Discord's error code."""

    def __init__(self, status: int, code: int, message: str, errors: Json | None = None) -> None:
        super().__init__(f"{status} {code} {message} {errors or ''}")
        self.status = status
        self.body: Json = {"message": message, "code": code} | ({"errors": errors} if errors else {})


def invalid(field_name: str, code: str, message: str) -> Refused:
    """Error 50035, a malformed body."""
    return Refused(400, 50035, "Invalid Form Body", {field_name: {"_errors": [{"code": code, "message": message}]}})


@dataclass(eq=False)
class User:
    name: str
    bot: bool = False
    roles: tuple[str, ...] = ()
    locale: str = "en-US"
    id: str = field(default_factory=snowflake)

    @property
    def mention(self) -> str:
        return f"<@{self.id}>"

    def payload(self) -> Json:
        return {
            "id": self.id,
            "username": self.name,
            "global_name": self.name.title(),
            "discriminator": "0",
            "avatar": None,
            "bot": self.bot,
        }

    def member(self) -> Json:
        """The person's guild member object, without the user."""
        return {
            "roles": list(self.roles),
            "joined_at": timestamp(0),
            "deaf": False,
            "mute": False,
            "flags": 0,
            "nick": None,
            "avatar": None,
            "permissions": "562949953421311",
        }


@dataclass(eq=False)
class Channel:
    """A text channel (0), a private one (1), a group (3) or a thread (11)."""

    name: str
    kind: int = 0
    guild: str | None = None
    recipient: User | None = None
    parent: "Channel | None" = None
    bot_may_read: bool = True
    """False where the bot isn't a member and only a user-installed app's interactions work."""
    bot_may_write: bool = True
    id: str = field(default_factory=snowflake)
    typing: list[float] = field(default_factory=list)

    @property
    def private(self) -> bool:
        return self.kind in (1, 3)

    def payload(self) -> Json:
        common: Json = {"id": self.id, "type": self.kind, "name": self.name, "last_message_id": None, "flags": 0}
        if self.private:
            return common | {"recipients": [self.recipient.payload()] if self.recipient else []}
        common |= {"guild_id": self.guild, "nsfw": False, "rate_limit_per_user": 0, "permissions": "562949953421311"}
        if self.kind == 11:
            assert self.parent is not None
            return common | {
                "parent_id": self.parent.id,
                "owner_id": "1",
                "message_count": 1,
                "member_count": 1,
                "thread_metadata": {
                    "archived": False,
                    "auto_archive_duration": 1440,
                    "archive_timestamp": timestamp(),
                    "locked": False,
                },
            }
        return common | {"position": 0, "topic": None, "parent_id": None, "permission_overwrites": []}


@dataclass(eq=False)
class Message:
    """A message and its history."""

    channel: Channel
    author: User
    content: str = ""
    attachments: list[Json] = field(default_factory=list)
    embeds: list[Json] = field(default_factory=list)
    components: list[Json] = field(default_factory=list)
    reference: "Message | None" = None
    reference_kind: int = 0
    snapshots: list[Json] = field(default_factory=list)
    mentions: list[User] = field(default_factory=list)
    mention_roles: list[str] = field(default_factory=list)
    flags: int = 0
    allowed_mentions: Json | None = None
    webhook_id: str | None = None
    interaction: Json | None = None
    deleted: bool = False
    edited_at: float | None = None
    history: list[tuple[float, str]] = field(default_factory=list)
    """(time, content) of the first version and of each edit."""
    reactions: list[str] = field(default_factory=list)
    kind: int = 0
    id: str = field(default_factory=snowflake)

    @property
    def ephemeral(self) -> bool:
        return bool(self.flags & EPHEMERAL)

    @property
    def thinking(self) -> bool:
        """Whether it is a deferred response without text."""
        return bool(self.flags & 128)

    def buttons(self) -> dict[str, Json]:
        """Label (or emoji) → the button, in all rows."""
        found: dict[str, Json] = {}
        for row in self.components:
            for component in row.get("components", ()):
                if component.get("type") == 2:
                    emoji = component.get("emoji") or {}
                    found[component.get("label") or emoji.get("name", "")] = component
        return found

    def readable(self, bot: User, *, intent: bool) -> bool:
        """Whether the application gets the contents: by the intent, or as author or addressee."""
        return intent or self.channel.kind == 1 or self.author is bot or bot in self.mentions

    def payload(self, bot: User, *, intent: bool = True, deep: bool = True) -> Json:
        show = self.readable(bot, intent=intent)
        body: Json = {
            "id": self.id,
            "type": self.kind,
            "channel_id": self.channel.id,
            "author": self.author.payload(),
            "content": self.content if show else "",
            "timestamp": timestamp(),
            "edited_timestamp": timestamp(self.edited_at) if self.edited_at else None,
            "tts": False,
            "mention_everyone": False,
            "mentions": [user.payload() for user in self.mentions],
            "mention_roles": self.mention_roles,
            "attachments": self.attachments if show else [],
            "embeds": self.embeds if show else [],
            "components": self.components if show else [],
            "pinned": False,
            "flags": self.flags,
        }
        if self.reference is not None:
            body["message_reference"] = {
                "type": self.reference_kind,
                "message_id": self.reference.id,
                "channel_id": self.reference.channel.id,
            } | ({"guild_id": self.channel.guild} if self.channel.guild else {})
            if deep and self.reference_kind == 0:
                gone = self.reference.deleted
                body["referenced_message"] = None if gone else self.reference.payload(bot, intent=intent, deep=False)
        if self.snapshots:
            body["message_snapshots"] = self.snapshots if show else []
        if self.webhook_id:
            body |= {"webhook_id": self.webhook_id, "application_id": self.webhook_id}
        if self.interaction:
            body["interaction_metadata"] = self.interaction
        return body

    def snapshot(self) -> Json:
        """The snapshot in a forwarded message."""
        return {
            "message": {
                "type": 0,
                "content": self.content,
                "embeds": self.embeds,
                "attachments": self.attachments,
                "timestamp": timestamp(),
                "edited_timestamp": None,
                "flags": 0,
                "mentions": [],
                "mention_roles": [],
            }
        }


def would_ping(message: Message) -> list[str]:
    """The mentions that notify, after ``allowed_mentions``: user ids, ``@everyone``, ``@here``, role ids."""
    allowed = message.allowed_mentions
    # Mentions in code don't ping.
    text = re.sub(r"```.*?```|`[^`]*`", "", message.content, flags=re.DOTALL)
    kinds: Iterable[str] = ("users", "roles", "everyone") if allowed is None else allowed.get("parse", [])
    pinged: list[str] = []
    for kind, pattern in (("users", r"<@!?(\d+)>"), ("roles", r"<@&(\d+)>"), ("everyone", r"(@everyone|@here)")):
        listed = (allowed or {}).get(kind, []) if kind != "everyone" else []
        pinged += [name for name in re.findall(pattern, text) if kind in kinds or name in listed]
    if message.reference is not None and (allowed is None or allowed.get("replied_user", False)):
        pinged.append(message.reference.author.id)
    return pinged


def check_message(body: Mapping[str, Any], *, files: int = 0, old: Message | None = None) -> None:
    """Check a new message, or an edit of ``old``, like Discord."""
    content = body.get("content")
    if content is not None and not isinstance(content, str):
        raise invalid("content", "STRING_TYPE_CONVERT", "Could not interpret as string.")
    if len(content or "") > 2000:
        raise invalid("content", "BASE_TYPE_MAX_LENGTH", "Must be 2000 or fewer in length.")
    embeds = body.get("embeds") or []
    if len(embeds) > 10:
        raise invalid("embeds", "BASE_TYPE_MAX_LENGTH", "Must be 10 or fewer in length.")
    for embed in embeds:
        for name, most in (("title", 256), ("description", 4096)):
            if len(embed.get(name) or "") > most:
                raise invalid("embeds", "BASE_TYPE_MAX_LENGTH", f"{name}: Must be {most} or fewer in length.")
    check_components(body.get("components") or [])
    if not isinstance(body.get("allowed_mentions", {}), dict):
        raise invalid("allowed_mentions", "MODEL_TYPE_CONVERT", "Only dictionaries may be used.")
    text = content if "content" in body or old is None else old.content
    has_embeds = embeds if "embeds" in body or old is None else old.embeds
    kept = body.get("attachments") if "attachments" in body or old is None else old.attachments
    if not (text or "").strip() and not has_embeds and not files and not kept:
        raise Refused(400, 50006, "Cannot send an empty message")


def check_components(rows: list[Json]) -> None:
    if len(rows) > 5:
        raise invalid("components", "BASE_TYPE_MAX_LENGTH", "Must be 5 or fewer in length.")
    seen: set[str] = set()
    for row in rows:
        inside = row.get("components", [])
        if row.get("type") != 1 or not 1 <= len(inside) <= 5:
            raise invalid("components", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 5 in length.")
        for button in inside:
            custom_id = button.get("custom_id", "")
            if button.get("type") == 2 and button.get("style") == 5:
                continue
            if not 1 <= len(custom_id) <= 100 or custom_id in seen:
                raise invalid(
                    "components", "COMPONENT_CUSTOM_ID_DUPLICATED", "custom_id must be unique, 1 to 100 long."
                )
            seen.add(custom_id)
            if button.get("type") == 2 and not (button.get("label") or button.get("emoji")):
                raise invalid("components", "BUTTON_COMPONENT_INVALID", "A button must have a label or an emoji.")
            if len(button.get("label") or "") > 80:
                raise invalid("components", "BASE_TYPE_MAX_LENGTH", "label: Must be 80 or fewer in length.")


def check_modal(data: Mapping[str, Any]) -> None:
    if not 1 <= len(data.get("title", "")) <= 45 or not 1 <= len(data.get("custom_id", "")) <= 100:
        raise invalid("data", "BASE_TYPE_BAD_LENGTH", "title 1 to 45, custom_id 1 to 100.")
    rows = data.get("components", [])
    if not 1 <= len(rows) <= 5:
        raise invalid("data", "BASE_TYPE_BAD_LENGTH", "components: Must be between 1 and 5 in length.")
    for row in rows:
        label = row.get("label") if row.get("type") == 18 else row["components"][0].get("label")
        if not 1 <= len(label or "") <= 45:
            raise invalid("data", "BASE_TYPE_BAD_LENGTH", "label: Must be between 1 and 45 in length.")
        inner = modal_input(row)
        if len(inner.get("placeholder") or "") > 100:
            raise invalid("data", "BASE_TYPE_BAD_LENGTH", "placeholder: Must be 100 or fewer in length.")


def modal_input(row: Json) -> Json:
    """The field inside a label (18) or an action row (1)."""
    inner: Json = row["component"] if row.get("type") == 18 else row["components"][0]
    return inner


def check_commands(commands: list[Json]) -> None:
    """Check a set of commands like Discord."""
    names = [(command.get("type", 1), command["name"]) for command in commands]
    if len(set(names)) != len(names):
        raise invalid("name", "APPLICATION_COMMANDS_DUPLICATE_NAME", "Application command names must be unique")
    for kind, most in ((1, 100), (2, 5), (3, 5)):
        if len([name for name in names if name[0] == kind]) > most:
            raise Refused(400, 30032, f"Maximum number of application commands reached ({most})")
    for command in commands:
        if command.get("type", 1) != 1:
            if not 1 <= len(command["name"]) <= 32 or command.get("description"):
                raise invalid("name", "BASE_TYPE_BAD_LENGTH", "Context menus: name 1 to 32, no description.")
            continue
        for part in (command, *command.get("options", ())):
            if not re.fullmatch(r"[-_'\w]{1,32}", part["name"]) or part["name"] != part["name"].lower():
                raise invalid("name", "APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid")
            if not 1 <= len(part.get("description", "")) <= 100:
                raise invalid("description", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 100 in length.")
        required = [bool(option.get("required")) for option in command.get("options", ())]
        if required != sorted(required, reverse=True):
            raise invalid("options", "APPLICATION_COMMAND_OPTIONS_REQUIRED_INVALID", "Required options come first")
