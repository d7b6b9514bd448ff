"""OpenAI chat requests → prompts and sampling parameters, and the engine that answers them."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from minigpt4_serve.errors import ContextLengthExceeded, InvalidRequest
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.model_folder import GenerationDefaults
from minigpt4_serve.prompt.encoder import PromptEncoder
from minigpt4_serve.prompt.templates import Turn, truncate_history, truncation_points
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.engine_client import EngineClient
from minigpt4_serve.server.http.image_reader import ImageReader
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest
from minigpt4_serve.server.openai.turns import read_turns
from minigpt4_serve.settings import ServeSettings

__all__ = ["ChatService", "PreparedChat"]

_HEALTH_S = 1.0  # that a result of the health check serves everyone who asks
_DEFAULT_MAX_TOKENS = 300  # the original demo's answer length
_SAMPLING_PARAMS = [field.name for field in fields(SamplingParams)]


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
        encoder, defaults: of the model folder, see ``minigpt4_serve.model_folder``.
        engine: a running engine of the same model.
    """

    def __init__(
        self, encoder: PromptEncoder, defaults: GenerationDefaults, engine: EngineClient, settings: ServeSettings
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.names = settings.model_names
        self.context_length = engine.context_length  # a small KV cache may hold less than the model could read
        self.image_tokens = encoder.num_image_tokens
        self.writes_boxes = encoder.variant.writes_boxes
        self._encoder = encoder
        self._defaults = defaults
        self._images = ImageReader(settings)
        self._preparing = 0
        self._health: asyncio.Task[None] | None = None
        self._health_since = 0.0

    @property
    def name(self) -> str:
        """The model's first name."""
        return self.names[0]

    def serves(self, name: str) -> bool:
        """Whether requests may call the model so; by its folder's name, too, if the settings give it none."""
        return name in self.names or (not self.settings.model_name and name == self.settings.model.path.resolve().name)

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
        turns, references = read_turns(request.messages)
        if len(references) > self.settings.max_images_per_request:
            raise InvalidRequest(
                f"The chat holds {len(references)} pictures; at most {self.settings.max_images_per_request} are "
                "allowed.",
                param="messages",
            )
        await self.check_capacity()
        self._preparing += 1
        try:
            images = await self._images.read(references)
            images = [replace(image, digest=_salted(image.digest, cache_salt)) for image in images]
            return self.prepare_turns(turns, images, self.sampling(request), cache_salt=cache_salt)
        finally:
            self._preparing -= 1

    def prepare_turns(
        self, turns: Sequence[Turn], images: Sequence[EncodedImage], sampling: SamplingParams, *, cache_salt: str = ""
    ) -> PreparedChat:
        """Turns and their validated images, in reading order, as a prompt that leaves room for the answer.

        At most a quarter of the context is reserved for the answer.

        Raises:
            ContextLengthExceeded: the last question alone is too long.
        """
        room = min(sampling.max_tokens, self.context_length // 4)
        turns, dropped = self._shorten(turns)
        try:
            encoded = self._encoder.encode_chat(turns, max_tokens=self.context_length - room)
        except ContextLengthExceeded as error:
            error.reword(
                f"{error.message} Question and answer share a context of {self.context_length} tokens, of which {room} "
                "are reserved for the answer."
            )
            raise
        prompt = Prompt(tuple(encoded.token_ids), tuple(images), cache_salt)
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
        """The request's parameters over the model's generation defaults; greedy if neither says how to sample.

        Those of the request are its attributes with the names of ``SamplingParams``.
        """
        defaults = self._defaults
        values: dict[str, Any] = {
            "max_tokens": defaults.max_new_tokens or _DEFAULT_MAX_TOKENS,
            "top_p": defaults.top_p or 1.0,
            "top_k": defaults.top_k or 0,
            "repetition_penalty": defaults.repetition_penalty or 1.0,
        }
        if defaults.do_sample and request.beams == 1:
            values["temperature"] = 1.0 if defaults.temperature is None else defaults.temperature
        given = {name: getattr(request, name, None) for name in _SAMPLING_PARAMS}
        values |= {name: value for name, value in given.items() if value is not None}
        if request.max_completion_tokens is not None:
            values["max_tokens"] = request.max_completion_tokens
        # The template's separator is this family's end of sequence. The schema determines where JSON ends; there the
        # separator ends the string that is open.
        stops = () if request.ignore_eos else self._encoder.template.stop
        free = request.json_schema is None
        values["stop"] = (*request.stop, *(stops if free else ()))
        values["json_stop"] = () if free else stops
        return SamplingParams(**values)

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


def _salted(digest: str, salt: str) -> str:
    """The digest that an image is cached under: without the salt no one can find it there."""
    return hashlib.sha256(f"{salt} {digest}".encode()).hexdigest() if salt else digest
