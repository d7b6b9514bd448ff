"""Questions with the answers a model shall learn, as ids and labels. Knows tokens, no training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minigpt4_serve.model.processing_minigpt4 import MiniGPT4Processor

__all__ = ["IGNORED", "Exchange", "encode_supervised", "pad_supervised"]

IGNORED = -100
"""Label of positions without a loss."""


@dataclass(frozen=True)
class Exchange:
    """A prompt (with ``<ImageHere>`` for pictures, in its training template) and its answer."""

    prompt: str
    answer: str


def encode_supervised(
    processor: MiniGPT4Processor, exchanges: Sequence[Exchange], *, end: str, max_answer_tokens: int
) -> tuple[list[int], list[int]]:
    """One conversation: (ids, labels), equally long; prompts are labelled ``IGNORED``.

    Args:
        exchanges: in order; every one after the first is opened by ``<s>``, as v2 was trained.
        end: follows each answer and is learned: ``###``, ``</s>`` or, in the first stage, a line break.
        max_answer_tokens: longer answers are cut, and lose their end.
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, exchange in enumerate(exchanges):
        prompt = processor.encode_prompt(exchange.prompt)
        if number:
            # Its own beginning-of-sequence id, then the <s> that the later questions are written with.
            prompt = processor.tokenizer.encode_segment("<s>" + exchange.prompt)
        answer = processor.tokenizer.encode_segment(exchange.answer + end)[:max_answer_tokens]
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
    return ids, labels


def pad_supervised(rows: Sequence[tuple[list[int], list[int]]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Conversations as one batch ``[B, T]``, padded on the right: ``input_ids``, ``attention_mask``, ``labels``."""
    longest = max(len(ids) for ids, _ in rows)
    gaps = [longest - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([ids + [pad_id] * gap for (ids, _), gap in zip(rows, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(r[0]) + [0] * gap for r, gap in zip(rows, gaps, strict=True)]),
        "labels": torch.tensor([labels + [IGNORED] * gap for (_, labels), gap in zip(rows, gaps, strict=True)]),
    }
