"""A stopping criterion for ``generate``: stop strings, in addition to the end-of-sequence token."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from minigpt4_serve.model.tokenization_minigpt4 import MiniGPT4Tokenizer

__all__ = ["StopAtText", "reach"]


def reach(strings: Iterable[str]) -> int:
    """Number of newest tokens to decode to find any of ``strings`` at their end; 0 if there are none.

    A token is at least one byte: characters that aren't in the vocabulary are encoded as bytes. One more token precedes
    them, because decoding drops the leading space of the first.
    """
    return max((len(string.encode(errors="surrogatepass")) + 1 for string in strings), default=0)


class StopAtText(StoppingCriteria):
    """Stops a row of a batch when its newest text contains one of the strings, wherever token boundaries are.

    Rows stop independently. The original stopped a batch only when all rows ended with the same stop string.
    """

    def __init__(self, tokenizer: MiniGPT4Tokenizer, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        self.window = reach(strings)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each row of the generated ids ``[B, T]`` is finished, as bool ``[B]``."""
        texts = [self.tokenizer.decode_ids(row) for row in input_ids[:, -self.window :].tolist()]
        finished = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(finished, device=input_ids.device, dtype=torch.bool)
