"""The plain ways to answer that the engine is compared with: ``generate``, and transformers' continuous batching."""

import time
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from minigpt4_serve.images import decode_image
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4ImageProcessor
from tools.bench.measurement import Measurement
from tools.bench.workload import BenchRequest

__all__ = ["ContinuousBatching", "generate_batch", "run_generate"]

_RESULT_TIMEOUT_S = 120
_STAND_IN_TOKEN = 5  # replaces image tokens, for an engine that takes ids only


class _StepTimes(StoppingCriteria):
    """Records when each step of ``generate`` is done; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate_batch(
    model: MiniGPT4ForConditionalGeneration, measured: Measurement, batch: list[BenchRequest], arrived: float
) -> list[float]:
    """One call of ``generate``, padded on the left. Returns the times at which its steps were done."""
    to_tensor = MiniGPT4ImageProcessor(model.config.vision_config.image_size).to_tensor
    device = model.device
    pixels = torch.stack([to_tensor(decode_image(one.image.data)) for one in batch]).to(device, model.dtype)
    longest_prompt = max(len(one.ids) for one in batch)
    longest_answer = max(one.answer_tokens for one in batch)
    ids = [[0] * (longest_prompt - len(one.ids)) + list(one.ids) for one in batch]
    mask = [[0] * (longest_prompt - len(one.ids)) + [1] * len(one.ids) for one in batch]
    steps = _StepTimes()
    model.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        pixel_values=pixels,
        max_new_tokens=longest_answer,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([steps]),
    )
    for one in batch:
        measured.add_latencies(arrived, steps.times[: one.answer_tokens])
    measured.tokens += sum(one.answer_tokens for one in batch)
    measured.prefill_tokens += sum(len(one.ids) for one in batch)
    measured.decode_steps += longest_answer
    return steps.times


def run_generate(
    model: MiniGPT4ForConditionalGeneration, measured: Measurement, requests: list[BenchRequest], batch_size: int
) -> None:
    """All requests arrive at once and are answered in their order, ``batch_size`` at a time."""
    arrived = time.perf_counter()
    for start in range(0, len(requests), batch_size):
        generate_batch(model, measured, requests[start : start + batch_size], arrived)
    measured.seconds += time.perf_counter() - arrived


class ContinuousBatching:
    """transformers' continuous batching of the LLM alone.

    It takes ids only: words replace the image tokens, and vision costs nothing, which is in its favor.
    """

    def __init__(self, model: MiniGPT4ForConditionalGeneration) -> None:
        self._model = model
        self._manager: Any = None
        self._requests = 0

    def run(self, measured: Measurement, requests: list[BenchRequest]) -> None:
        """Answer all requests.

        Raises:
            Exception: whatever transformers raises; not every version runs every model on every device.
        """
        if self._manager is None:  # once: allocating its cache takes longer than all the answers
            from transformers import ContinuousBatchingConfig, GenerationConfig

            generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
            sizes = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=1024)
            self._manager = self._model.language_model.init_continuous_batching(generation, sizes)
            self._manager.start()
        began = time.perf_counter()
        pending: set[str] = set()
        for one in requests:
            ids = [_STAND_IN_TOKEN if token == self._model.config.image_token_id else token for token in one.ids]
            self._requests += 1
            request_id = f"r{self._requests}"
            pending.add(request_id)
            self._manager.add_request(ids, request_id=request_id, max_new_tokens=one.answer_tokens)
        while pending:
            result = self._manager.get_result(timeout=_RESULT_TIMEOUT_S)
            if result is None:
                raise RuntimeError(f"it stopped, or gave no result within {_RESULT_TIMEOUT_S} s")
            if result.is_finished() and result.request_id in pending:
                pending.discard(result.request_id)
                if result.error is not None:
                    raise RuntimeError(result.error)
                measured.tokens += len(result.generated_tokens)
        measured.seconds += time.perf_counter() - began
        measured.prefill_tokens += sum(len(one.ids) for one in requests)

    def close(self) -> None:
        """Stop its thread."""
        if self._manager is not None:
            self._manager.stop(block=True)
