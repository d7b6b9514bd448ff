"""Access lists from the settings, and limits on questions counted in the storage.

``AccessControl`` reads lists and limits again when the settings file changes. The storage holds pseudonyms, never ids.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.settings import AccessSettings, BotSettings, LimitSettings, read_bot_settings
from minigpt4_bots.core.storage import Storage
from minigpt4_serve.errors import InvalidRequest

__all__ = ["AccessControl", "Denial", "DenialReason", "Requester"]

_log = logging.getLogger(__name__)
_DAY_S = 86400.0


@dataclass(frozen=True)
class Requester:
    """The person who asks, and the chat. Ids are the platform's own, as text, and stay in memory."""

    platform: str
    user: str
    chat: str
    """Telegram: the chat. Discord: the server, or the private channel."""
    channel: str = ""
    """Telegram: ``chat/topic``, or empty. Discord: the channel or thread. Each channel has its own conversations."""
    roles: frozenset[str] = field(default_factory=frozenset)
    private: bool = False
    """Whether the chat is between this person and the bot only."""
    language: str | None = None
    """The platform's language tag for the person, such as ``zh-CN``."""
    parent_channel: str = ""
    """Discord: the channel that a thread belongs to. Lists that name the channel apply to its threads, too."""


class DenialReason(StrEnum):
    """Why a question isn't answered; the value is the name of its text."""

    NO_ACCESS = "refused.access"
    PRIVATE_CHAT = "refused.private"
    USER_PER_MINUTE = "refused.user_minute"
    CHAT_PER_MINUTE = "refused.chat_minute"
    USER_PER_DAY = "refused.user_day"
    CHAT_PER_DAY = "refused.chat_day"
    BUSY = "refused.busy"
    """The person's previous question is still being answered."""
    NOT_OWNER = "stopped.other"
    """The answer belongs to another person."""
    EXPIRED = "again.forgotten"
    """The question is no longer in memory."""


@dataclass(frozen=True)
class Denial:
    """A refused question, with the seconds until it may be asked again where a limit causes it."""

    reason: DenialReason
    wait_s: float | None = None


class AccessControl:
    """Checks people and chats against the current settings. ``clock`` returns seconds since the epoch."""

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
        self._file_version = self._read_file_version()
        self._clock = clock
        self._counting = asyncio.Lock()

    @property
    def limits(self) -> LimitSettings:
        """The current limits."""
        return self._limits

    def pseudonym(self, requester: Requester) -> str:
        """The person's pseudonym in logs and storage."""
        return self._pseudonyms.pseudonym(requester.platform, "user", requester.user)

    async def check(self, requester: Requester) -> Denial | None:
        """Check lists and limits; None if the person may ask now. Doesn't count the question.

        Raises:
            sqlite3.Error: the storage failed.
        """
        denial = self.check_lists(requester)
        if denial is not None or self.is_admin(requester):
            return denial
        return await self._check_limits(requester)

    async def admit(self, requester: Requester) -> Denial | int:
        """Count a question if lists and limits allow it; its number is what ``withdraw_question`` takes.

        Raises:
            sqlite3.Error: the storage failed.
        """
        async with self._counting:  # otherwise several questions could pass before the first one is counted
            return await self.check(requester) or await self.count_question(requester)

    def check_lists(self, requester: Requester) -> Denial | None:
        """Check the lists, regardless of limits."""
        self._reload()
        return None if self.is_admin(requester) else self._check_lists(requester)

    def is_allowed(self, requester: Requester) -> bool:
        """Whether the lists admit the person, regardless of limits."""
        return self.check_lists(requester) is None

    def is_admin(self, requester: Requester) -> bool:
        """Whether the person may stop and regenerate other people's answers, exempt from lists and limits."""
        return requester.user in self._access.admins

    async def count_question(self, requester: Requester) -> int:
        """Count a question, whether or not it is allowed; returns the number that ``withdraw_question`` takes."""
        return await self._storage.record_question(
            user=self.pseudonym(requester), chat=self._chat_pseudonym(requester), at=self._clock()
        )

    def withdraw_question(self, number: int) -> None:
        """Uncount a question that couldn't be answered."""
        self._storage.withdraw_question(number)

    def _check_lists(self, requester: Requester) -> Denial | None:
        if requester.private and not self._access.private_chats:
            return Denial(DenialReason.PRIVATE_CHAT)
        channels = {requester.channel, requester.parent_channel} - {""}
        deny = self._access.deny
        allow = self._access.allow
        if (
            requester.user in deny.users
            or requester.chat in deny.chats
            or not deny.roles.isdisjoint(requester.roles)
            or not deny.channels.isdisjoint(channels)
        ):
            return Denial(DenialReason.NO_ACCESS)
        person_allowed = (
            not (allow.users or allow.roles)
            or requester.user in allow.users
            or not allow.roles.isdisjoint(requester.roles)
        )
        place_allowed = (
            not (allow.chats or allow.channels)
            or requester.chat in allow.chats
            or not allow.channels.isdisjoint(channels)
            # A list of chats doesn't exclude the private chats of people listed by id.
            or (requester.private and requester.user in allow.users)
        )
        return None if person_allowed and place_allowed else Denial(DenialReason.NO_ACCESS)

    async def _check_limits(self, requester: Requester) -> Denial | None:
        now = self._clock()
        midnight = now - now % _DAY_S
        since = min(midnight, now - 60)
        user = await self._storage.user_times(self.pseudonym(requester), since)
        chat = await self._storage.chat_times(self._chat_pseudonym(requester), since)
        limits = self._limits
        for times, limit, reason in (
            (user, limits.user_per_day, DenialReason.USER_PER_DAY),
            (chat, limits.chat_per_day, DenialReason.CHAT_PER_DAY),
        ):
            if limit is not None and len([at for at in times if at >= midnight]) >= limit:
                return Denial(reason, midnight + _DAY_S - now)
        for times, limit, reason in (
            (user, limits.user_per_minute, DenialReason.USER_PER_MINUTE),
            (chat, limits.chat_per_minute, DenialReason.CHAT_PER_MINUTE),
        ):
            recent = [at for at in times if at > now - 60]
            if limit is not None and len(recent) >= limit:
                # The oldest of the last `limit` questions must be a minute old.
                return Denial(reason, recent[-limit] + 60 - now if limit else None)
        return None

    def _chat_pseudonym(self, requester: Requester) -> str:
        return self._pseudonyms.pseudonym(requester.platform, "chat", requester.chat)

    def _read_file_version(self) -> tuple[int, int] | None:
        try:
            stat = self._file.stat() if self._file else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size) if stat else None

    def _reload(self) -> None:
        version = self._read_file_version()
        if version is None or version == self._file_version:
            return
        self._file_version = version
        try:
            settings = read_bot_settings(self._file)
        except InvalidRequest as error:
            _log.error("Keeping the current access lists and limits. %s", error.message)
            return
        self._access = settings.access
        self._limits = settings.limits
        _log.info("Reloaded access lists and limits.")
