"""A question becomes a conversation: its pictures are downloaded and checked, messages above it come into memory.

Knows memory and the server's limits; nothing of the answer, of messages that are written, or of a platform.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from minigpt4_bots.core.conversation import Memory, MessageKey, Turn
from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.question import Attachment, NotFetched, Question, Quoted, TooLarge
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.texts import Texts
from minigpt4_serve.client.chat_client import ChatClient
from minigpt4_serve.errors import InvalidImage, PayloadTooLarge
from minigpt4_serve.images import EncodedImage, ImageLimits, validate_image

__all__ = ["Collected", "Collector"]

_MOST_ATTACHMENTS = 10
"""Files of one message that are looked at; what both platforms let people send at once."""


@dataclass
class Collected:
    """What the model will be asked, and what is said below the answer."""

    turns: list[Turn]
    notes: list[str] = field(default_factory=list)
    was_forgotten: bool = False


class _Loader:
    """Downloads and looks at files, and keeps count of what can't be used."""

    def __init__(self, most: int, max_bytes: int) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._refused: Counter[str] = Counter()
        self._kept = self._sent = 0

    async def load(self, attachments: Sequence[Attachment]) -> tuple[EncodedImage, ...]:
        """The pictures among a message's files, each once, as many as a request may have."""
        results = await asyncio.gather(*(self._load_one(file) for file in attachments[:_MOST_ATTACHMENTS]))
        pictures = tuple({one.digest: one for one in results if isinstance(one, EncodedImage)}.values())
        self._refused.update(one for one in results if isinstance(one, str))
        kept = pictures[: self._most]
        self._kept += len(kept)
        self._sent += len(pictures) + len(attachments[_MOST_ATTACHMENTS:])
        return kept

    def notes(self, texts: Texts) -> list[str]:
        """What is to be said about the files that were left out."""
        notes: list[str] = []
        if self._sent > self._kept:
            notes.append(texts("left_out.too_many", kept=self._kept, sent=self._sent))
        for reason in ("too_large", "not_a_picture", "moving", "not_fetched"):
            if count := self._refused[reason]:
                notes.append(texts(f"left_out.{reason}", n=count, limit=texts.megabytes(self._max_bytes)))
        return notes

    async def _load_one(self, file: Attachment) -> EncodedImage | str:
        """The picture, or why not, by the name of its sentence."""
        if file.unusable is not None:
            return file.unusable
        if file.size is not None and file.size > self._max_bytes:
            return "too_large"
        try:
            return validate_image(await file.load(self._max_bytes), ImageLimits(max_bytes=self._max_bytes))
        except (TooLarge, PayloadTooLarge):
            return "too_large"
        except InvalidImage:
            return "not_a_picture"
        except NotFetched:
            return "not_fetched"


class Collector:
    """Brings together what the model will be asked.

    Args:
        platform: by whose name people's ids are hashed.
    """

    def __init__(
        self, settings: BotSettings, platform: str, *, server: ChatClient, memory: Memory, pseudonyms: Pseudonyms
    ) -> None:
        self._settings = settings
        self._platform = platform
        self._server = server
        self._memory = memory
        self._pseudonyms = pseudonyms

    async def most_pictures(self) -> int:
        """Pictures of one conversation, as we and the server allow."""
        card, ours = await self._server.card(), self._settings.pictures.max_count
        return min(ours, card.max_images or ours)

    async def collect(self, question: Question, owner: str, texts: Texts) -> Collected:
        """The question's own turn with its pictures, below the conversation it goes on."""
        card = await self._server.card()
        pictures_allowed = self._settings.pictures
        max_bytes = min(pictures_allowed.max_bytes, card.max_image_bytes or pictures_allowed.max_bytes)
        loader = _Loader(await self.most_pictures(), max_bytes)
        was_forgotten = False
        if question.fetch is not None:
            was_forgotten = await self._fetch_chain(question, question.fetch, owner, loader)
        chain = self.known_chain(question.parent)
        known = self._memory.get(question.key)
        pictures = await loader.load(question.attachments)
        if question.keeps_pictures and known is not None:
            pictures = known.pictures
        shown = chain[-1] if chain and chain[-1].role == "user" else None  # a picture that is asked about by a reply
        words = question.text or (shown.text if shown else "")
        if not words:
            count = len(pictures) + (len(shown.pictures) if shown else 0)
            default = texts("question.default_many" if count > 1 else "question.default")
            words = self._settings.answers.question or default
        turn = Turn(
            role="user",
            text=words,
            pictures=pictures,
            owner=owner,
            parent=question.parent,
            spoiler=any(file.spoiler for file in question.attachments),
            # Where the answer stands, if this is asked again.
            answers=known.answers if known else (),
        )
        return Collected([*chain, turn], loader.notes(texts), was_forgotten)

    async def _fetch_chain(
        self,
        question: Question,
        fetch: Callable[[MessageKey], Awaitable[Quoted | None]],
        owner: str,
        loader: _Loader,
    ) -> bool:
        """Bring messages above the question that aren't in memory into it; True if an answer's question is lost."""
        key, seen = question.parent, set[MessageKey]()
        last: Quoted | None = None
        fetched = 0  # only these cost the platform anything
        while key is not None and key not in seen and fetched < self._settings.answers.max_turns:
            seen.add(key)
            if (turn := self._memory.get(key)) is not None:
                key, last = turn.parent, None
                continue
            if (found := await fetch(key)) is None:
                break
            last = found
            fetched += 1
            turn = Turn(
                role=found.role,
                text=found.text,
                pictures=await loader.load(found.attachments) if found.role == "user" else (),
                owner=owner,
                parent=found.parent,
                spoiler=any(file.spoiler for file in found.attachments),
                authors=frozenset({self._pseudonyms.of(self._platform, "user", found.author)} if found.author else ()),
            )
            self._memory.put(key, turn)
            key = found.parent
        return last is not None and last.role == "assistant"

    def known_chain(self, key: MessageKey | None) -> list[Turn]:
        """All turns from a message upwards that are in memory, oldest first; answers without words are left out.

        However many they are: the picture that all of them are about hangs on the oldest.
        """
        turns: list[Turn] = []
        seen: set[MessageKey] = set()
        while key is not None and key not in seen:
            seen.add(key)
            if (turn := self._memory.get(key)) is None:
                break
            if turn.role == "user" or turn.text:
                turns.append(turn)
            key = turn.parent
        turns.reverse()
        return turns
