"""Many conversations at once on one device: requests in, deltas out. Owns the thread that owns the device.

A step reads like this: take what came in, schedule, encode pictures, run the model, choose tokens, tell the callers.
One call into each event loop per step, not per token. When the thread dies, every caller hears of it at once.
"""

import asyncio
import contextlib
import logging
import queue
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

import torch

from minigpt4_serve.engine.beam_search import BeamSearch
from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.detokenizer import Detokenizer
from minigpt4_serve.engine.grammar import Grammars
from minigpt4_serve.engine.image_cache import ImageCache, ImageEntry
from minigpt4_serve.engine.model_runner import ModelRunner
from minigpt4_serve.engine.request import Answer, Request
from minigpt4_serve.engine.sampling import SampledToken, beam_candidates, sample
from minigpt4_serve.engine.scheduler import ScheduledChunk, Scheduler
from minigpt4_serve.engine.sequence import Sequence, content_ids
from minigpt4_serve.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, MiniGPT4Error, Overloaded
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.protocol import Delta, FinishReason, Prompt, SamplingParams, TokenLogprob
from minigpt4_serve.settings import EngineSettings

__all__ = ["Engine", "EngineStats"]

_log = logging.getLogger(__name__)
_LONGEST_HOLD_S = 0.05  # text that is certain is told after so long; people see no difference
_SCHEMA_TOO_COMPLEX = "The JSON schema is too complex to be followed; send a smaller one."
_POSITION_EVERY_S = 2.0  # how often those who wait hear of their place in the line


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and what is held right now."""

    running: int
    waiting: int
    accepted: int  # sequences not finished: running, waiting, or before that, while images are decoded
    blocks_held: int
    blocks_total: int
    requests: int = 0
    steps: int = 0
    decode_steps: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    image_decodes: int = 0
    image_encodes: int = 0
    image_hits: int = 0
    preemptions: int = 0
    aborted: int = 0
    seconds_per_request: float = 0.0  # from the slot to the end, a running mean


@dataclass(frozen=True)
class _Abort:
    """Whoever has this name shall stop; with ``request``, only if it is that very one."""

    request_id: str
    request: Request | None = None


class Engine:
    """Continuous batching over one model.

    Args:
        model, processor: as ``weights.load_model`` gives them, the model in eval mode on its device.
        settings: sizes of queues, caches and steps.

    Raises:
        InvalidRequest: the model's LLM isn't one that the engine can run, or memory is short.
    """

    def __init__(
        self, model: MiniGPT4ForConditionalGeneration, processor: MiniGPT4Processor, settings: EngineSettings
    ) -> None:
        self._settings = settings
        self._tokenizer = processor.tokenizer
        self._image_token_id, self._slots = model.config.image_token_id, model.config.num_image_tokens
        eos = model.generation_config.eos_token_id
        eos = self._tokenizer.eos_token_id if eos is None else eos
        self._eos_ids = list(eos) if isinstance(eos, list | tuple) else [eos]
        with torch.inference_mode():
            self._runner = ModelRunner(model, settings)
        self._scheduler = Scheduler(
            BlockManager(self._runner.num_blocks, settings.block_size),
            max_running=settings.max_running,
            max_prefill_tokens=settings.max_prefill_tokens,
        )
        self.device = model.device
        self.context_length = min(self._runner.context_length, self._runner.num_blocks * settings.block_size)
        self._images = ImageCache(
            processor.image_processor.to_tensor,
            max_bytes=settings.image_cache_bytes,
            decode_threads=settings.decode_threads,
        )
        self._grammars = Grammars(self._tokenizer, self._eos_ids, self._runner.vocab_size)
        self._inbox: queue.SimpleQueue[Request | _Abort | None] = queue.SimpleQueue()
        self._requests: dict[str, Request] = {}  # the engine thread's
        self._arriving: dict[str, bool] = {}  # requests whose pictures are being decoded; aborted meanwhile?
        self._load = 0  # sequences accepted and not finished, guarded by the lock
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="minigpt4-engine", daemon=True)
        self._failure: BaseException | None = None
        self._stopping = False
        self._step_began: float | None = None  # while a step runs
        self._news: list[tuple[Request, Delta | MiniGPT4Error]] = []  # that callers haven't been told yet
        self._counts: Counter[str] = Counter()
        self._seconds_per_request = 1.0  # a running mean, for expected waits
        self._answered = 0

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def shutdown(self) -> None:
        """Stop the thread; requests in progress end with ``EngineFailed``. Safe to call twice."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)
        self._images.close()

    def check_health(self) -> None:
        """Raise ``EngineFailed`` if the thread isn't there to answer, or hangs in a step."""
        began = self._step_began
        hangs = began is not None and time.monotonic() - began > self._settings.step_timeout_s
        if hangs or self._failure is not None or self._stopping or not self._thread.is_alive():
            raise EngineFailed("The engine has stopped and is being replaced; try again in a moment.")

    def check_capacity(self, ahead: int = 0) -> None:
        """Raise ``Overloaded`` if, after ``ahead`` others that are on their way, no request could even wait."""
        self._place_of(1, self._load + ahead)

    def stats(self) -> EngineStats:
        """Counters and gauges; may be a step old."""
        scheduler, images, blocks = self._scheduler, self._images, self._scheduler.blocks
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            accepted=self._load,
            blocks_held=blocks.num_blocks - blocks.num_free,
            blocks_total=blocks.num_blocks,
            cached_tokens=scheduler.cached_tokens,
            preemptions=scheduler.preemptions,
            image_decodes=images.decodes,
            image_hits=images.hits,
            seconds_per_request=self._seconds_per_request,
            **self._counts,
        )

    async def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncIterator[Delta]:
        """The answer, piece by piece; each of ``n`` answers ends with a ``finish_reason``, the last with the usage.

        While no slot is free, empty pieces say how many are ahead, the first at once. Closing the iterator aborts the
        request.

        Raises:
            ContextLengthExceeded: the prompt alone doesn't fit. An answer that would grow too long is ended instead.
            InvalidImage: a picture is damaged.
            InvalidRequest: the ids aren't the model's, pictures and slots don't match, the name is taken, so many beams
                have no room, or the JSON schema can't be followed.
            Overloaded: as many wait already as may.
            EngineFailed: the engine died.
        """
        self.check_health()
        self._check_prompt(prompt)
        self._check_beams(prompt, sampling)
        width = max(sampling.n, sampling.beams)
        position = self._enter(width)
        request: Request | None = None
        try:
            came, self._arriving[request_id] = time.monotonic(), False
            schema = sampling.json_schema
            grammar = None if schema is None else await asyncio.to_thread(self._grammars.compile, schema)
            pictures = await self._images.resolve(prompt.images)
            request = self._make_request(prompt, pictures, sampling, request_id, came)
            for answer in request.answers:
                answer.grammar = grammar and grammar.fork()
            self._inbox.put(request)
            if self._arriving.pop(request_id, False):
                self._inbox.put(_Abort(request_id, request))
            self.check_health()  # it may have died since the check above: then nobody reads the inbox any more
            if position > 0:
                yield Delta(queue_position=position, expected_wait_s=self._expected_wait(position))
            finished = 0
            while finished < len(request.answers):
                outcome = await self._hear(request)
                if outcome is None:
                    position = self._position(request, position)
                    if position > 0:
                        yield Delta(queue_position=position, expected_wait_s=self._expected_wait(position))
                    continue
                if isinstance(outcome, MiniGPT4Error):
                    raise outcome
                finished += outcome.finish_reason is not None
                yield outcome
        finally:
            if request is None:
                self._arriving.pop(request_id, None)
                self._leave(width)
            else:
                self._inbox.put(_Abort(request_id, request))  # means nothing if it is done

    def abort(self, request_id: str) -> None:
        """Stop a request: slot and blocks are free within one step, the caller's last piece says ``abort``."""
        if request_id in self._arriving:
            self._arriving[request_id] = True
        self._inbox.put(_Abort(request_id))

    # The caller's side.

    def _check_prompt(self, prompt: Prompt) -> None:
        """What would kill the thread, or never end, is refused before it gets there."""
        ids, slot = prompt.token_ids, self._image_token_id
        if len(ids) >= self.context_length:
            raise ContextLengthExceeded(
                f"The chat has {len(ids)} tokens; this server reads at most {self.context_length - 1}.",
                param="messages",
            )
        if not ids or not all(0 <= token < self._runner.vocab_size or token == slot for token in ids):
            raise InvalidRequest("The prompt must hold ids of the model's vocabulary, at least one.", param="messages")
        if ids.count(slot) != len(prompt.images) * self._slots:
            raise InvalidRequest(
                f"The prompt has {ids.count(slot)} image slots; {len(prompt.images)} pictures of {self._slots} each "
                "were given.",
                param="messages",
            )

    def _check_beams(self, prompt: Prompt, sampling: SamplingParams) -> None:
        """All hypotheses must fit the slots and the cache at once: they advance together."""
        if sampling.beams == 1:
            return
        size, read = self._settings.block_size, len(prompt.token_ids)
        longest = min(read + sampling.max_tokens, self.context_length)
        shared = read // size
        blocks = shared + sampling.beams * (-(-longest // size) - shared + 1)
        if sampling.beams > self._settings.max_running or blocks > self._runner.num_blocks:
            raise InvalidRequest(
                f"There is no room for {sampling.beams} beams here; ask for fewer or for a shorter answer.",
                param="beams",
            )

    def _enter(self, sequences: int) -> int:
        """Count a request in; its place in the line, 0 if a slot is free."""
        with self._lock:
            waiting = self._place_of(sequences, self._load)
            self._load += sequences
            return waiting

    def _place_of(self, sequences: int, load: int) -> int:
        """The place in the line of so many more sequences, 0 if slots are free. Raises ``Overloaded``."""
        waiting = load + sequences - self._settings.max_running
        if waiting > self._settings.max_waiting and load:
            raise Overloaded.queue_full(self._expected_wait(load - self._settings.max_running + 1))
        return max(0, waiting)

    def _leave(self, sequences: int) -> None:
        with self._lock:
            self._load -= sequences

    def _expected_wait(self, position: int) -> float:
        return position * self._seconds_per_request / self._settings.max_running

    async def _hear(self, request: Request) -> Delta | MiniGPT4Error | None:
        """What comes next; None if it is still in the line after a while."""
        if request.admitted is not None:
            return await request.outbox.get()
        try:
            async with asyncio.timeout(_POSITION_EVERY_S):
                return await request.outbox.get()
        except TimeoutError:
            return None if request.admitted is None else await request.outbox.get()

    def _position(self, request: Request, told: int) -> int:
        """Its place in the line, 1 is next; what was ``told`` as long as it isn't there yet, or just got its slot."""
        ahead: set[str] = set()
        for sequence in list(self._scheduler.waiting):  # copied in one go: the engine's thread goes on
            if sequence.request_id == request.id:
                return len(ahead) + 1
            ahead.add(sequence.request_id)
        return told

    def _make_request(
        self, prompt: Prompt, pictures: list[ImageEntry], sampling: SamplingParams, request_id: str, came: float
    ) -> Request:
        names = content_ids(prompt.token_ids, prompt.images, image_token_id=self._image_token_id, slots=self._slots)
        room = self.context_length - len(prompt.token_ids)
        rules = replace(sampling, max_tokens=min(sampling.max_tokens, room), min_tokens=min(sampling.min_tokens, room))
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        answers: list[Answer] = []
        for index in range(sampling.n):
            # Seeds of several answers are far apart, and the first is that of a request for one.
            own = seed + index * 0x5851F42D4C957F2D
            sequence = Sequence(request_id, index, list(prompt.token_ids), list(names), rules, own)
            answers.append(Answer(sequence, Detokenizer(self._tokenizer.decode_ids, rules.stop)))
        search: BeamSearch | None = None
        if rules.beams > 1:
            first = answers[0].sequence.fork()
            first.slots = rules.beams
            search = BeamSearch(first, self._eos_ids, self._tokenizer.decode_ids)
        now = time.monotonic()
        return Request(request_id, answers, pictures, search, submitted=now, images_s=now - came)

    # The engine's thread.

    def _run(self) -> None:
        self._runner.bind_thread()
        if self._settings.cpu_threads is not None:
            torch.set_num_threads(self._settings.cpu_threads)
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._take_in()
                    if self._scheduler.has_work and not self._stopping:
                        self._step_began = time.monotonic()
                        self._step()
                        self._step_began = None
        except BaseException as error:
            self._failure = error
            _log.exception("the engine died")
        finally:
            self._fail_all()

    def _take_in(self) -> None:
        """New requests and aborts; sleeps when there is nothing to do."""
        while True:
            try:
                message = self._inbox.get(block=not self._scheduler.has_work)
            except queue.Empty:
                return
            if message is None:
                return
            if isinstance(message, Request):
                self._begin(message)
            else:
                self._end(message)
            self._tell()

    def _begin(self, request: Request) -> None:
        if request.id in self._requests:
            self._leave(request.width)
            self._news.append((request, InvalidRequest("There is a request of that name already; choose another.")))
            return
        self._requests[request.id] = request
        self._counts["requests"] += 1
        for sequence in request.growing:
            self._scheduler.add(sequence)

    def _end(self, abort: _Abort) -> None:
        """What is left of a request is finished, if it is still here."""
        request = self._requests.get(abort.request_id)
        if request is None or abort.request not in (None, request):
            return
        self._counts["aborted"] += 1
        for sequence in request.search.live if request.search else ():
            self._scheduler.finish(sequence, "abort")
        for answer in request.answers:
            if answer.sequence.finish_reason is None:
                self._extend(request, answer, (), (), "abort")

    def _refuse(self, request: Request, error: MiniGPT4Error) -> None:
        """End a request that can't be answered after all."""
        for answer in request.answers:
            if answer.sequence.finish_reason is None:
                self._scheduler.finish(answer.sequence, "abort")
        self._news.append((request, error))
        self._forget(request)

    def _step(self) -> None:
        chunks = self._scheduler.schedule()
        assert chunks, "there is work, but nothing can be computed"
        now = time.monotonic()
        for chunk in chunks:
            request = self._requests[chunk.sequence.request_id]
            request.admitted = request.admitted or now
        self._encode_pictures(chunks)
        for source, target in self._scheduler.copies:
            self._runner.copy_block(source, target)
        logits = self._runner.step(chunks, self._features_of)
        sampled = [chunk.sequence for chunk in chunks if chunk.samples]
        self._count(chunks, len(sampled))
        self._scheduler.advance(chunks)
        searching = [i for i, sequence in enumerate(sampled) if sequence.sampling.beams > 1]
        if searching:
            self._search(logits[searching], [sampled[i] for i in searching])
            others = [i for i, sequence in enumerate(sampled) if sequence.sampling.beams == 1]
            logits, sampled = logits[others], [sampled[i] for i in others]
        if sampled:
            choices = sample(logits, sampled, self._eos_ids, forbidden=self._forbidden(logits, sampled))
            for sequence, choice in zip(sampled, choices, strict=True):
                self._grow(sequence, choice)
        self._tell()

    def _encode_pictures(self, chunks: list[ScheduledChunk]) -> None:
        """Features for every picture that this step reads, in one batch."""
        missing: dict[ImageEntry, None] = {}
        waiting: set[Request] = set()
        for chunk in chunks:
            if self._image_token_id in chunk.sequence.token_ids[chunk.start : min(chunk.end, chunk.sequence.num_prompt)]:
                request = self._requests[chunk.sequence.request_id]
                waiting.add(request)
                missing |= dict.fromkeys(seen for seen in request.pictures if seen.features is None)
        if not missing:
            return
        began = time.monotonic()
        encoded = self._runner.encode([seen.pixels.result() for seen in missing])
        for seen, features in zip(missing, encoded, strict=True):
            self._images.put(seen, features)
        self._counts["image_encodes"] += len(missing)
        for request in waiting:
            request.encode_s += time.monotonic() - began

    def _features_of(self, chunk: ScheduledChunk) -> list[torch.Tensor]:
        pictures = self._requests[chunk.sequence.request_id].pictures
        return [seen.features for seen in pictures if seen.features is not None]

    def _forbidden(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor | None:
        """What may not be chosen next by answers of a given shape; None if there are none."""
        grammars = [self._requests[each.request_id].answers[each.index].grammar for each in sequences]
        return self._grammars.forbidden(grammars, logits.device) if any(grammars) else None

    def _count(self, chunks: list[ScheduledChunk], sampled: int) -> None:
        read = sum(max(0, min(chunk.end, chunk.sequence.num_prompt) - chunk.start) for chunk in chunks)
        self._counts.update(steps=1, decode_steps=int(sampled > 0), generated_tokens=sampled, prefill_tokens=read)

    def _grow(self, sequence: Sequence, choice: SampledToken) -> None:
        """A token joins an answer."""
        request, rules = self._requests.get(sequence.request_id), sequence.sampling
        if request is None:
            return  # refused in this very step, because of another of its answers
        sequence.append(choice.token)
        request.first_token = request.first_token or time.monotonic()
        answer = request.answers[sequence.index]
        ended = choice.token in self._eos_ids and not rules.ignore_eos
        if answer.grammar is not None:
            if not ended:
                answer.grammar.accept(choice.token)
            if answer.grammar.failed:
                self._refuse(request, InvalidRequest(_SCHEMA_TOO_COMPLEX, param="response_format"))
                return
            ended = ended or answer.grammar.finished
        reason: FinishReason | None = "stop" if ended else "length" if sequence.num_output >= rules.max_tokens else None
        logprobs = () if choice.logprob is None else (self._describe(choice.logprob, choice),)
        self._extend(request, answer, (choice.token,), logprobs, reason)

    def _extend(
        self,
        request: Request,
        answer: Answer,
        ids: Iterable[int],
        logprobs: Iterable[TokenLogprob],
        reason: FinishReason | None,
    ) -> None:
        """The caller hears of an answer's new tokens as far as their text is certain, and of its end."""
        reason = answer.take(ids, logprobs, reason)
        if reason is not None:
            self._scheduler.finish(answer.sequence, reason)
            if request.done:
                self._forget(request)
        # Many small pieces cost whoever passes them on more than the answer costs us.
        hold = min(_LONGEST_HOLD_S, self._load / self._settings.max_pieces_per_s)
        if reason is not None or (answer.held and time.monotonic() - answer.told >= hold):
            self._news.append((request, request.piece(answer)))

    def _describe(self, logprob: float, choice: SampledToken) -> TokenLogprob:
        def name(token: int) -> str:
            if token >= self._tokenizer.vocab_size:
                return ""  # a row that only pads the embedding
            return str(self._tokenizer.convert_ids_to_tokens(token)).replace("▁", " ")

        return TokenLogprob(name(choice.token), logprob, tuple((name(token), value) for token, value in choice.top))

    def _search(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        """Beam searches advance whose hypotheses are all computed; an answer is told when its search is over."""
        for sequence, offers in zip(sequences, beam_candidates(logits, sequences, self._eos_ids), strict=True):
            request = self._requests[sequence.request_id]
            search = request.search
            assert search is not None
            if not search.offer(sequence, offers):
                continue
            request.first_token = request.first_token or time.monotonic()
            old, chosen = search.live, search.select()
            grown = {self._scheduler.fork(parent, token): score for parent, token, score in chosen}
            for parent in old:
                self._scheduler.finish(parent, "stop")
            if grown:
                search.continue_with(grown)
                continue
            for answer, best in zip(request.answers, search.finished, strict=False):
                answer.sequence.cached_tokens = old[0].cached_tokens
                answer.sequence.token_ids += best.ids
                self._extend(request, answer, best.ids, (), best.reason)

    def _forget(self, request: Request) -> None:
        """Nothing more of it will be computed."""
        self._leave(request.width)
        del self._requests[request.id]
        if request.admitted is not None:
            took = time.monotonic() - request.admitted
            self._answered += 1
            self._seconds_per_request += max(0.1, 1 / self._answered) * (took - self._seconds_per_request)

    def _fail_all(self) -> None:
        """Nobody waits for ever: whoever is here, or comes in meanwhile, hears that the engine is gone."""
        left = list(self._requests.values())
        self._requests.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, Request):
                    left.append(message)
        text = "The engine stopped before the answer was complete; ask again in a moment."
        self._news += [(request, EngineFailed(text)) for request in left]
        self._tell()

    def _tell(self) -> None:
        """One call into each event loop, however many of its requests have news."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Delta | MiniGPT4Error]]] = defaultdict(list)
        for request, outcome in self._news:
            by_loop[request.loop].append((request, outcome))
        self._news = []
        for loop, news in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: its callers are gone
                loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: list[tuple[Request, Delta | MiniGPT4Error]]) -> None:
    for request, outcome in news:
        request.outbox.put_nowait(outcome)
