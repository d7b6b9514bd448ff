"""What Telegram's refusals mean for an answer, without a Telegram."""

from typing import Any, cast

import pytest
from minigpt4_bots.streaming import ChatGone, Content, TryLater
from minigpt4_bots.telegram_outlets import ChatOutlet, Spot
from minigpt4_bots.texts import Texts
from telegram import Bot
from telegram.error import (
    BadRequest,
    Conflict,
    Forbidden,
    InvalidToken,
    NetworkError,
    TelegramError,
    TimedOut,
)


class Refusing:
    """A bot whose drafts meet one error."""

    def __init__(self, error: TelegramError) -> None:
        self.error = error

    async def send_message_draft(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "previews", "knows_drafts"),
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
    error: TelegramError, raised: type[Exception] | None, previews: bool, knows_drafts: bool
) -> None:
    bot = cast(Bot, Refusing(error))
    outlet = ChatOutlet(bot, Spot(1), Texts(), previews=True, draft_id=1)
    if raised is None:
        await outlet.preview(Content("Growing"))
    else:
        with pytest.raises(raised):
            await outlet.preview(Content("Growing"))
    assert (outlet.previews, outlet.knows_drafts) == (previews, knows_drafts)
