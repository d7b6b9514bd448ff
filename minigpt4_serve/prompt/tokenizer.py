"""The LLaMA tokenizer as the original used it, on SentencePiece.

transformers' own LLaMA tokenizers differ from the 2023 "slow" one on prompts of this family (``<s>[INST]`` loses its
space), so the rule is written out here: the text is cut at ``<unk>``, ``<s>`` and ``</s>``, and every stretch between
them is encoded on its own, each with SentencePiece's leading space.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import sentencepiece

__all__ = ["VOCABULARY_FILE", "PromptTokenizer"]

VOCABULARY_FILE = "tokenizer.model"
_SPECIAL = re.compile(r"(<unk>|<s>|</s>)")


class PromptTokenizer:
    """SentencePiece vocabulary with ``<unk>``, ``<s>``, ``</s>`` = 0, 1, 2 and the ordinary piece ``$$`` as padding.

    Args:
        file: a LLaMA ``tokenizer.model``.

    Raises:
        ValueError: the vocabulary's special tokens have other ids.
        OSError, RuntimeError: the file can't be read.
    """

    unk_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, file: str | Path) -> None:
        self.sentencepiece = sentencepiece.SentencePieceProcessor(model_file=str(file))
        special = [self.sentencepiece.unk_id(), self.sentencepiece.bos_id(), self.sentencepiece.eos_id()]
        if special != [self.unk_id, self.bos_id, self.eos_id]:
            raise ValueError(f"{file} is not a LLaMA vocabulary: <unk>, <s>, </s> must have the ids 0, 1, 2.")

    @property
    def pad_id(self) -> int:
        """The id of ``$$``. A vocabulary without it pads with ``<unk>``; a new id would be past the LLM's embedding."""
        return int(self.sentencepiece.piece_to_id("$$"))

    @cached_property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self.sentencepiece.get_piece_size())

    @cached_property
    def longest_piece(self) -> int:
        """Characters of the vocabulary's longest piece: a text of N characters has at least N / this many tokens."""
        return max(len(self.sentencepiece.id_to_piece(i)) for i in range(self.vocab_size))

    def encode_segment(self, text: str) -> list[int]:
        """Ids of one stretch of prompt text, without a leading ``<s>`` of its own."""
        ids: list[int] = []
        for piece in _SPECIAL.split(text):
            if _SPECIAL.fullmatch(piece):
                ids.append(self.sentencepiece.piece_to_id(piece))
            elif piece:
                ids += self.sentencepiece.encode(piece)
        return ids

    def decode_ids(self, ids: Iterable[int]) -> str:
        """Text of generated ids without special tokens and padding, as the original decodes answers."""
        skipped = {self.unk_id, self.bos_id, self.eos_id, self.pad_id}
        # Ids past the vocabulary exist as padding rows of some embeddings; they have no text.
        return str(self.sentencepiece.decode([i for i in ids if i not in skipped and 0 <= i < self.vocab_size]))
