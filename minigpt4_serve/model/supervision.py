"""Training examples as token ids and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minigpt4_serve.model.processing_minigpt4 import MiniGPT4Processor

__all__ = ["IGNORED", "Exchange", "encode_supervised", "pad_supervised"]

IGNORED = -100
"""Label of positions that don't contribute to the loss."""


@dataclass(frozen=True)
class Exchange:
    """A prompt in its training template, with ``<ImageHere>`` for images, and the answer to learn."""

    prompt: str
    answer: str


def encode_supervised(
    processor: MiniGPT4Processor, exchanges: Sequence[Exchange], *, end: str, max_answer_tokens: int
) -> tuple[list[int], list[int]]:
    """One conversation as (ids, labels) of equal length; prompts are labeled ``IGNORED``.

    Args:
        exchanges: in order; each after the first starts with ``<s>``, as v2 was trained.
        end: string that follows each answer and is part of its labels: ``###``, ``</s>`` or, in the first training
            stage, a line break.
        max_answer_tokens: longer answers are truncated, with their ``end``.
    """
    ids: list[int] = []
    labels: list[int] = []
    for exchange in exchanges:
        if ids:
            prompt = processor.tokenizer.encode_segment("<s>" + exchange.prompt)
        else:
            prompt = processor.encode_prompt(exchange.prompt)
        answer = processor.tokenizer.encode_segment(exchange.answer + end)[:max_answer_tokens]
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
    return ids, labels


def pad_supervised(rows: Sequence[tuple[list[int], list[int]]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Conversations as one batch ``[B, T]``, padded on the right: ``input_ids``, ``attention_mask``, ``labels``."""
    width = max(len(ids) for ids, _ in rows)
    gaps = [width - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([ids + [pad_id] * gap for (ids, _), gap in zip(rows, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(r[0]) + [0] * gap for r, gap in zip(rows, gaps, strict=True)]),
        "labels": torch.tensor([labels + [IGNORED] * gap for (_, labels), gap in zip(rows, gaps, strict=True)]),
    }
