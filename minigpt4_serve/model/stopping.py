"""When plain ``generate`` ends an answer, beside the end-of-sequence token. Knows ids and the tokenizer, no model."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from minigpt4_serve.model.tokenization_minigpt4 import MiniGPT4Tokenizer

__all__ = ["StopAtText", "reach"]


def reach(strings: Iterable[str]) -> int:
    """How many of an answer's newest tokens must be decoded to find a string that ends with the last; 0 without any.

    A token stands for a byte at least: characters that the vocabulary lacks are spelt in bytes. One more goes before
    them, since a text loses the blank that it begins with.
    """
    return max((len(string.encode(errors="surrogatepass")) + 1 for string in strings), default=0)


class StopAtText(StoppingCriteria):
    """Ends a row of a batch when its own newest text holds one of the strings, however its tokens cut it.

    The original stopped a batch only when all rows ended alike, so one row's answer depended on the others'.
    """

    def __init__(self, tokenizer: MiniGPT4Tokenizer, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(strings)
        self.window = reach(strings)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """``input_ids`` are the generated ids ``[B, T]``; True ``[B]`` where a row is finished."""
        texts = [self.tokenizer.decode_ids(row) for row in input_ids[:, -self.window :].tolist()]
        finished = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(finished, device=input_ids.device, dtype=torch.bool)
