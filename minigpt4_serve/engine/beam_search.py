"""Beam search: which hypotheses live on, and when none can improve. Knows sequences and scores; touches no tensor.

The rules are those of transformers' ``generate(num_beams=…)`` with ``early_stopping=False``, so the answers are, too.
"""

from collections.abc import Callable, Collection
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from minigpt4_serve.engine.sequence import Sequence
from minigpt4_serve.model.stopping import reach
from minigpt4_serve.protocol import FinishReason

__all__ = ["BeamSearch", "Hypothesis"]


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer. ``score`` is its log probability divided by its length to the power of the length penalty."""

    score: float
    ids: tuple[int, ...]
    reason: FinishReason


class BeamSearch:
    """One request's hypotheses: those still growing, each a sequence of its own, and the best finished ones.

    Args:
        leader: reads the prompt; all hypotheses descend from it.
        eos_ids: tokens that end an answer.
        decode: text of ids, in which stop strings are looked for.
    """

    def __init__(self, leader: Sequence, eos_ids: Collection[int], decode: Callable[[list[int]], str]) -> None:
        self.finished: list[Hypothesis] = []  # best first
        self._rules = leader.sampling
        self._scores = {leader: 0.0}  # log probability of each that grows
        self._offers: dict[Sequence, Ids[tuple[int, float]]] = {}
        self._eos_ids = () if leader.sampling.ignore_eos else eos_ids
        self._decode, self._reach = decode, reach(leader.sampling.stop)

    @property
    def live(self) -> list[Sequence]:
        """The hypotheses that grow."""
        return list(self._scores)

    def offer(self, sequence: Sequence, beam_candidates: Ids[tuple[int, float]]) -> bool:
        """A hypothesis' likeliest next tokens with their log probabilities; True when all hypotheses have theirs."""
        if sequence not in self._scores:
            return False  # computed again after it had offered, and continued already
        self._offers[sequence] = beam_candidates
        # One that lost its blocks since it offered has to be computed again before it can be continued.
        return all(other in self._offers and other.num_computed == len(other) for other in self._scores)

    def select(self) -> list[tuple[Sequence, int, float]]:
        """(hypothesis, next token, log probability) of those that live on; none when the search is over."""
        beams, penalty = self._rules.beams, self._rules.length_penalty
        candidates = [
            (self._scores[sequence] + value, sequence, token)
            for sequence, offers in self._offers.items()
            for token, value in offers
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        length = candidates[0][1].num_output + 1
        chosen: list[tuple[Sequence, int, float]] = []
        # So many are looked at that enough would go on if all the best ended with this token.
        for rank, (score, sequence, token) in enumerate(candidates[: beams * max(2, 1 + len(self._eos_ids))]):
            ids = [*sequence.output_ids, token]
            stops = token in self._eos_ids or self._holds_stop(ids)
            if stops or length == self._rules.max_tokens:
                if rank < beams:
                    reason: FinishReason = "stop" if stops else "length"
                    self.finished.append(Hypothesis(score / length**penalty, tuple(ids), reason))
            elif len(chosen) < beams:
                chosen.append((sequence, token, score))
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[:beams]
        full = len(self.finished) == beams
        if not chosen or (full and chosen[0][2] / length**penalty <= self.finished[-1].score):
            return []
        return chosen

    def continue_with(self, scores: dict[Sequence, float]) -> None:
        """These hypotheses, with their log probabilities, take the place of the ones they descend from."""
        self._scores, self._offers = scores, {}

    def _holds_stop(self, ids: list[int]) -> bool:
        text = self._decode(ids[-self._reach :]) if self._reach else ""
        return any(string in text for string in self._rules.stop)
