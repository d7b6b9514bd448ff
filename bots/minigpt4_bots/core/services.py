"""The parts that all answers of one bot share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4_bots.core.access import AccessControl, Requester
from minigpt4_bots.core.conversation import ConversationStore
from minigpt4_bots.core.privacy import Pseudonyms
from minigpt4_bots.core.prompt_builder import PromptBuilder
from minigpt4_bots.core.send_queue import Rate, SendQueue
from minigpt4_bots.core.settings import BotSettings
from minigpt4_bots.core.storage import Storage
from minigpt4_bots.core.texts import Texts, choose_language
from minigpt4_serve.client import ChatClient

__all__ = ["BotServices"]


@dataclass(frozen=True)
class BotServices:
    """One instance per bot process."""

    settings: BotSettings
    platform: str
    client: ChatClient
    conversations: ConversationStore
    access: AccessControl
    storage: Storage
    pseudonyms: Pseudonyms
    send_queue: SendQueue
    prompt_builder: PromptBuilder

    @classmethod
    def create(
        cls,
        settings: BotSettings,
        platform: str,
        *,
        file: Path | None,
        overall: Sequence[Rate],
        rates_for: Callable[[str], Sequence[Rate]],
    ) -> "BotServices":
        """Create all parts.

        Args:
            settings: of the bot.
            platform: ``discord`` or ``telegram``.
            file: the settings file, from which access lists are reloaded.
            overall: the platform's rate limits for the bot as a whole.
            rates_for: its rate limits by ``MessageTarget.rate_key``.

        Raises:
            InvalidRequest: the database or its key file can't be used.
        """
        storage = Storage(settings.database)
        pseudonyms = Pseudonyms.from_key_file(settings.database)
        server = settings.server
        client = ChatClient(
            server.base_url,
            server.api_key,
            model=server.model,
            timeout_s=server.timeout_s,
            patience_s=server.patience_s,
        )
        conversations = ConversationStore(
            lifetime_s=settings.pictures.lifetime_s, max_bytes=settings.pictures.memory_bytes
        )
        return cls(
            settings=settings,
            platform=platform,
            client=client,
            conversations=conversations,
            access=AccessControl(settings, storage, pseudonyms, file=file),
            storage=storage,
            pseudonyms=pseudonyms,
            send_queue=SendQueue(overall, rates_for),
            prompt_builder=PromptBuilder(
                settings, platform, client=client, conversations=conversations, pseudonyms=pseudonyms
            ),
        )

    def texts_for(self, requester: Requester) -> Texts:
        """The texts in the person's language."""
        return self.texts_in(requester.language)

    def texts_in(self, language: str | None) -> Texts:
        """The texts for a platform's language tag such as ``zh-CN``, as far as the settings allow a choice."""
        return Texts(choose_language(self.settings.language, language))
