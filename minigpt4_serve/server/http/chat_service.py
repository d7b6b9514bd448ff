"""OpenAI chat requests → prompts and sampling parameters, and the engine that answers them."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minigpt4_serve.errors import ContextLengthExceeded, InvalidRequest
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.model_folder import GenerationDefaults
from minigpt4_serve.prompt.encoder import PromptEncoder
from minigpt4_serve.prompt.templates import Turn, truncate_history, truncation_points
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.engine_client import EngineClient
from minigpt4_serve.server.http.image_reader import ImageReader
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest, ImagePart
from minigpt4_serve.settings import ServeSettings

__all__ = ["ChatService", "PreparedChat"]

_HEALTH_S = 1.0  # that a result of the health check serves everyone who asks
_DEFAULT_MAX_TOKENS = 300  # the original demo's answer length


@dataclass(frozen=True)
class PreparedChat:
    """A request as the engine takes it.

    Attributes:
        dropped_messages: messages whose text was dropped because the chat is longer than the model's context.
    """

    prompt: Prompt
    sampling: SamplingParams
    dropped_messages: int


class ChatService:
    """One model as a chat, for HTTP routes and the command line.

    Args:
        encoder, defaults: of the model folder, see ``server.model_folder``.
        engine: a running engine of the same model.
    """

    def __init__(
        self, encoder: PromptEncoder, defaults: GenerationDefaults, engine: EngineClient, settings: ServeSettings
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.name = settings.model_name or settings.model.path.resolve().name
        self.context_length = engine.context_length  # a small KV cache may hold less than the model could read
        self.image_tokens = encoder.num_image_tokens
        self.writes_boxes = encoder.variant.writes_boxes
        self._encoder = encoder
        self._defaults = defaults
        self._images = ImageReader(settings)
        self._preparing = 0
        self._health: asyncio.Task[None] | None = None
        self._health_since = 0.0

    async def check_capacity(self) -> None:
        """Raise ``Overloaded`` if a new request is certain to be refused, before any work is done for it."""
        await self.engine.check_capacity(self._preparing)

    async def prepare(self, request: ChatCompletionRequest, *, cache_salt: str = "") -> PreparedChat:
        """Validate the images, apply the model's template, fit the context.

        Args:
            cache_salt: requests share cached images and prompts only with those of the same salt.

        Raises:
            InvalidRequest, InvalidImage, PayloadTooLarge, ContextLengthExceeded: ``param`` names the field at fault.
            Overloaded: requests that run, wait or are being prepared fill the engine and its queue.
        """
        turns, references = self._read_messages(request)
        await self.check_capacity()
        self._preparing += 1
        try:
            images = await self._images.read(references)
            images = [replace(image, digest=_salted(image.digest, cache_salt)) for image in images]
            chat = self.prepare_turns(turns, images, self.sampling(request))
            return replace(chat, prompt=replace(chat.prompt, cache_salt=cache_salt))
        finally:
            self._preparing -= 1

    def prepare_turns(
        self, turns: Sequence[Turn], images: Sequence[EncodedImage], sampling: SamplingParams
    ) -> PreparedChat:
        """Turns and their validated images, in reading order, as a prompt that leaves room for the answer.

        At most a quarter of the context is reserved for the answer.

        Raises:
            ContextLengthExceeded: the last question alone is too long.
        """
        room = min(sampling.max_tokens, self.context_length // 4)
        turns, dropped = self._shorten(turns)
        encoded = self._encoder.encode_chat(turns, max_tokens=self.context_length - room)
        prompt = Prompt(tuple(encoded.token_ids), tuple(images))
        return PreparedChat(prompt, sampling, dropped + encoded.dropped_messages)

    def _shorten(self, turns: Sequence[Turn]) -> tuple[list[Turn], int]:
        """Drop text that can't fit before it is tokenized: megabytes of text would take minutes."""
        most = self.context_length * self._encoder.tokenizer.longest_piece
        size = sum(len(turn.text) for turn in turns)
        if size <= most:
            return list(turns), 0
        begin = int(turns[0].role == "system")
        for end in truncation_points(turns):
            size -= sum(len(turn.text) for turn in turns[begin:end])
            begin = end
            if size <= most:
                return truncate_history(turns, end)
        raise ContextLengthExceeded(
            f"The question has {size} characters; the model reads at most {self.context_length} tokens.",
            param="messages",
        )

    def sampling(self, request: ChatCompletionRequest) -> SamplingParams:
        """The request's parameters over the model's generation defaults; greedy if neither says how to sample."""
        defaults = self._defaults
        temperature = 0.0
        if request.temperature is not None:
            temperature = request.temperature
        elif defaults.do_sample and request.beams == 1:
            temperature = 1.0 if defaults.temperature is None else defaults.temperature
        # A JSON string may contain the template's separator; the schema determines where the answer ends.
        template_stops = self._encoder.template.stop if request.json_schema is None else ()
        return SamplingParams(
            max_tokens=request.max_completion_tokens
            or request.max_tokens
            or defaults.max_new_tokens
            or _DEFAULT_MAX_TOKENS,
            min_tokens=request.min_tokens or 0,
            temperature=temperature,
            top_p=(defaults.top_p or 1.0) if request.top_p is None else request.top_p,
            top_k=(defaults.top_k or 0) if request.top_k is None else request.top_k,
            min_p=request.min_p or 0.0,
            repetition_penalty=request.repetition_penalty or defaults.repetition_penalty or 1.0,
            seed=request.seed,
            stop=(*request.stop, *template_stops),
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs or 0,
            n=request.n,
            beams=request.beams,
            length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
            json_schema=request.json_schema,
        )

    def stream(self, chat: PreparedChat, *, request_id: str, whole: bool = False) -> AsyncGenerator[Delta]:
        """The deltas of the answer; closing the generator aborts the request in the engine.

        Args:
            whole: see ``EngineClient.generate``.
        """
        return self.engine.generate(chat.prompt, chat.sampling, request_id=request_id, whole=whole)

    async def replicas(self) -> list[dict[str, Any]]:
        """See ``EngineClient.replicas``."""
        return await self.engine.replicas()

    async def check_health(self) -> None:
        """Raise ``EngineFailed`` unless the engine answers, or answered within the last second."""
        now = asyncio.get_running_loop().time()
        if self._health is None or (self._health.done() and now - self._health_since > _HEALTH_S):
            self._health = asyncio.create_task(self.engine.check_health())
            self._health.add_done_callback(lambda task: task.cancelled() or task.exception())  # who asked may be gone
            self._health_since = now
        await asyncio.shield(self._health)

    async def warm_up(self) -> None:
        """Generate one short answer, so that the first request doesn't pay for lazy initialization."""
        sampling = SamplingParams(max_tokens=2, temperature=0.0)
        async for _ in self.stream(self.prepare_turns([Turn("user", "Hello")], [], sampling), request_id="warm-up"):
            pass

    def _read_messages(self, request: ChatCompletionRequest) -> tuple[list[Turn], list[tuple[str, str]]]:
        turns: list[Turn] = []
        references: list[tuple[str, str]] = []  # (URL, name of the field)
        for i, message in enumerate(request.messages):
            role = "system" if message.role == "developer" else message.role
            texts: list[str] = []
            num_images = 0
            for j, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    num_images += 1
                    references.append((part.image_url.url, f"messages[{i}].content[{j}].image_url"))
                else:
                    texts.append(part.text)
            if num_images and role != "user":
                raise InvalidRequest("Only user messages can hold pictures.", param=f"messages[{i}].content")
            turns.append(Turn(role, "\n".join(texts), num_images))
        if turns[-1].role != "user" or not (turns[-1].text.strip() or turns[-1].images):
            raise InvalidRequest("The last message must be a user's question.", param="messages")
        if len(references) > self.settings.max_images_per_request:
            raise InvalidRequest(
                f"The chat holds {len(references)} pictures; at most {self.settings.max_images_per_request} are "
                "allowed.",
                param="messages",
            )
        return turns, references


def _salted(digest: str, salt: str) -> str:
    """The digest that an image is cached under: without the salt no one can find it there."""
    return hashlib.sha256(f"{salt} {digest}".encode()).hexdigest() if salt else digest
