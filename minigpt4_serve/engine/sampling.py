"""How the next token is chosen for a whole batch, on the device."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch

from minigpt4_serve.protocol import SamplingParams

__all__ = ["SampledToken", "beam_candidates", "sample"]

_GREEDY = 1e-5


class Row(Protocol):
    """What ``sample`` needs to know of a sequence."""

    sampling: SamplingParams
    seed: int

    @property
    def output_ids(self) -> Rows[int]: ...
    @property
    def num_output(self) -> int: ...


@dataclass(frozen=True)
class SampledToken:
    """A chosen token. ``top`` holds (token, log probability), best first, if asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits: torch.Tensor, rows: Rows[Row], eos_ids: Rows[int], *, forbidden: torch.Tensor | None = None
) -> list[SampledToken]:
    """One token for each row of ``logits`` ``[S, vocabulary]``, any float type, on any device.

    ``forbidden``, of the same shape, marks tokens that can't be chosen; log probabilities stay the model's own.

    A row depends on its own logits, rules, seed and position only: one uniform number, drawn from (seed, position), is
    looked up in the row's cumulative distribution.
    """
    scores = logits.float()
    rules = [row.sampling for row in rows]
    reported = [i for i, rule in enumerate(rules) if rule.logprobs]
    plain = torch.log_softmax(scores[reported], dim=-1) if reported else None  # [R, vocabulary]
    scores = _penalise(scores, rows, eos_ids)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, float("-inf"))
    tokens = scores.argmax(dim=-1)  # [S]
    drawing = [i for i, rule in enumerate(rules) if rule.temperature > _GREEDY]
    if drawing:
        tokens[drawing] = _draw(scores[drawing], [rows[i] for i in drawing])
    chosen = tokens.tolist()
    choices = [SampledToken(token) for token in chosen]
    if plain is not None:
        width = max(1, *(rules[i].top_logprobs for i in reported))
        values, ids = (t.tolist() for t in plain.topk(width, dim=-1))
        own = plain.gather(1, tokens[reported].unsqueeze(1)).squeeze(1).tolist()
        for k, i in enumerate(reported):
            top = tuple(zip(ids[k], values[k], strict=True))[: rules[i].top_logprobs]
            choices[i] = SampledToken(chosen[i], own[k], top)
    return choices


def beam_candidates(logits: torch.Tensor, rows: Rows[Row], eos_ids: Rows[int]) -> list[list[tuple[int, float]]]:
    """For beam search: each row's likeliest tokens with their log probabilities, as many as could be needed."""
    scores = _penalise(torch.log_softmax(logits.float(), dim=-1), rows, eos_ids)
    width = max(row.sampling.beams for row in rows) * max(2, 1 + len(eos_ids))
    values, ids = (t.tolist() for t in scores.topk(min(width, scores.shape[1]), dim=-1))
    return [list(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]


def _penalise(scores: torch.Tensor, rows: Rows[Row], eos_ids: Rows[int]) -> torch.Tensor:
    """Repetition penalty and minimum length, for the rows that want them; ``scores`` may be changed."""
    strict = [i for i, row in enumerate(rows) if row.sampling.repetition_penalty != 1 and row.num_output]
    if strict:
        seen = [list(rows[i].output_ids) for i in strict]
        longest = max(map(len, seen))
        # Filled up with an id that is there already: all writes to one place are equal.
        ids = torch.tensor([own + own[:1] * (longest - len(own)) for own in seen], device=scores.device)
        factor = torch.tensor([[rows[i].sampling.repetition_penalty] for i in strict], device=scores.device)
        mine = scores[strict]
        old = mine.gather(1, ids)
        scores[strict] = mine.scatter(1, ids, torch.where(old > 0, old / factor, old * factor))
    endless = [i for i, row in enumerate(rows) if row.sampling.ignore_eos or row.num_output < row.sampling.min_tokens]
    for eos in eos_ids if endless else ():
        scores[endless, eos] = float("-inf")
    return scores


def _draw(scores: torch.Tensor, rows: Rows[Row]) -> torch.Tensor:
    """Tokens ``[D]`` drawn from the filtered distributions of ``scores`` ``[D, vocabulary]``."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=scores.device).unsqueeze(1)  # [D, 1]

    rules = [row.sampling for row in rows]
    ordered, ids = (scores / column([rule.temperature for rule in rules])).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ordered.shape[1], device=scores.device)  # [vocabulary]
    ordered = ordered.masked_fill(rank >= column([rule.top_k or ordered.shape[1] for rule in rules]), float("-inf"))
    probs = ordered.softmax(dim=-1)
    # A token stays while the mass before it is below top_p: the first one always does.
    outside = probs.cumsum(dim=-1) - probs >= column([rule.top_p for rule in rules])
    outside[:, 0] = False
    outside |= probs < probs[:, :1] * column([rule.min_p for rule in rules])
    mass = probs.masked_fill(outside, 0).cumsum(dim=-1)
    target = column([_uniform(row.seed, row.num_output) for row in rows]) * mass[:, -1:]
    # The first place whose cumulative mass exceeds the target; rounding may put it past the end.
    place = torch.searchsorted(mass, target, right=True).clamp(max=ordered.shape[1] - 1)
    kept = (~outside).sum(dim=-1, keepdim=True)
    return ids.gather(1, torch.minimum(place, kept - 1)).squeeze(1)


def _uniform(seed: int, position: int) -> float:
    """A uniform number in [0, 1) from (seed, position): SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
