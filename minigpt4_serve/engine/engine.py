"""Many conversations at once on one device: requests in, deltas out. Owns the thread that owns the device.

A step reads like this: take what came in, schedule, encode pictures, run the model, choose tokens, tell the callers.
One call into each event loop per step, not per token. When the thread dies, every caller hears of it at once.
"""

import asyncio
import contextlib
import itertools
import logging
import queue
import random
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

from minigpt4_serve.engine.beam_search import BeamSearch
from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.detokenizer import Detokenizer
from minigpt4_serve.engine.grammar import Grammar, Grammars
from minigpt4_serve.engine.image_cache import ImageCache
from minigpt4_serve.engine.model_runner import ModelRunner
from minigpt4_serve.engine.sampling import Choice, SamplingParams, continuations, sample
from minigpt4_serve.engine.scheduler import Scheduler, Span
from minigpt4_serve.engine.sequence import (
    Delta,
    FinishReason,
    Prompt,
    Sequence,
    Timings,
    TokenLogprob,
    Usage,
    content_ids,
)
from minigpt4_serve.errors import ContextLengthExceeded, EngineFailed, InvalidRequest, MiniGPT4Error, Overloaded
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.settings import EngineSettings

__all__ = ["Engine", "EngineStats"]

_log = logging.getLogger(__name__)
_Outcome = Delta | MiniGPT4Error
_LONGEST_HOLD_S = 0.05  # text that is certain is told after so long; people see no difference
_POSITION_EVERY_S = 2.0  # how often those who wait hear of their place in the line


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and what is held right now."""

    running: int
    waiting: int
    blocks_held: int
    blocks_total: int
    requests: int
    steps: int
    decode_steps: int
    prefill_tokens: int
    cached_tokens: int
    generated_tokens: int
    image_decodes: int
    image_encodes: int
    image_hits: int
    preemptions: int
    aborted: int


@dataclass(eq=False)
class _Answer:
    """One of a request's answers: its sequence, its text, and what is not told yet: text and its tokens."""

    sequence: Sequence
    text: Detokenizer
    held: str = ""
    told: float = 0.0
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    grammar: Grammar | None = None


@dataclass(eq=False)
class _Request:
    """One caller's request: its answers, its pictures and the way back to the caller."""

    id: str
    prompt: Prompt
    answers: list[_Answer]
    loop: asyncio.AbstractEventLoop
    outbox: "asyncio.Queue[_Outcome]"
    submitted: float
    images_s: float
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    pixels: dict[str, torch.Tensor] = field(default_factory=dict)
    admitted: float | None = None
    encode_s: float = 0.0
    first_token: float | None = None
    search: BeamSearch | None = None

    @property
    def width(self) -> int:
        """Slots that it takes."""
        rules = self.answers[0].sequence.sampling
        return max(rules.n, rules.beams)

    @property
    def done(self) -> bool:
        return all(answer.sequence.finish_reason for answer in self.answers)


@dataclass(frozen=True)
class _Abort:
    """Whoever has this name shall stop; with ``request``, only if it is that very one."""

    request_id: str
    request: _Request | None = None


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
        self.context_length = min(self._runner.context_length, self._runner.num_blocks * settings.block_size)
        self._images = ImageCache(
            processor.image_processor.to_tensor,
            max_bytes=settings.image_cache_bytes,
            decode_threads=settings.decode_threads,
        )
        self._grammars = Grammars(self._tokenizer, self._eos_ids, self._runner.vocab_size)
        self._inbox: queue.SimpleQueue[_Request | _Abort | None] = queue.SimpleQueue()
        self._requests: dict[str, _Request] = {}  # the engine thread's
        self._load = 0  # sequences accepted and not finished, guarded by the lock
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="minigpt4-engine", daemon=True)
        self._failure: BaseException | None = None
        self._stopping = False
        self._step_began: float | None = None  # while a step runs
        self._counts: dict[str, int] = defaultdict(int)
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

    def stats(self) -> EngineStats:
        """Counters and gauges; may be a step old."""
        blocks = self._scheduler.blocks
        counts = self._counts
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            blocks_held=blocks.num_blocks - blocks.num_free,
            blocks_total=blocks.num_blocks,
            image_decodes=self._images.decodes,
            image_hits=self._images.hits,
            preemptions=self._scheduler.preemptions,
            **{name: counts[name] for name in _COUNTERS},
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
        request: _Request | None = None
        try:
            started = time.monotonic()
            schema = sampling.json_schema
            grammar = None if schema is None else await asyncio.to_thread(self._grammars.compile, schema)
            features, pixels = await self._images.resolve(prompt.pictures)
            request = self._make_request(prompt, sampling, request_id, started)
            for answer in request.answers:
                answer.grammar = grammar and grammar.fork()
            request.features, request.pixels = features, pixels
            self._inbox.put(request)
            self.check_health()  # it may have died since the check above: then nobody reads the inbox any more
            if position > 0:
                yield Delta(queue_position=position, expected_wait_s=self._expected_wait(position))
            finished = 0
            while finished < len(request.answers):
                outcome = await self._hear(request)
                if outcome is None:
                    position = self._position(request)
                    yield Delta(queue_position=position, expected_wait_s=self._expected_wait(position))
                    continue
                if isinstance(outcome, MiniGPT4Error):
                    raise outcome
                finished += outcome.finish_reason is not None
                yield outcome
        finally:
            if request is None:
                self._leave(width)
            else:
                self._inbox.put(_Abort(request_id, request))  # means nothing if it is done

    def abort(self, request_id: str) -> None:
        """Stop a request: slot and blocks are free within one step, the caller's last piece says ``abort``."""
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
        if ids.count(slot) != len(prompt.pictures) * self._slots:
            raise InvalidRequest(
                f"The prompt has {ids.count(slot)} image slots; {len(prompt.pictures)} pictures of {self._slots} each "
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
            waiting = self._load + sequences - self._settings.max_running
            if waiting > self._settings.max_waiting and self._load:
                wait = self._expected_wait(self._load - self._settings.max_running + 1)
                raise Overloaded(f"The server is busy; try again in {max(1, round(wait))} s.", retry_after=wait)
            self._load += sequences
            return max(0, waiting)

    def _leave(self, sequences: int) -> None:
        with self._lock:
            self._load -= sequences

    def _expected_wait(self, position: int) -> float:
        return position * self._seconds_per_request / self._settings.max_running

    async def _hear(self, request: _Request) -> _Outcome | None:
        """What comes next; None if it is still in the line after a while."""
        if request.admitted is not None:
            return await request.outbox.get()
        try:
            async with asyncio.timeout(_POSITION_EVERY_S):
                return await request.outbox.get()
        except TimeoutError:
            return None if request.admitted is None else await request.outbox.get()

    def _position(self, request: _Request) -> int:
        """Its place in the line: 1 is next."""
        ahead: set[str] = set()
        for sequence in list(self._scheduler.waiting):  # copied in one go: the engine's thread goes on
            if sequence.request_id == request.id:
                break
            ahead.add(sequence.request_id)
        return len(ahead) + 1

    def _make_request(self, prompt: Prompt, sampling: SamplingParams, request_id: str, started: float) -> _Request:
        names = content_ids(prompt.token_ids, prompt.pictures, image_token_id=self._image_token_id, slots=self._slots)
        room = self.context_length - len(prompt.token_ids)
        rules = replace(sampling, max_tokens=min(sampling.max_tokens, room), min_tokens=min(sampling.min_tokens, room))
        seed = random.getrandbits(63) if sampling.seed is None else sampling.seed
        answers: list[_Answer] = []
        for index in range(sampling.n):
            leader = answers[0].sequence if answers else None
            # Seeds of several answers are far apart, and the first is that of a request for one.
            own = seed + index * 0x5851F42D4C957F2D
            sequence = Sequence(request_id, index, list(prompt.token_ids), list(names), rules, own, leader)
            answers.append(_Answer(sequence, Detokenizer(self._tokenizer.decode_ids, rules.stop)))
        search: BeamSearch | None = None
        if rules.beams > 1:
            first = answers[0].sequence.fork()
            first.slots = rules.beams
            search = BeamSearch(first, self._eos_ids, lambda ids: self._holds_stop(ids, rules.stop))
        return _Request(
            search=search,
            id=request_id,
            prompt=prompt,
            answers=answers,
            loop=asyncio.get_running_loop(),
            outbox=asyncio.Queue(),
            submitted=time.monotonic(),
            images_s=time.monotonic() - started,
        )

    # The engine's thread.

    def _run(self) -> None:
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
            if isinstance(message, _Abort):
                found = self._requests.get(message.request_id)
                if found is not None and message.request in (None, found):
                    self._end_all(found)
            else:
                self._begin(message)

    def _begin(self, request: _Request) -> None:
        if request.id in self._requests:
            self._leave(request.width)
            _send(request.loop, [(request, InvalidRequest("There is a request of that name already; choose another."))])
            return
        self._requests[request.id] = request
        self._counts["requests"] += 1
        growing = request.search.live if request.search else [answer.sequence for answer in request.answers]
        for sequence in growing:
            self._scheduler.add(sequence)

    def _step(self) -> None:
        spans = self._scheduler.schedule()
        assert spans, "there is work, but nothing can be computed"
        now = time.monotonic()
        for span in spans:
            request = self._requests[span.sequence.request_id]
            request.admitted = request.admitted or now
        self._encode_pictures(spans)
        for source, target in self._scheduler.copies:
            self._runner.copy_block(source, target)
        logits = self._runner.step(spans, self._features_of)
        sampling = [span.sequence for span in spans if span.samples]
        self._count(spans, len(sampling))
        self._scheduler.advance(spans)
        searching = [i for i, sequence in enumerate(sampling) if sequence.sampling.beams > 1]
        deltas: list[tuple[_Request, Delta]] = []
        if searching:
            deltas += self._search(logits[searching], [sampling[i] for i in searching])
            others = [i for i, sequence in enumerate(sampling) if sequence.sampling.beams == 1]
            logits, sampling = logits[others], [sampling[i] for i in others]
        forbidden = self._forbidden(logits, sampling)
        choices = sample(logits, sampling, self._eos_ids, forbidden=forbidden) if sampling else []
        for sequence, choice in zip(sampling, choices, strict=True):
            request = self._requests[sequence.request_id]
            delta = self._grow(request, sequence, choice)
            if delta is not None:
                deltas.append((request, delta))
        _tell(deltas)

    def _forbidden(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor | None:
        """What may not be chosen next by answers of a given shape; None if there are none."""
        grammars = [self._requests[each.request_id].answers[each.index].grammar for each in sequences]
        return self._grammars.forbidden(grammars, logits.device) if any(grammars) else None

    def _search(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[tuple[_Request, Delta]]:
        """Beam searches advance whose hypotheses are all computed; an answer is told when its search is over."""
        deltas: list[tuple[_Request, Delta]] = []
        for sequence, offers in zip(sequences, continuations(logits, sequences, self._eos_ids), strict=True):
            request = self._requests[sequence.request_id]
            search = request.search
            assert search is not None
            if not search.offer(sequence, offers):
                continue
            request.first_token = request.first_token or time.monotonic()
            old, chosen = search.live, search.select()
            if not chosen:
                deltas += self._end_search(request, search)
                continue
            grown = {self._scheduler.fork(parent, token): score for parent, token, score in chosen}
            for parent in old:
                self._scheduler.finish(parent, "stop")
            search.continue_with(grown)
        return deltas

    def _end_search(self, request: _Request, search: BeamSearch) -> list[tuple[_Request, Delta]]:
        deltas: list[tuple[_Request, Delta]] = []
        for sequence in search.live:
            self._scheduler.finish(sequence, "stop")
        for answer, best in zip(request.answers, search.finished, strict=False):
            answer.sequence.cached_tokens = search.live[0].cached_tokens
            answer.sequence.token_ids += best.ids
            answer.ids = list(best.ids)
            answer.held = answer.text.push(best.ids, last=True)
            self._finish(request, answer.sequence, best.reason)
            deltas.append((request, self._delta(request, answer)))
        return deltas

    def _holds_stop(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """No piece is shorter than a character, so a stop string that ends here doesn't reach back further."""
        window = max(map(len, stop), default=0)
        text = self._tokenizer.decode_ids(ids[-window:]) if window else ""
        return any(string in text for string in stop)

    def _count(self, spans: list[Span], sampled: int) -> None:
        self._counts["steps"] += 1
        self._counts["decode_steps"] += sampled > 0
        self._counts["generated_tokens"] += sampled
        for span in spans:
            sequence = span.sequence
            if span.start < sequence.num_prompt:
                self._counts["prefill_tokens"] += min(span.end, sequence.num_prompt) - span.start
            if sequence.num_computed == sequence.cached_tokens and sequence.num_output == 0:
                self._counts["cached_tokens"] += sequence.num_computed

    def _encode_pictures(self, spans: list[Span]) -> None:
        """Features for every picture that this step reads, in one batch; equal pictures once."""
        missing: dict[str, torch.Tensor] = {}
        readers: list[_Request] = []
        for span in spans:
            request = self._requests[span.sequence.request_id]
            if self._reads_pictures(span):
                readers.append(request)
                for picture in request.prompt.pictures:
                    if self._features(request, picture.digest) is None:
                        missing[picture.digest] = request.pixels[picture.digest]
        if missing:
            self._counts["image_encodes"] += len(missing)
            began = time.monotonic()
            for digest, features in zip(missing, self._runner.encode(list(missing.values())), strict=True):
                self._images.put(digest, features)
                for request in readers:
                    if request.pixels.pop(digest, None) is not None:
                        request.features[digest] = features
            for request in set(readers):
                request.encode_s += time.monotonic() - began

    def _reads_pictures(self, span: Span) -> bool:
        return self._image_token_id in span.sequence.token_ids[span.start : min(span.end, span.sequence.num_prompt)]

    def _features(self, request: _Request, digest: str) -> torch.Tensor | None:
        """From the request, which keeps them until its end, or from the cache."""
        if digest not in request.features:
            found = self._images.get(digest)
            if found is None:
                return None
            request.features[digest] = found
        return request.features[digest]

    def _features_of(self, span: Span) -> list[torch.Tensor]:
        request = self._requests[span.sequence.request_id]
        return [request.features[picture.digest] for picture in request.prompt.pictures]

    def _grow(self, request: _Request, sequence: Sequence, choice: Choice) -> Delta | None:
        """A token joins an answer: what the caller hears of it, if anything is certain yet."""
        if request.first_token is None:
            request.first_token = time.monotonic()
        sequence.append(choice.token)
        rules, answer = sequence.sampling, request.answers[sequence.index]
        answer.ids.append(choice.token)
        if choice.logprob is not None:
            answer.logprobs.append(self._describe(choice))
        ended = choice.token in self._eos_ids and not rules.ignore_eos
        if answer.grammar is not None and not ended:
            answer.grammar.accept(choice.token)
            ended = answer.grammar.finished
        full = sequence.num_output >= rules.max_tokens
        answer.held += answer.text.push([choice.token], last=ended or full)
        reason: FinishReason | None = "stop" if ended or answer.text.stopped else "length" if full else None
        if reason is not None:
            self._finish(request, sequence, reason)
        # Many small pieces cost whoever passes them on more than the answer costs us.
        hold = min(_LONGEST_HOLD_S, self._load / self._settings.max_pieces_per_s)
        if reason is None and (not answer.held or time.monotonic() - answer.told < hold):
            return None
        answer.told = time.monotonic()
        return self._delta(request, answer)

    def _describe(self, choice: Choice) -> TokenLogprob:
        def name(token: int) -> str:
            if token >= self._tokenizer.vocab_size:
                return ""  # a row that only pads the embedding
            return str(self._tokenizer.convert_ids_to_tokens(token)).replace("▁", " ")

        assert choice.logprob is not None
        return TokenLogprob(name(choice.token), choice.logprob, tuple((name(t), value) for t, value in choice.top))

    @staticmethod
    def _delta(request: _Request, answer: _Answer) -> Delta:
        """What is held, with the tokens that it took; a request's last piece with the balance."""
        sequence = answer.sequence
        delta = Delta(sequence.index, answer.held, tuple(answer.ids), tuple(answer.logprobs), sequence.finish_reason)
        answer.held, answer.ids, answer.logprobs = "", [], []
        if not request.done:
            return delta
        now = time.monotonic()
        first = request.answers[0].sequence
        written = sum(other.sequence.num_output for other in request.answers)
        usage = Usage(first.num_prompt, first.cached_tokens or 0, written)
        admitted = request.admitted or now
        first_token = request.first_token or now
        timings = Timings(
            images_s=request.images_s,
            queue_s=admitted - request.submitted,
            encode_s=request.encode_s,
            prefill_s=max(0.0, first_token - admitted - request.encode_s),
            decode_s=now - first_token,
            ttft_s=request.images_s + first_token - request.submitted,
            total_s=request.images_s + now - request.submitted,
        )
        return replace(delta, usage=usage, timings=timings)

    def _finish(self, request: _Request, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.finish(sequence, reason)
        self._leave(1)
        if request.done:
            self._leave(request.width - len(request.answers))
            del self._requests[request.id]
            if request.admitted is not None:
                took = time.monotonic() - request.admitted
                self._answered += 1
                self._seconds_per_request += max(0.1, 1 / self._answered) * (took - self._seconds_per_request)

    def _end_all(self, request: _Request) -> None:
        """Abort what is left of a request."""
        self._counts["aborted"] += 1
        for sequence in request.search.live if request.search else ():
            self._scheduler.finish(sequence, "abort")
        deltas: list[tuple[_Request, Delta]] = []
        for answer in request.answers:
            if answer.sequence.finish_reason is None:
                self._finish(request, answer.sequence, "abort")
                deltas.append((request, self._delta(request, answer)))
        _tell(deltas)

    def _fail_all(self) -> None:
        """Nobody waits for ever: whoever is here, or comes in meanwhile, hears that the engine is gone."""
        message = "The engine stopped before the answer was complete; ask again in a moment."
        with contextlib.suppress(queue.Empty):
            while True:
                late = self._inbox.get_nowait()
                if isinstance(late, _Request):
                    self._requests[late.id] = late
        for request in self._requests.values():
            _send(request.loop, [(request, EngineFailed(message))])
        self._requests.clear()


_COUNTERS = (
    "requests",
    "steps",
    "decode_steps",
    "prefill_tokens",
    "cached_tokens",
    "generated_tokens",
    "image_encodes",
    "aborted",
)


def _tell(deltas: list[tuple[_Request, Delta]]) -> None:
    """One call into each event loop, however many of its requests have news."""
    by_loop: Callable[[tuple[_Request, Delta]], int] = lambda item: id(item[0].loop)  # noqa: E731
    for _, news in itertools.groupby(sorted(deltas, key=by_loop), key=by_loop):
        items = list(news)
        _send(items[0][0].loop, items)


def _send(loop: asyncio.AbstractEventLoop, news: Iterable[tuple[_Request, _Outcome]]) -> None:
    def deliver() -> None:
        for request, outcome in news:
            request.outbox.put_nowait(outcome)

    with contextlib.suppress(RuntimeError):  # the loop is closed: its callers are gone
        loop.call_soon_threadsafe(deliver)
