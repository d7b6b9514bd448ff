"""From an OpenAI chat request to a prompt for the engine. Knows wire types, model and engine; no HTTP and no Ray."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from transformers import GenerationConfig

from minigpt4_serve.engine import Engine
from minigpt4_serve.errors import ContextLengthExceeded, InvalidRequest
from minigpt4_serve.images import EncodedImage
from minigpt4_serve.model import MiniGPT4Processor, Turn
from minigpt4_serve.prompt.templates import truncate_history, truncation_points
from minigpt4_serve.protocol import Delta, Prompt, SamplingParams
from minigpt4_serve.server.http.image_reader import ImageReader
from minigpt4_serve.server.http.request_context import note_answer
from minigpt4_serve.server.openai.chat_request import ChatCompletionRequest, ImagePart
from minigpt4_serve.settings import ServeSettings

__all__ = ["ChatService", "PreparedChat", "Remote"]

_DEFAULT_MAX_TOKENS = 300  # the original demo's answer length


@dataclass(frozen=True)
class PreparedChat:
    """A request that the engine can take.

    Attributes:
        dropped_messages: messages whose text was forgotten because the chat is longer than the model's context.
    """

    prompt: Prompt
    sampling: SamplingParams
    dropped_messages: int


class Remote(Protocol):
    """An engine in another process."""

    context_length: int

    def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncIterator[Delta]:
        """As ``Engine.generate``."""

    async def check_health(self) -> None:
        """As ``Engine.check_health``."""

    def check_capacity(self, ahead: int = 0) -> None:
        """As ``Engine.check_capacity``, as far as it is known here."""

    def replicas(self) -> list[dict[str, Any]]:
        """What is known of each engine; see ``ChatService.replicas``."""


class ChatService:
    """One model as a chat: what HTTP routes and the command line share.

    Args:
        processor, rules: as ``weights.load_processor`` gives them.
        engine: running, here or elsewhere, on the same model.
    """

    def __init__(
        self,
        processor: MiniGPT4Processor,
        rules: GenerationConfig,
        engine: Engine | Remote,
        settings: ServeSettings,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.name = settings.model_name or settings.model.path.resolve().name
        self.context_length = engine.context_length  # a small KV cache may hold less than the model could read
        self.image_tokens = processor.num_image_tokens
        self.writes_boxes = processor.variant.writes_boxes
        self._processor = processor
        self._rules = rules
        self._pictures = ImageReader(settings)
        self._preparing = 0

    def check_capacity(self) -> None:
        """Raise ``Overloaded`` if a request that came now would surely be refused: before any work is done for it."""
        self.engine.check_capacity(self._preparing)

    async def prepare(self, request: ChatCompletionRequest) -> PreparedChat:
        """Check pictures, apply the model's template, fit the context.

        Raises:
            InvalidRequest, InvalidImage, PayloadTooLarge, ContextLengthExceeded: what is wrong, with ``param``.
            Overloaded: those that are answered, wait and are being prepared take all places.
        """
        turns, references = self._read_messages(request)
        self.check_capacity()
        self._preparing += 1
        try:
            pictures = await self._pictures.read(references)
            return self.prepare_turns(turns, pictures, self.sampling(request))
        finally:
            self._preparing -= 1

    def prepare_turns(
        self, turns: Sequence[Turn], pictures: Sequence[EncodedImage], sampling: SamplingParams
    ) -> PreparedChat:
        """Turns and their checked pictures, in reading order, as a prompt that leaves room for the answer.

        Of the context at most a quarter is kept free for the answer; the rest belongs to the chat.
        """
        room = min(sampling.max_tokens, self.context_length // 4)
        turns, dropped = self._shorten(turns)
        encoded = self._processor.encode_chat(turns, max_tokens=self.context_length - room)
        prompt = Prompt(tuple(encoded.token_ids), tuple(pictures))
        return PreparedChat(prompt, sampling, dropped + encoded.dropped_messages)

    def _shorten(self, turns: Sequence[Turn]) -> tuple[list[Turn], int]:
        """What can't possibly fit is dropped before it is tokenised: megabytes of text would take minutes."""
        most = self.context_length * self._processor.encoder.tokenizer.longest_piece
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
        """The request's wishes over the model's own generation rules; greedy if neither says how to sample."""
        rules = self._rules
        samples = rules.do_sample and request.beams == 1
        own_temperature = (1.0 if rules.temperature is None else rules.temperature) if samples else 0.0
        # A template's separator may stand in a JSON string; the shape itself says where the answer ends.
        stops = (*request.stop, *(self._processor.format.stop if request.json_schema is None else ()))
        return SamplingParams(
            max_tokens=request.max_completion_tokens
            or request.max_tokens
            or rules.max_new_tokens
            or _DEFAULT_MAX_TOKENS,
            min_tokens=request.min_tokens or 0,
            temperature=own_temperature if request.temperature is None else request.temperature,
            top_p=(rules.top_p or 1.0) if request.top_p is None else request.top_p,
            top_k=(rules.top_k or 0) if request.top_k is None else request.top_k,
            min_p=request.min_p or 0.0,
            repetition_penalty=request.repetition_penalty or rules.repetition_penalty or 1.0,
            seed=request.seed,
            stop=stops,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs or 0,
            n=request.n,
            beams=request.beams,
            length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
            json_schema=request.json_schema,
        )

    async def stream(self, chat: PreparedChat, *, request_id: str) -> AsyncIterator[Delta]:
        """The answer piece by piece; closing the iterator aborts it in the engine."""
        deltas = self.engine.generate(chat.prompt, chat.sampling, request_id=request_id)
        async with aclosing(deltas):  # type: ignore[type-var]  # both engines' are generators
            async for delta in deltas:
                if delta.usage is not None and delta.timings is not None:
                    note_answer(delta.usage, delta.timings)
                yield delta

    def replicas(self) -> list[dict[str, Any]]:
        """What each engine counts, as ``EngineStats`` names it, with its ``name``."""
        if isinstance(self.engine, Engine):
            return [{"name": "here", **asdict(self.engine.stats())}]
        return self.engine.replicas()

    async def check_health(self) -> None:
        """Raise ``EngineFailed`` unless the engine answers."""
        checking = self.engine.check_health()
        if checking is not None:
            await checking

    async def warm_up(self) -> None:
        """One short answer, so that the first user doesn't pay for what is lazily made."""
        sampling = SamplingParams(max_tokens=2, temperature=0.0)
        async for _ in self.stream(self.prepare_turns([Turn("user", "Hello")], [], sampling), request_id="warm-up"):
            pass

    def _read_messages(self, request: ChatCompletionRequest) -> tuple[list[Turn], list[tuple[str, str]]]:
        turns: list[Turn] = []
        references: list[tuple[str, str]] = []  # (URL, name of the field)
        for i, message in enumerate(request.messages):
            role = "system" if message.role == "developer" else message.role
            words: list[str] = []
            pictures = 0
            for j, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    pictures += 1
                    references.append((part.image_url.url, f"messages[{i}].content[{j}].image_url"))
                else:
                    words.append(part.text)
            if pictures and role != "user":
                raise InvalidRequest("Only user messages can hold pictures.", param=f"messages[{i}].content")
            turns.append(Turn(role, "\n".join(words), pictures))
        if turns[-1].role != "user" or not (turns[-1].text.strip() or turns[-1].images):
            raise InvalidRequest("The last message must be a user's question.", param="messages")
        if len(references) > self.settings.max_images_per_request:
            raise InvalidRequest(
                f"The chat holds {len(references)} pictures; at most {self.settings.max_images_per_request} are "
                "allowed.",
                param="messages",
            )
        return turns, references
