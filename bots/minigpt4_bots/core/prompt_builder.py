"""Builds the prompt for a question: downloads and validates its images, and loads the messages it replies to."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from openai.types.chat import ChatCompletionMessageParam

from minigpt4_bots.core.conversation import (
    ConversationStore,
    MessageKey,
    Turn,
    limit_images,
    limit_turns,
    merge_turns,
    to_messages,
)
from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.question import Attachment, DownloadFailed, FileTooLarge, Question, QuotedMessage, Unusable
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.texts import Texts
from minigpt4_serve.client import ChatClient
from minigpt4_serve.errors import InvalidImage, Overloaded, PayloadTooLarge
from minigpt4_serve.images import IMAGE_FORMATS, EncodedImage, ImageLimits, run_image_work, to_portable, validate_image

__all__ = ["BuiltPrompt", "PromptBuilder"]

_MAX_ATTACHMENTS = 10
"""Files used per message; both platforms let people send that many at once."""
_FORMATS = ", ".join(one.name for one in IMAGE_FORMATS)


@dataclass
class BuiltPrompt:
    """The turns for the model, oldest first, and the notes that go below the answer."""

    turns: list[Turn]
    notes: list[str] = field(default_factory=list)
    history_expired: bool = False
    """The question replies to an answer whose own question is neither in memory nor on the platform."""

    @property
    def has_images(self) -> bool:
        """Whether any turn has an image."""
        return any(turn.images for turn in self.turns)


class _ImageLoader:
    """Downloads and validates files, and counts the unusable ones."""

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._limits = ImageLimits(max_bytes=max_bytes)
        self._unusable: Counter[Unusable] = Counter()
        self._kept = 0
        self._sent = 0

    async def load(self, attachments: Sequence[Attachment]) -> tuple[EncodedImage, ...]:
        """The distinct images among a message's files, as many as a request may have."""
        results = await asyncio.gather(*(self._load_one(file) for file in attachments[:_MAX_ATTACHMENTS]))
        images = tuple({one.digest: one for one in results if isinstance(one, EncodedImage)}.values())
        self._unusable.update(one for one in results if isinstance(one, Unusable))
        kept = images[: self._max_images]
        self._kept += len(kept)
        self._sent += len(images) + len(attachments[_MAX_ATTACHMENTS:])
        return kept

    def notes(self, texts: Texts) -> list[str]:
        """What was left out and why, in the requester's language."""
        notes: list[str] = []
        if self._sent > self._kept:
            notes.append(texts("left_out.too_many", kept=self._kept, sent=self._sent))
        for reason in (Unusable.TOO_LARGE, Unusable.NOT_AN_IMAGE, Unusable.MOVING, Unusable.NOT_DOWNLOADED):
            if count := self._unusable[reason]:
                limit = texts.megabytes(self._max_bytes)
                notes.append(texts(f"left_out.{reason}", n=count, limit=limit, formats=_FORMATS))
        return notes

    async def _load_one(self, file: Attachment) -> EncodedImage | Unusable:
        if file.unusable is not None:
            return file.unusable
        if file.size is not None and file.size > self._max_bytes:
            return Unusable.TOO_LARGE
        try:
            data = await file.load(self._max_bytes)
            return await run_image_work(lambda: to_portable(validate_image(data, self._limits)))
        except (FileTooLarge, PayloadTooLarge):
            return Unusable.TOO_LARGE
        except (InvalidImage, Overloaded):
            return Unusable.NOT_AN_IMAGE
        except DownloadFailed:
            return Unusable.NOT_DOWNLOADED


class PromptBuilder:
    """Builds prompts within the limits of the settings and of the server."""

    def __init__(
        self,
        settings: BotSettings,
        platform: str,
        *,
        client: ChatClient,
        conversations: ConversationStore,
        pseudonyms: Pseudonyms,
    ) -> None:
        self._settings = settings
        self._platform = platform
        self._client = client
        self._conversations = conversations
        self._pseudonyms = pseudonyms

    async def build(self, question: Question, owner: str, texts: Texts) -> BuiltPrompt:
        """The question's turn with its images, after the conversation it continues. ``owner`` is a pseudonym."""
        card = await self._client.card()
        image_settings = self._settings.pictures
        max_bytes = min(image_settings.max_bytes, card.max_image_bytes or image_settings.max_bytes)
        loader = _ImageLoader(await self._max_images(), max_bytes)
        history_expired = False
        if question.fetch is not None:
            history_expired = await self._fetch_chain(question, question.fetch, owner, loader)
        chain = self._stored_chain(question.parent)
        stored = self._conversations.get(question.key)
        images = await loader.load(question.attachments)
        if question.keeps_images and stored is not None:
            images = stored.images
        turn = Turn(
            role="user",
            text=question.text or self._default_text(chain, len(images), texts),
            images=images,
            owner=owner,
            parent=question.parent,
            spoiler=any(file.spoiler for file in question.attachments),
            # The messages that a new answer to this question replaces.
            answers=stored.answers if stored else (),
        )
        return BuiltPrompt([*chain, turn], loader.notes(texts), history_expired)

    def rebuild(self, asked: Turn) -> BuiltPrompt:
        """The prompt of a question that was asked before, from memory."""
        return BuiltPrompt([*self._stored_chain(asked.parent), asked])

    async def to_messages(
        self, prompt: BuiltPrompt, texts: Texts
    ) -> tuple[list[ChatCompletionMessageParam], list[str]]:
        """OpenAI's messages for the prompt, and the notes that go below the answer."""
        max_images = await self._max_images()
        turns, left_out = limit_images(merge_turns(prompt.turns), max_images)
        notes = list(prompt.notes)
        if left_out:
            notes.append(texts("left_out.older", most=max_images))
        answers = self._settings.answers
        turns = limit_turns(turns, answers.max_turns + 1)  # the limit excludes the question itself
        return to_messages(turns, answers.system_prompt), notes

    async def _max_images(self) -> int:
        card = await self._client.card()
        limit = self._settings.pictures.max_count
        return min(limit, card.max_images or limit)

    def _default_text(self, chain: Sequence[Turn], images: int, texts: Texts) -> str:
        # A reply without text to another person's message asks what that message asks.
        quoted = chain[-1] if chain and chain[-1].role == "user" else None
        if quoted is not None and quoted.text:
            return quoted.text
        count = images + (len(quoted.images) if quoted else 0)
        default = texts("question.default_many" if count > 1 else "question.default")
        return self._settings.answers.question or default

    async def _fetch_chain(
        self,
        question: Question,
        fetch: Callable[[MessageKey], Awaitable[QuotedMessage | None]],
        owner: str,
        loader: _ImageLoader,
    ) -> bool:
        """Store the messages above the question that aren't in memory; True if an answer's question is missing."""
        key = question.parent
        visited: set[MessageKey] = set()
        last: QuotedMessage | None = None
        fetched = 0  # only fetching costs the platform's rate limits
        while key is not None and key not in visited and fetched < self._settings.answers.max_turns:
            visited.add(key)
            if (turn := self._conversations.get(key)) is not None:
                key = turn.parent
                last = None
                continue
            if (found := await fetch(key)) is None:
                break
            last = found
            fetched += 1
            turn = Turn(
                role=found.role,
                text=found.text,
                images=await loader.load(found.attachments) if found.role == "user" else (),
                owner=owner,
                parent=found.parent,
                spoiler=any(file.spoiler for file in found.attachments),
                authors=self._author_pseudonyms(found),
            )
            self._conversations.put(key, turn)
            key = found.parent
        return last is not None and last.role == "assistant"

    def _author_pseudonyms(self, message: QuotedMessage) -> frozenset[str]:
        if not message.author:
            return frozenset()
        return frozenset({self._pseudonyms.pseudonym(self._platform, "user", message.author)})

    def _stored_chain(self, key: MessageKey | None) -> list[Turn]:
        """The turns in memory from a message upward, oldest first, without answers that have no text.

        The chain has no length limit: the image that all of it is about belongs to the oldest turn.
        """
        turns: list[Turn] = []
        visited: set[MessageKey] = set()
        while key is not None and key not in visited:
            visited.add(key)
            if (turn := self._conversations.get(key)) is None:
                break
            if turn.role == "user" or turn.text:
                turns.append(turn)
            key = turn.parent
        turns.reverse()
        return turns
