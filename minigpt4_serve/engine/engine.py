"""Continuous batching on one device: requests in, deltas out. ``Engine`` owns the thread that owns the device.

HTTP coroutines call ``Engine.generate``, which accepts the request (``Admission``), decodes its images and passes it
to the engine thread through an inbox. Before each step that thread drains the inbox. A step schedules, encodes images,
runs the model, samples, and flushes outputs (``OutputDispatcher``). If the thread fails, all requests end with
``EngineFailed``.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from minigpt4_serve.engine.admission import Admission
from minigpt4_serve.engine.block_manager import BlockManager
from minigpt4_serve.engine.grammar import GrammarCompiler
from minigpt4_serve.engine.image_cache import ImageCache, ImageEntry
from minigpt4_serve.engine.model_runner import ModelRunner
from minigpt4_serve.engine.outputs import Output, OutputDispatcher
from minigpt4_serve.engine.request import Answer, Request
from minigpt4_serve.engine.request_builder import RequestBuilder
from minigpt4_serve.engine.sampling import SampledToken, beam_candidates, sample
from minigpt4_serve.engine.scheduler import ScheduledChunk, Scheduler
from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.engine.stats import EngineCounters, EngineStats
from minigpt4_serve.errors import EngineFailed, InvalidRequest, MiniGPT4Error
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.protocol import Delta, FinishReason, Prompt, SamplingParams, TokenLogprob
from minigpt4_serve.settings import EngineSettings

__all__ = ["Engine"]

_log = logging.getLogger(__name__)
_QUEUE_UPDATE_S = 2.0  # interval of the queue positions sent to waiting callers
_STOPPED = "The engine stopped before the answer was complete; ask again in a moment."
_UNAVAILABLE = "The engine has stopped and is being replaced; try again in a moment."
_JSON_END_TOKENS = 256  # at the end of an answer that follows a schema, or half of it: what is open is closed
_SCHEMA_TOO_COMPLEX = "The JSON schema is too complex; send a smaller one."


@dataclass(frozen=True)
class _Abort:
    """Abort by id; if ``request`` is given, only that object."""

    request_id: str
    request: Request | None = None


class Engine:
    """Continuous batching over one model.

    Args:
        model, processor: as ``weights.load_model`` returns them, the model in eval mode on its device.
        settings: sizes of queues, caches and steps.

    Attributes:
        context_length: tokens of prompt and answer together; less than the model's if the KV cache is smaller.

    Raises:
        InvalidRequest: the LLM's architecture isn't supported, or memory is short.
    """

    def __init__(
        self, model: MiniGPT4ForConditionalGeneration, processor: MiniGPT4Processor, settings: EngineSettings
    ) -> None:
        self._settings = settings
        self._tokenizer = processor.tokenizer
        self._image_token_id = model.config.image_token_id
        self._eos_ids = _read_eos_ids(model, processor)
        with torch.inference_mode():
            self._runner = ModelRunner(model, settings)
        self._scheduler = Scheduler(
            BlockManager(self._runner.num_blocks, settings.block_size),
            max_running=settings.max_running,
            max_prefill_tokens=settings.max_prefill_tokens,
        )
        self.device = model.device
        self.context_length = min(self._runner.context_length, self._runner.num_blocks * settings.block_size)
        self._request_builder = RequestBuilder(
            tokenizer=self._tokenizer,
            eos_ids=self._eos_ids,
            vocab_size=self._runner.vocab_size,
            image_token_id=self._image_token_id,
            num_image_tokens=model.config.num_image_tokens,
            context_length=self.context_length,
            block_size=settings.block_size,
            num_blocks=self._runner.num_blocks,
            max_running=settings.max_running,
        )
        self._images = ImageCache(
            processor.image_processor.to_tensor,
            max_bytes=settings.image_cache_bytes,
            decode_threads=settings.decode_threads,
        )
        self._grammars = GrammarCompiler(self._tokenizer, self._eos_ids, self._runner.vocab_size)
        # Threads of their own: schemas that take long to refuse delay other schemas only.
        self._compiling = ThreadPoolExecutor(max_workers=2, thread_name_prefix="minigpt4-schema")
        self._admission = Admission(max_running=settings.max_running, max_waiting=settings.max_waiting)
        self._outputs = OutputDispatcher(settings.max_pieces_per_s)
        self._counters = EngineCounters()
        self._inbox: queue.SimpleQueue[Request | _Abort | None] = queue.SimpleQueue()
        self._requests: dict[str, Request] = {}  # for the engine thread only
        self._preparing: dict[str, bool] = {}  # ids of requests not in the inbox yet → aborted meanwhile
        self._thread = threading.Thread(target=self._run, name="minigpt4-engine", daemon=True)
        self._failure: BaseException | None = None
        self._stopping = False
        self._step_started: float | None = None  # time.monotonic, while a step runs

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def shutdown(self) -> None:
        """Stop the engine thread; requests in progress end with ``EngineFailed``. Safe to call twice."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)
        self._images.close()
        self._grammars.close()
        self._compiling.shutdown(wait=False, cancel_futures=True)

    def check_health(self) -> None:
        """Raise ``EngineFailed`` if the engine thread has ended or its step exceeds ``step_timeout_s``."""
        started = self._step_started
        hangs = started is not None and time.monotonic() - started > self._settings.step_timeout_s
        if hangs or self._failure is not None or self._stopping or not self._thread.is_alive():
            raise EngineFailed(_UNAVAILABLE)

    def check_capacity(self, ahead: int = 0) -> None:
        """Raise ``Overloaded`` if a request would be rejected after ``ahead`` others that are being prepared."""
        self._admission.check_capacity(ahead)

    def stats(self) -> EngineStats:
        """Counters and gauges; single fields may be a step old."""
        blocks = self._scheduler.blocks
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            accepted=self._admission.accepted,
            blocks_held=blocks.num_blocks - blocks.num_free,
            blocks_total=blocks.num_blocks,
            requests=self._counters.requests,
            steps=self._counters.steps,
            decode_steps=self._counters.decode_steps,
            prefill_tokens=self._counters.prefill_tokens,
            cached_tokens=self._scheduler.cached_tokens,
            generated_tokens=self._counters.generated_tokens,
            image_decodes=self._images.decodes,
            image_encodes=self._counters.image_encodes,
            image_hits=self._images.hits,
            preemptions=self._scheduler.preemptions,
            aborted=self._counters.aborted,
            seconds_per_request=self._admission.seconds_per_request,
        )

    async def generate(self, prompt: Prompt, sampling: SamplingParams, *, request_id: str) -> AsyncGenerator[Delta]:
        """Yield the deltas of ``n`` answers. Each answer ends with a ``finish_reason``, the request with its usage.

        While the request is queued, empty deltas carry its position, the first at once. Closing the generator aborts
        the request.

        Raises:
            ContextLengthExceeded: the prompt alone doesn't fit. An answer that reaches the context length just ends.
            InvalidImage: an image is damaged.
            InvalidRequest: invalid token ids, images that don't match the image tokens, a request id in use, beams
                that don't fit, or an unsupported JSON schema.
            Overloaded: the queue is full.
            EngineFailed: the engine thread failed or was shut down.
        """
        self.check_health()
        self._request_builder.validate(prompt, sampling)
        position = self._admission.accept(sampling.num_sequences)
        request: Request | None = None
        try:
            request = await self._prepare(prompt, sampling, request_id)
            self._inbox.put(request)
            if self._preparing.pop(request_id, False):
                self._inbox.put(_Abort(request_id, request))
            self.check_health()  # if the thread ended in the meantime, nothing reads the inbox
            if position > 0:
                yield self._queue_delta(position)
            remaining = len(request.answers)
            while remaining > 0:
                output = await self._next_output(request)
                if output is None:
                    # Not in the snapshot: the engine thread hasn't added it yet, or has just admitted it.
                    position = self._admission.queue_position(request_id) or position
                    if position > 0:
                        yield self._queue_delta(position)
                    continue
                if isinstance(output, MiniGPT4Error):
                    raise output
                if output.finish_reason is not None:
                    remaining -= 1
                yield output
        finally:
            if request is None:
                self._preparing.pop(request_id, None)
                self._admission.release(sampling.num_sequences)
            else:
                self._inbox.put(_Abort(request_id, request))  # no effect on a completed request

    def abort(self, request_id: str) -> None:
        """Abort a request before the next step; its answers end with the finish reason "abort"."""
        if request_id in self._preparing:
            self._preparing[request_id] = True
        self._inbox.put(_Abort(request_id))

    # In the caller's event loop.

    async def _prepare(self, prompt: Prompt, sampling: SamplingParams, request_id: str) -> Request:
        """Compile the request's grammar, decode its images and build it."""
        received = time.monotonic()
        self._preparing[request_id] = False
        schema = sampling.json_schema
        grammar = None
        if schema is not None:
            loop = asyncio.get_running_loop()
            grammar = await loop.run_in_executor(self._compiling, self._grammars.compile, schema)
        images = await self._images.resolve(prompt.images)
        return self._request_builder.build(
            prompt, images, sampling, request_id=request_id, grammar=grammar, received=received
        )

    async def _next_output(self, request: Request) -> Output | None:
        """The request's next output; None if it is still queued after ``_QUEUE_UPDATE_S``."""
        if request.admitted is None:
            output = await request.outputs.get(within_s=_QUEUE_UPDATE_S)
            if output is not None or request.admitted is None:
                return output
        return await request.outputs.get()

    def _queue_delta(self, position: int) -> Delta:
        return Delta(queue_position=position, expected_wait_s=self._admission.expected_wait(position))

    # In the engine thread.

    def _run(self) -> None:
        self._runner.bind_thread()
        if self._settings.cpu_threads is not None:
            torch.set_num_threads(self._settings.cpu_threads)
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._drain_inbox()
                    if self._scheduler.has_work and not self._stopping:
                        self._step_started = time.monotonic()
                        self._step()
                        self._step_started = None
        except BaseException as error:
            self._failure = error
            _log.exception("the engine thread failed")
        finally:
            self._fail_all()

    def _drain_inbox(self) -> None:
        """Apply new requests and aborts; block until one arrives if there is nothing to compute."""
        while True:
            idle = not self._scheduler.has_work
            if idle:
                self._publish_queue()
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return
            if message is None:
                return
            if isinstance(message, Request):
                self._add_request(message)
            else:
                self._abort_request(message)
            self._outputs.flush()

    def _add_request(self, request: Request) -> None:
        if request.id in self._requests:
            self._admission.release(request.num_sequences)
            error = InvalidRequest("A request with this id is in progress; use another id.")
            self._outputs.add(request.outputs, error)
            return
        self._requests[request.id] = request
        self._counters.requests += 1
        for sequence in request.sequences:
            self._scheduler.add(sequence)

    def _abort_request(self, abort: _Abort) -> None:
        """Finish what is left of a request; no effect if it has completed."""
        request = self._requests.get(abort.request_id)
        if request is None or abort.request not in (None, request):
            return
        self._counters.aborted += 1
        for sequence in request.search.live if request.search else ():
            self._scheduler.finish(sequence, "abort")
        for answer in request.answers:
            if answer.sequence.finish_reason is None:
                self._emit(request, answer, (), (), "abort")

    def _fail_request(self, request: Request, error: MiniGPT4Error) -> None:
        """End a request with an error after it has started."""
        for answer in request.answers:
            if answer.sequence.finish_reason is None:
                self._scheduler.finish(answer.sequence, "abort")
        self._outputs.add(request.outputs, error)
        self._complete_request(request)

    def _step(self) -> None:
        chunks = self._scheduler.schedule()
        assert chunks, "the scheduler has work but scheduled nothing"
        self._publish_queue()
        self._mark_admitted(chunks)
        self._encode_images(chunks)
        for source, target in self._scheduler.copies:
            self._runner.copy_block(source, target)
        logits = self._runner.step(chunks, self._image_features)
        sequences = [chunk.sequence for chunk in chunks if chunk.samples]
        self._count_step(chunks, len(sequences))
        self._scheduler.advance(chunks)
        searching = [i for i, sequence in enumerate(sequences) if sequence.sampling.beams > 1]
        if searching:
            self._advance_searches(logits[searching], [sequences[i] for i in searching])
            others = [i for i, sequence in enumerate(sequences) if sequence.sampling.beams == 1]
            logits = logits[others]
            sequences = [sequences[i] for i in others]
        if sequences:
            forbidden = self._forbidden_tokens(sequences, logits)
            sampled_tokens = sample(logits, sequences, self._eos_ids, forbidden=forbidden)
            for sequence, sampled in zip(sequences, sampled_tokens, strict=True):
                self._append_token(sequence, sampled)
        self._outputs.flush()

    def _publish_queue(self) -> None:
        self._admission.publish_queue(sequence.request_id for sequence in self._scheduler.waiting)

    def _mark_admitted(self, chunks: list[ScheduledChunk]) -> None:
        now = time.monotonic()
        for chunk in chunks:
            request = self._requests[chunk.sequence.request_id]
            if request.admitted is None:
                request.admitted = now

    def _encode_images(self, chunks: list[ScheduledChunk]) -> None:
        """Encode all images that the chunks read and that have no features yet, in one call."""
        missing: dict[ImageEntry, None] = {}
        requests: set[Request] = set()
        for chunk in chunks:
            sequence = chunk.sequence
            if self._image_token_id in sequence.token_ids[chunk.start : min(chunk.end, sequence.num_prompt)]:
                request = self._requests[sequence.request_id]
                requests.add(request)
                missing |= dict.fromkeys(entry for entry in request.images if entry.features is None)
        if not missing:
            return
        started = time.monotonic()
        encoded = self._runner.encode([entry.pixels.result() for entry in missing])
        for entry, features in zip(missing, encoded, strict=True):
            self._images.put(entry, features)
        self._counters.image_encodes += len(missing)
        for request in requests:
            request.encode_s += time.monotonic() - started

    def _image_features(self, chunk: ScheduledChunk) -> list[torch.Tensor]:
        images = self._requests[chunk.sequence.request_id].images
        return [entry.features for entry in images if entry.features is not None]

    def _forbidden_tokens(self, sequences: list[Sequence], logits: torch.Tensor) -> torch.Tensor | None:
        """Tokens that grammars forbid, ``[S, vocabulary]``; None if no sequence has a grammar."""
        grammars = [self._requests[each.request_id].answers[each.index].grammar for each in sequences]
        if not any(grammars):
            return None
        likeliest = logits.argmax(dim=-1).tolist()
        wants_end = []
        must_end = []
        for sequence, token in zip(sequences, likeliest, strict=True):
            sampling = sequence.sampling
            wants_end.append(token in self._grammars.end_tokens(sampling.json_stop))
            left = sampling.max_tokens - sequence.num_output
            must_end.append(left <= min(_JSON_END_TOKENS, sampling.max_tokens // 2))
        return self._grammars.forbidden(grammars, logits.device, wants_end=wants_end, must_end=must_end)

    def _count_step(self, chunks: list[ScheduledChunk], sampled: int) -> None:
        counters = self._counters
        counters.steps += 1
        counters.generated_tokens += sampled
        if sampled > 0:
            counters.decode_steps += 1
        for chunk in chunks:
            counters.prefill_tokens += max(0, min(chunk.end, chunk.sequence.num_prompt) - chunk.start)

    def _append_token(self, sequence: Sequence, sampled: SampledToken) -> None:
        """Append a sampled token to its answer and finish the answer if it ends there."""
        request = self._requests.get(sequence.request_id)
        if request is None:
            return  # failed in this step, because of another of its answers
        sampling = sequence.sampling
        sequence.append(sampled.token)
        if request.first_token is None:
            request.first_token = time.monotonic()
        answer = request.answers[sequence.index]
        ended = sampled.token in self._eos_ids and not sampling.ignore_eos
        if answer.grammar is not None:
            if not ended:
                answer.grammar.accept(sampled.token)
            if answer.grammar.failed:
                self._fail_request(request, InvalidRequest(_SCHEMA_TOO_COMPLEX, param="response_format"))
                return
            ended = ended or answer.grammar.finished
        reason: FinishReason | None = None
        if ended:
            reason = "stop"
        elif sequence.num_output >= sampling.max_tokens:
            reason = "length"
        logprobs: tuple[TokenLogprob, ...] = ()
        if sampled.logprob is not None and sampled.token not in self._eos_ids:  # which is never part of the answer
            logprobs = (self._token_logprob(sampled, sampled.logprob, first=sequence.num_output == 1),)
        self._emit(request, answer, (sampled.token,), logprobs, reason)

    def _emit(
        self,
        request: Request,
        answer: Answer,
        ids: Iterable[int],
        logprobs: Iterable[TokenLogprob],
        reason: FinishReason | None,
    ) -> None:
        """Add tokens to an answer; output a delta if the answer ends or its last delta is old enough."""
        reason = answer.append(ids, logprobs, reason)
        if reason is not None:
            self._scheduler.finish(answer.sequence, reason)
            if request.finished:
                self._complete_request(request)
        interval = self._outputs.min_interval(self._admission.accepted)
        if reason is not None or (answer.pending_text and time.monotonic() - answer.emitted_at >= interval):
            self._outputs.add(request.outputs, request.take_delta(answer))

    def _token_logprob(self, sampled: SampledToken, logprob: float, *, first: bool) -> TokenLogprob:
        """The token and its alternatives as bytes of the answer, whose ``first`` token has no leading space."""

        def as_bytes(token: int) -> bytes:
            data = self._tokenizer.prompt_tokenizer.token_bytes(token)
            return data.removeprefix(b" ") if first else data

        return TokenLogprob(as_bytes(sampled.token), logprob, tuple((as_bytes(token), p) for token, p in sampled.top))

    def _advance_searches(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        """Advance beam searches whose hypotheses are all computed; answers are output when their search ends.

        Args:
            logits: ``[S, vocabulary]``, a row for each sequence.
        """
        for sequence, candidates in zip(sequences, beam_candidates(logits, sequences, self._eos_ids), strict=True):
            request = self._requests[sequence.request_id]
            search = request.search
            assert search is not None
            if not search.offer(sequence, candidates):
                continue
            if request.first_token is None:
                request.first_token = time.monotonic()
            parents = search.live
            scores = {self._scheduler.fork(parent, token): score for parent, token, score in search.select()}
            for parent in parents:
                self._scheduler.finish(parent, "stop")
            if scores:
                search.replace_live(scores)
                continue
            for answer, best in zip(request.answers, search.finished, strict=False):
                answer.sequence.cached_tokens = parents[0].cached_tokens
                answer.sequence.token_ids += best.ids
                self._emit(request, answer, best.ids, (), best.reason)

    def _complete_request(self, request: Request) -> None:
        """Release a request's capacity; none of it is computed from now on."""
        self._admission.release(request.num_sequences)
        del self._requests[request.id]
        if request.admitted is not None:
            self._admission.record_completion(time.monotonic() - request.admitted)

    def _fail_all(self) -> None:
        """End all requests, those in the inbox included, with ``EngineFailed``."""
        requests = list(self._requests.values())
        self._requests.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, Request):
                    requests.append(message)
        for request in requests:
            self._outputs.add(request.outputs, EngineFailed(_STOPPED))
        self._outputs.flush()


def _read_eos_ids(model: MiniGPT4ForConditionalGeneration, processor: MiniGPT4Processor) -> list[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = processor.tokenizer.eos_token_id
    return list(eos) if isinstance(eos, list | tuple) else [eos]
