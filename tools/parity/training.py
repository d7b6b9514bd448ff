"""Losses: of training batches, with the projection's gradients, and of answer candidates."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from minigpt4_serve.model.supervision import IGNORED, Exchange, encode_supervised, pad_supervised
from tools.parity.comparison import Comparison, exact_matches, largest_error
from tools.parity.subject import Subject

__all__ = ["candidate_ranks", "training_losses"]

LOSS_LIMIT = 1e-5

_INSTRUCTION = "[INST] {} [/INST]"


def training_losses(subject: Subject) -> Iterator[Comparison]:
    """Labels, masks, losses and the projection's gradients of training batches."""
    batches = subject.expected.get("losses", {})
    if not batches:
        return
    pairs: list[tuple[Any, Any]] = []
    loss_error = gradient_error = 0.0
    projection = subject.model.language_projection
    for name, recorded in batches.items():
        inputs = _collate(subject, recorded)
        stored = {key: subject.language[f"loss.{name}.{key}"] for key in ("labels", "attention_mask")}
        # The original pads to its longest prompt plus its longest answer, which may be wider than any row.
        gap = stored["labels"].shape[1] - inputs["labels"].shape[1]
        pairs += [
            (pad(inputs["labels"], (0, gap), value=IGNORED).tolist(), stored["labels"].tolist()),
            (pad(inputs["attention_mask"], (0, gap)).tolist(), stored["attention_mask"].tolist()),
        ]
        projection.requires_grad_(True)
        loss = subject.model(**inputs, pixel_values=subject.pixels(recorded["images"])).loss
        loss.backward()
        loss_error = max(loss_error, abs(loss.item() - recorded["loss"]))
        for part in ("weight", "bias"):
            theirs = subject.language[f"loss.{name}.grad.llama_proj.{part}"]
            gradient_error = max(gradient_error, largest_error(getattr(projection, part).grad, theirs))
        projection.zero_grad()
        projection.requires_grad_(False)
    yield exact_matches("labels and masks", pairs)
    yield Comparison("losses", loss_error, LOSS_LIMIT)
    yield Comparison("projection gradients", gradient_error, LOSS_LIMIT)


def _collate(subject: Subject, recorded: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A recorded training batch as the model's inputs, padded."""
    end = recorded["end_sym"]
    max_answer_tokens = recorded["max_txt_len"]
    rows = [
        encode_supervised(subject.processor, exchanges, end=end, max_answer_tokens=max_answer_tokens)
        for exchanges in _exchanges(recorded)
    ]
    return pad_supervised(rows, pad_id=subject.processor.tokenizer.pad_token_id)


def _exchanges(recorded: dict[str, Any]) -> list[list[Exchange]]:
    """A recorded training batch as questions and answers in the variant's training template."""
    samples = recorded["samples"]
    if "conv_q" in samples:
        chats = zip(samples["conv_q"], samples["conv_a"], samples["connect_sym"], strict=True)
        return [
            [
                Exchange(_INSTRUCTION.format(question), answer)
                for question, answer in zip(questions.split(separator), answers.split(separator), strict=True)
            ]
            for questions, answers, separator in chats
        ]
    if "instruction_input" in samples:
        pairs = zip(samples["instruction_input"], samples["answer"], strict=True)
        return [[Exchange(_INSTRUCTION.format(question), answer)] for question, answer in pairs]
    # The first stage shows the image without words around it.
    prompt = recorded["picked_instruction"] or "<ImageHere>"
    return [[Exchange(prompt, answer)] for answer in samples["answer"]]


@torch.inference_mode()
def candidate_ranks(subject: Subject) -> Iterator[Comparison]:
    """Losses and ranks of answer candidates; the original averages over the whole padded length."""
    recorded = subject.expected.get("multi_select")
    if recorded is None:
        return
    instructions = recorded["instructions"]
    counts = recorded["num_cand"]
    images = recorded.get("images", range(len(instructions)))
    end = recorded.get("end_sym", subject.processor.variant.answer_end)
    error = 0.0
    losses: list[dict[int, float]] = [{} for _ in instructions]  # of each instruction, by candidate
    for number, candidates in enumerate(recorded["candidates"]):
        rows = [
            encode_supervised(subject.processor, [Exchange(*exchange)], end=end, max_answer_tokens=10**6)
            for exchange in zip(instructions, candidates, strict=True)
        ]
        answer_lengths = [len(labels) - labels.count(IGNORED) for _, labels in rows]
        longest_prompt = max(len(ids) - length for (ids, _), length in zip(rows, answer_lengths, strict=True))
        padded = longest_prompt + max(answer_lengths)
        for row, (image, (ids, labels)) in enumerate(zip(images, rows, strict=True)):
            if number >= counts[row]:
                continue  # the shorter lists of candidates are filled up
            logits = subject.model(torch.tensor([ids]), pixel_values=subject.pixels([image])).logits[0, :-1]
            loss = cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum").item() / (padded - 1)
            error = max(error, abs(loss - recorded["losses"][row][number]))
            losses[row][number] = loss
    ours = [sorted(by_candidate, key=by_candidate.__getitem__) for by_candidate in losses]
    theirs = [[n for n in ranks if n in found] for ranks, found in zip(recorded["ranks"], losses, strict=True)]
    yield Comparison("candidate losses", error, LOSS_LIMIT)
    yield exact_matches("candidate ranks", list(zip(ours, theirs, strict=True)))
