"""Sampling of the next token for a whole batch, on the device of its logits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from minigpt4_serve.protocol import SamplingParams

__all__ = ["SampledToken", "beam_candidates", "sample"]

_GREEDY = 1e-5  # temperatures up to here are greedy: divided by less, scores overflow


class Row(Protocol):
    """What sampling reads of a sequence."""

    sampling: SamplingParams
    seed: int

    @property
    def output_ids(self) -> Sequence[int]: ...
    @property
    def num_output(self) -> int: ...


@dataclass(frozen=True)
class SampledToken:
    """A sampled token.

    Attributes:
        logprob: its log probability, if the request reports log probabilities.
        top: (token, log probability) of the likeliest tokens, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits: torch.Tensor, rows: Sequence[Row], eos_ids: Sequence[int], *, forbidden: torch.Tensor | None = None
) -> list[SampledToken]:
    """One token for each row of ``logits``.

    A token depends on the logits, sampling parameters, seed and position of its own row only: one uniform number,
    derived from seed and position, is looked up in the row's cumulative distribution.

    Args:
        logits: ``[S, vocabulary]``, any float type, on any device.
        forbidden: same shape; True for tokens that can't be sampled. Log probabilities are reported without it.
    """
    scores = logits.float()
    reported = [i for i, row in enumerate(rows) if row.sampling.logprobs]
    logprobs = torch.log_softmax(scores[reported], dim=-1) if reported else None  # [R, vocabulary]
    scores = _apply_penalties(scores, rows, eos_ids)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, float("-inf"))
    tokens = scores.argmax(dim=-1)  # [S]
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > _GREEDY]
    if drawn:
        tokens[drawn] = _draw(scores[drawn], [rows[i] for i in drawn])
    token_ids = tokens.tolist()
    sampled = [SampledToken(token) for token in token_ids]
    if logprobs is not None:
        width = max(1, *(rows[i].sampling.top_logprobs for i in reported))
        top_values, top_ids = (part.tolist() for part in logprobs.topk(width, dim=-1))
        values = logprobs.gather(1, tokens[reported].unsqueeze(1)).squeeze(1).tolist()
        for k, i in enumerate(reported):
            top = tuple(zip(top_ids[k], top_values[k], strict=True))[: rows[i].sampling.top_logprobs]
            sampled[i] = SampledToken(token_ids[i], values[k], top)
    return sampled


def beam_candidates(logits: torch.Tensor, rows: Sequence[Row], eos_ids: Sequence[int]) -> list[list[tuple[int, float]]]:
    """For beam search: each row's likeliest tokens with their log probabilities, best first.

    There are enough of them to continue all beams even if every end-of-sequence token is among the best.
    """
    scores = _apply_penalties(torch.log_softmax(logits.float(), dim=-1), rows, eos_ids)
    width = max(row.sampling.beams for row in rows) * max(2, 1 + len(eos_ids))
    values, ids = (part.tolist() for part in scores.topk(min(width, scores.shape[1]), dim=-1))
    return [list(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]


def _apply_penalties(scores: torch.Tensor, rows: Sequence[Row], eos_ids: Sequence[int]) -> torch.Tensor:
    """Apply penalties and minimum length where rows have them; may modify ``scores`` in place."""
    penalized = [i for i, row in enumerate(rows) if row.num_output and _has_penalty(row.sampling)]
    if penalized:
        scores[penalized] = _penalize(scores[penalized], [rows[i] for i in penalized])
    no_eos = [i for i, row in enumerate(rows) if row.sampling.ignore_eos or row.num_output < row.sampling.min_tokens]
    for eos in eos_ids if no_eos else ():
        scores[no_eos, eos] = float("-inf")
    return scores


def _has_penalty(sampling: SamplingParams) -> bool:
    penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return penalties != (1, 0, 0)


def _penalize(scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Scores ``[P, vocabulary]`` of rows that have output, with their penalties: repetition, frequency, presence."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=scores.device).unsqueeze(1)  # [P, 1]

    params = [row.sampling for row in rows]
    counts = [Counter(row.output_ids) for row in rows]
    longest = max(map(len, counts))
    # Padded with an id that the row holds already: repeated writes to one position write the same value.
    padded = [[*count.items(), *[next(iter(count.items()))] * (longest - len(count))] for count in counts]
    ids, occurrences = torch.tensor(padded, device=scores.device).unbind(-1)  # [P, longest] each
    selected = scores.gather(1, ids)
    repetition = column([each.repetition_penalty for each in params])
    selected = torch.where(selected > 0, selected / repetition, selected * repetition)
    selected = selected - occurrences * column([each.frequency_penalty for each in params])
    selected = selected - column([each.presence_penalty for each in params])
    return scores.scatter(1, ids, selected)


def _draw(scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Tokens ``[D]`` drawn from the filtered distributions of ``scores`` ``[D, vocabulary]``."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=scores.device).unsqueeze(1)  # [D, 1]

    params = [row.sampling for row in rows]
    scaled = scores / column([each.temperature for each in params])
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ordered.shape[1], device=scores.device)  # [vocabulary]
    ordered = ordered.masked_fill(rank >= column([each.top_k or ordered.shape[1] for each in params]), float("-inf"))
    probs = ordered.softmax(dim=-1)
    # A token is kept while the mass before it is below top_p; the first one always is.
    removed = probs.cumsum(dim=-1) - probs >= column([each.top_p for each in params])
    removed[:, 0] = False
    removed |= probs < probs[:, :1] * column([each.min_p for each in params])
    mass = probs.masked_fill(removed, 0).cumsum(dim=-1)
    target = column([_uniform(row.seed, row.num_output) for row in rows]) * mass[:, -1:]
    # The first index whose cumulative mass exceeds the target; rounding may put it past the last kept token.
    index = torch.searchsorted(mass, target, right=True).clamp(max=ordered.shape[1] - 1)
    kept = (~removed).sum(dim=-1, keepdim=True)
    return ids.gather(1, torch.minimum(index, kept - 1)).squeeze(1)


def _uniform(seed: int, position: int) -> float:
    """A uniform number in [0, 1) from (seed, position): SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
