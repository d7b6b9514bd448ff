"""The LLaMA tokenizer as the original used it, on SentencePiece.

transformers' current LLaMA tokenizers differ from the "slow" one of 2023 on prompts of this family (``<s>[INST]`` loses
its space), so its rule is implemented here: the text is split at ``<unk>``, ``<s>`` and ``</s>``, and each segment
between them is encoded on its own, with SentencePiece's leading space.
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
        """The id of ``$$``, or of ``<unk>`` in a vocabulary without it: a new id would exceed the LLM's embedding."""
        return int(self.sentencepiece.piece_to_id("$$"))

    @cached_property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self.sentencepiece.get_piece_size())

    @cached_property
    def longest_piece(self) -> int:
        """Characters of the vocabulary's longest piece: N characters take at least N / ``longest_piece`` tokens."""
        return max(len(self.sentencepiece.id_to_piece(i)) for i in range(self.vocab_size))

    def encode_segment(self, text: str) -> list[int]:
        """Token ids of one segment of prompt text; no ``<s>`` is added."""
        ids: list[int] = []
        for piece in _SPECIAL.split(text):
            if _SPECIAL.fullmatch(piece):
                ids.append(self.sentencepiece.piece_to_id(piece))
            elif piece:
                ids += self.sentencepiece.encode(piece)
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text, a leading space included; of a special token, its name.

        Byte tokens stand for one byte of a character that isn't in the vocabulary. Ids beyond it have no bytes.
        """
        if token >= self.vocab_size:
            return b""  # the embedding may have more rows than the vocabulary has tokens
        piece = str(self.sentencepiece.id_to_piece(token))
        if self.sentencepiece.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()

    def decode_ids(self, ids: Iterable[int]) -> str:
        """Text of generated ids, without special tokens and padding, as the original decodes answers."""
        skipped = {self.unk_id, self.bos_id, self.eos_id, self.pad_id}
        # Some embeddings have padding rows beyond the vocabulary; their ids have no text.
        return str(self.sentencepiece.decode([i for i in ids if i not in skipped and 0 <= i < self.vocab_size]))
