"""The effects of Telegram's errors on an answer, without a server."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.streaming import ChatGone, Content, MessageGone, TryLater
from minigpt4_bots.core.texts import Texts
from minigpt4_bots.telegram.targets import ChatTarget, MessageLocation
from telegram import Bot, ReplyParameters
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    Forbidden,
    InvalidToken,
    NetworkError,
    TelegramError,
    TimedOut,
)


class Group:
    """A bot in a group that became a supergroup, whose old id is refused.

    Attributes:
        sent: chat, topic and the message replied to, of each message.
    """

    def __init__(self, old: int, new: int) -> None:
        self.old = old
        self.new = new
        self.sent: list[tuple[int, int | None, int | None]] = []

    async def send_message(
        self, chat: int, *, message_thread_id: int | None, reply_parameters: ReplyParameters | None, **_: Any
    ) -> SimpleNamespace:
        if chat == self.old:
            raise ChatMigrated(self.new)
        self.sent.append((chat, message_thread_id, reply_parameters and reply_parameters.message_id))
        return SimpleNamespace(message_id=len(self.sent))

    async def edit_message_text(self, *, chat_id: int, **_: Any) -> None:
        if chat_id == self.old:
            raise ChatMigrated(self.new)


async def test_an_upgraded_group_is_written_to_by_its_new_id() -> None:
    bot = Group(-5, -1005)
    target = ChatTarget(cast(Bot, bot), MessageLocation(-5, topic=7, reply_to=3), Texts(), previews=False, draft_id=1)
    with pytest.raises(TryLater) as later:
        await target.send(Content("The answer"))
    assert later.value.seconds == 0
    assert bot.sent == []
    message = await target.send(Content("The answer"))
    assert bot.sent == [(-1005, 7, None)], "in its topic; the message it replied to has another id there"
    assert target.key_for(message) == MessageKey("-1005", message), "replies to it come from the new id"


async def test_a_message_in_an_upgraded_group_is_sent_again() -> None:
    target = ChatTarget(cast(Bot, Group(-5, -1005)), MessageLocation(-5), Texts(), previews=False, draft_id=1)
    with pytest.raises(MessageGone) as gone:
        await target.edit("1", Content("The answer"))
    assert gone.value.remains


class Refusing:
    """A bot whose drafts fail with one error."""

    def __init__(self, error: TelegramError) -> None:
        self.error = error

    async def send_message_draft(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "previews", "supports_drafts"),
    [
        (InvalidToken("Not Found"), None, False, False),
        (BadRequest("PEER_ID_INVALID"), None, False, True),
        (Forbidden("bot was blocked by the user"), ChatGone, True, True),
        (TimedOut(), None, True, True),
        (NetworkError("Bad Gateway"), TryLater, True, True),
        (Conflict("two of us"), TryLater, True, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TelegramError) else None,
)
async def test_only_a_server_without_drafts_is_remembered(
    error: TelegramError, raised: type[Exception] | None, previews: bool, supports_drafts: bool
) -> None:
    bot = cast(Bot, Refusing(error))
    target = ChatTarget(bot, MessageLocation(1), Texts(), previews=True, draft_id=1)
    if raised is None:
        await target.preview(Content("Growing"))
    else:
        with pytest.raises(raised):
            await target.preview(Content("Growing"))
    assert (target.previews, target.supports_drafts) == (previews, supports_drafts)
