"""Who may ask, and how much: lists from the settings, counters from the storage. Knows pseudonyms, no platform.

``Gate.check`` is a pure question; ``Gate.enter`` counts. The rules are read again when the settings file changes.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.settings import AccessSettings, BotSettings, LimitSettings, read_bot_settings
from minigpt4_bots.core.storage import Storage
from minigpt4_serve.errors import InvalidRequest

__all__ = ["Asker", "Gate", "Refusal"]

_log = logging.getLogger(__name__)
_DAY_S = 86400.0


@dataclass(frozen=True)
class Asker:
    """Who asks, and where. Ids are the platform's own, as text; they stay in memory."""

    platform: str
    user: str
    chat: str
    """Telegram: the chat. Discord: the server, or the private channel."""
    channel: str = ""
    """Telegram: ``chat/topic``, or empty. Discord: the channel or thread. Conversations in channels are kept apart."""
    roles: frozenset[str] = field(default_factory=frozenset)
    private: bool = False
    """A chat with nobody else in it."""
    language: str | None = None
    """What the platform says about the person's language, such as ``zh-CN``."""
    parent_channel: str = ""
    """Discord: the channel that a thread belongs to; lists that name it hold for its threads too."""


@dataclass(frozen=True)
class Refusal:
    """Why not: a name in the catalogue of texts, and how many seconds until it's worth trying again."""

    text: str
    wait_s: float | None = None


class Gate:
    """Decides by the settings of the moment. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        settings: BotSettings,
        storage: Storage,
        pseudonyms: Pseudonyms,
        *,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access: AccessSettings = settings.access
        self._limits: LimitSettings = settings.limits
        self._storage = storage
        self._pseudonyms = pseudonyms
        self._file = file
        self._stamp = self._file_stamp()
        self._clock = clock

    def user(self, asker: Asker) -> str:
        """The asker's pseudonym."""
        return self._pseudonyms.of(asker.platform, "user", asker.user)

    def check(self, asker: Asker) -> Refusal | None:
        """None: may ask now. Reads the lists again if the file has changed."""
        self._reload()
        if asker.user in self._access.admins:
            return None
        return self._check_lists(asker) or self._check_limits(asker)

    def is_allowed(self, asker: Asker) -> bool:
        """By the lists alone, whatever was asked before."""
        self._reload()
        return asker.user in self._access.admins or self._check_lists(asker) is None

    def enter(self, asker: Asker) -> int:
        """Count the question; the number can be given to ``withdraw``."""
        return self._storage.record_question(user=self.user(asker), chat=self._chat(asker), at=self._clock())

    def withdraw(self, number: int) -> None:
        """The question couldn't be answered, which isn't the asker's fault: it doesn't count."""
        self._storage.withdraw_question(number)

    def is_admin(self, asker: Asker) -> bool:
        """May stop and repeat other people's answers, and is bound by no list and no limit."""
        return asker.user in self._access.admins

    @property
    def limits(self) -> LimitSettings:
        """The limits of the moment, to tell people about them."""
        return self._limits

    def _check_lists(self, asker: Asker) -> Refusal | None:
        if asker.private and not self._access.private_chats:
            return Refusal("refused.private")
        here = {asker.channel, asker.parent_channel} - {""}
        deny, allow = self._access.deny, self._access.allow
        if (
            asker.user in deny.users
            or asker.chat in deny.chats
            or not deny.roles.isdisjoint(asker.roles)
            or not deny.channels.isdisjoint(here)
        ):
            return Refusal("refused.access")
        people = not (allow.users or allow.roles) or asker.user in allow.users or bool(allow.roles & asker.roles)
        # A private chat is nobody's place: a list of places doesn't shut out people who are listed by name.
        named = asker.private and asker.user in allow.users
        places = not (allow.chats or allow.channels) or asker.chat in allow.chats or bool(allow.channels & here)
        return None if people and (places or named) else Refusal("refused.access")

    def _check_limits(self, asker: Asker) -> Refusal | None:
        now = self._clock()
        midnight = now - now % _DAY_S
        since = min(midnight, now - 60)
        user = self._storage.times_of_user(self.user(asker), since)
        chat = self._storage.times_of_chat(self._chat(asker), since)
        limits = self._limits
        for times, most, text in (
            (user, limits.user_per_day, "refused.user_day"),
            (chat, limits.chat_per_day, "refused.chat_day"),
        ):
            if most is not None and sum(at >= midnight for at in times) >= most:
                return Refusal(text, midnight + _DAY_S - now)
        for times, most, text in (
            (user, limits.user_per_minute, "refused.user_minute"),
            (chat, limits.chat_per_minute, "refused.chat_minute"),
        ):
            recent = [at for at in times if at > now - 60]
            if most is not None and len(recent) >= most:
                # The oldest of the last `most` questions must be a minute old.
                return Refusal(text, recent[-most] + 60 - now if most else None)
        return None

    def _chat(self, asker: Asker) -> str:
        return self._pseudonyms.of(asker.platform, "chat", asker.chat)

    def _file_stamp(self) -> tuple[int, int] | None:
        try:
            stat = self._file.stat() if self._file else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size) if stat else None

    def _reload(self) -> None:
        stamp = self._file_stamp()
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            settings = read_bot_settings(self._file)
        except InvalidRequest as error:
            _log.error("The access lists stay as they were. %s", error.message)
            return
        self._access, self._limits = settings.access, settings.limits
        _log.info("Access lists and limits were read again.")
