"""A chat in memory, for tests of the bots' core."""

import asyncio
from dataclasses import dataclass, field

from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.markup import safe_markdown, utf16_length
from minigpt4_bots.core.streaming import ChatGone, Content, MessageGone


@dataclass
class MemoryTarget:
    """A chat in memory, with one ``MessageTarget`` for all its people."""

    shown: dict[str, Content] = field(default_factory=dict)
    limit: int = 500
    previews: bool = False
    rate_key: str = "chat"
    sent: int = 0
    is_gone: bool = False
    ids_arrive: asyncio.Event | None = None
    """Until it is set, sent messages are visible, but ``send`` doesn't return their ids."""

    def measure(self, text: str, spoiler: bool) -> int:
        return utf16_length(safe_markdown(text, spoiler=spoiler))

    def key_for(self, message: str) -> MessageKey:
        return MessageKey("chat", message)

    async def send(self, content: Content) -> str:
        if self.is_gone:
            raise ChatGone
        self.sent += 1
        message = f"b{self.sent}"
        self.shown[message] = content
        if self.ids_arrive is not None:
            await self.ids_arrive.wait()
        return message

    async def edit(self, message: str, content: Content) -> None:
        if message not in self.shown:
            raise MessageGone
        self.shown[message] = content

    async def delete(self, message: str) -> None:
        del self.shown[message]

    async def preview(self, content: Content) -> None:
        raise AssertionError("not asked for")

    @property
    def texts(self) -> list[str]:
        return [content.text for content in self.shown.values()]
