"""Questions about images: a small layer over ``ChatClient`` that builds the message and caches answers."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from pydantic import SecretStr

from minigpt4_serve.client.address import server_address, server_key
from minigpt4_serve.client.answers import AnswerCache, Progress, VisionAnswer, make_answer
from minigpt4_serve.client.chat_client import ChatClient
from minigpt4_serve.client.events import Completed, Queued, Retrying, TextDelta
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.images import EncodedImage, image_url_part, run_image_work

__all__ = ["DEFAULT_QUESTION", "VisionClient"]

DEFAULT_QUESTION = "Describe this picture in detail."

_MAX_QUESTION_CHARS = 4000


class VisionClient:
    """One vision model behind an OpenAI-compatible API.

    Each question has a connection of its own, closed with the answer: the client works in any event loop and thread and
    needs no closing. Leaving an answer early aborts it at the server.

    Args:
        base_url: usually ends in ``/v1``; ``MINIGPT4_BASE_URL`` or this machine's port 8000 if not given.
        api_key: ``MINIGPT4_API_KEY`` if not given; servers without keys need none.
        model: the only model that the server lists if not given.
        timeout_s: longest silence of the server, in seconds.
        max_wait_s: all waits for a busy server within one question, in seconds.
        temperature: None for the server's default.
        max_tokens: longest answer in tokens; None for the server's default.
        max_chars: longest answer in characters; reading stops there.
        cache_size: number of answers that are kept.

    Raises:
        InvalidRequest: ``base_url`` isn't an address.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: SecretStr | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 60.0,
        max_wait_s: float = 10.0,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        max_chars: int = 4000,
        cache_size: int = 128,
    ) -> None:
        options = {"temperature": temperature, "max_tokens": max_tokens}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._chat = ChatClient(
            server_address(base_url),
            server_key(api_key),
            model=model,
            timeout_s=timeout_s,
            patience_s=max_wait_s,
            optional=self._options.keys(),
            keep_connections=False,
        )
        self._max_chars = max_chars
        self._cache = AnswerCache(cache_size)

    @property
    def base_url(self) -> str:
        """The server's address, with its path."""
        return self._chat.base_url

    async def ask(self, question: str, pictures: Sequence[EncodedImage]) -> VisionAnswer:
        """The answer.

        Raises:
            MiniGPT4Error: as ``stream``.
        """
        async with aclosing(self.stream(question, pictures)) as events:
            async for event in events:
                if isinstance(event, VisionAnswer):
                    return event
        raise AssertionError("a stream ends with its answer or an error")

    async def stream(self, question: str, pictures: Sequence[EncodedImage]) -> AsyncGenerator[Progress | VisionAnswer]:
        """Progress, and at last the whole answer.

        Raises:
            InvalidRequest: the question is empty or longer than 4000 characters, no picture is given, the server
                refused the request, or the answer has no text.
            MiniGPT4Error: any other failure, as ``ChatClient.answer``.
        """
        question = question.strip()
        if not question:
            raise InvalidRequest("The question is empty. Ask something about the picture.")
        if len(question) > _MAX_QUESTION_CHARS:
            raise InvalidRequest(f"The question has more than {_MAX_QUESTION_CHARS} characters; ask a shorter one.")
        if not pictures:
            raise InvalidRequest("No picture is given. Name at least one.")
        digests = tuple(picture.digest for picture in pictures)
        if cached := self._cache.get((digests, question, self._chat.model)):
            yield cached
            return
        parts = [await run_image_work(partial(image_url_part, picture.data)) for picture in pictures]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        # The notation of boxes and invisible characters are removed later: more is read than is kept.
        room = 2 * self._max_chars
        text = ""
        end: Completed | None = None
        async with aclosing(self._chat.answer(messages, **self._options)) as events:
            async for event in events:
                match event:
                    case Queued(ahead, expected_s):
                        yield Progress(ahead=ahead, wait_s=expected_s)
                    case Retrying(retry_in_s):
                        yield Progress(wait_s=retry_in_s)
                    case TextDelta(delta):
                        within = delta[: room - len(text)]
                        text += within
                        if within:
                            yield Progress(text=within)
                        if within != delta:
                            break
                    case Completed():
                        end = event
        answer = make_answer(text, end, self._chat.model or "", digests, max_chars=self._max_chars)
        self._cache.put((digests, question, answer.model), answer)
        yield answer
