"""Beam search: which hypotheses are continued, and when the search ends.

The rules are those of transformers' ``generate(num_beams=…)`` with ``early_stopping=False``; so are the answers.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.model.stopping import reach
from minigpt4_serve.protocol import FinishReason

__all__ = ["BeamSearch", "Hypothesis"]


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer. ``score`` is its log probability divided by length to the power of the length penalty."""

    score: float
    ids: tuple[int, ...]
    reason: FinishReason


class BeamSearch:
    """One request's hypotheses.

    Args:
        leader: the sequence that computes the prompt; all hypotheses are forked from it.
        eos_ids: tokens that end an answer.
        decode: text of token ids, in which stop strings are searched.

    Attributes:
        finished: the best finished hypotheses, best first.
    """

    def __init__(self, leader: Sequence, eos_ids: Collection[int], decode: Callable[[list[int]], str]) -> None:
        self.finished: list[Hypothesis] = []
        self._sampling = leader.sampling
        self._scores = {leader: 0.0}  # log probability of each live hypothesis
        self._offers: dict[Sequence, list[tuple[int, float]]] = {}
        self._eos_ids = () if leader.sampling.ignore_eos else eos_ids
        self._decode = decode
        self._reach = reach(leader.sampling.stop)

    @property
    def live(self) -> list[Sequence]:
        """The unfinished hypotheses."""
        return list(self._scores)

    def offer(self, sequence: Sequence, candidates: list[tuple[int, float]]) -> bool:
        """Add a hypothesis' likeliest next tokens with their log probabilities.

        Returns True once all live hypotheses have theirs, so that ``select`` can be called.
        """
        if sequence not in self._scores:
            return False  # preempted after its offer, recomputed, and continued already
        self._offers[sequence] = candidates
        # A hypothesis preempted after its offer must be recomputed before it can be continued.
        return all(other in self._offers and other.num_computed == len(other) for other in self._scores)

    def select(self) -> list[tuple[Sequence, int, float]]:
        """(hypothesis, next token, log probability) of those to continue; empty when the search is over."""
        beams = self._sampling.beams
        penalty = self._sampling.length_penalty
        candidates = [
            (self._scores[sequence] + logprob, sequence, token)
            for sequence, offers in self._offers.items()
            for token, logprob in offers
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        length = candidates[0][1].num_output + 1
        selected: list[tuple[Sequence, int, float]] = []
        # Enough candidates to continue all beams even if the best ones all end here.
        for rank, (score, sequence, token) in enumerate(candidates[: beams * max(2, 1 + len(self._eos_ids))]):
            ids = [*sequence.output_ids, token]
            stops = token in self._eos_ids or self._contains_stop(ids)
            if stops or length == self._sampling.max_tokens:
                if rank < beams:
                    reason: FinishReason = "stop" if stops else "length"
                    self.finished.append(Hypothesis(score / length**penalty, tuple(ids), reason))
            elif len(selected) < beams:
                selected.append((sequence, token, score))
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[:beams]
        enough = len(self.finished) == beams
        if not selected or (enough and selected[0][2] / length**penalty <= self.finished[-1].score):
            return []
        return selected

    def replace_live(self, scores: dict[Sequence, float]) -> None:
        """Replace the live hypotheses with these forks of them and their log probabilities."""
        self._scores = scores
        self._offers = {}

    def _contains_stop(self, ids: list[int]) -> bool:
        # Stop strings in the text of earlier tokens don't count, as in the Detokenizer.
        counted = ids[max(0, self._sampling.min_tokens - 1) :]
        text = self._decode(counted[-self._reach :]) if self._reach else ""
        return any(string in text for string in self._sampling.stop)
