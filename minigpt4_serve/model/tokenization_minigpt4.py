"""``PromptTokenizer`` as a tokenizer for transformers."""

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from minigpt4_serve.prompt.tokenizer import VOCABULARY_FILE, PromptTokenizer

__all__ = ["MiniGPT4Tokenizer"]


class MiniGPT4Tokenizer(PreTrainedTokenizer):
    """SentencePiece vocabulary with ``<unk>``, ``<s>``, ``</s>`` = 0, 1, 2 and the ordinary piece ``$$`` as padding.

    Special tokens come from the vocabulary, not from a folder's ``tokenizer_config.json``: early conversions of LLaMA
    have empty strings there.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"  # for generation

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.prompt_tokenizer = PromptTokenizer(vocab_file)
        self.vocab_file = str(vocab_file)
        pad = self.sentencepiece.id_to_piece(self.prompt_tokenizer.pad_id)
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": pad}
        for name in ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"):
            kwargs.pop(name, None)
        super().__init__(**{**kwargs, **special, "vocab_file": str(vocab_file)})

    @property
    def sentencepiece(self) -> Any:
        """The ``SentencePieceProcessor``."""
        return self.prompt_tokenizer.sentencepiece

    @property
    def vocab_size(self) -> int:
        return self.prompt_tokenizer.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return {self.sentencepiece.id_to_piece(i): i for i in range(self.vocab_size)}

    def encode_segment(self, text: str) -> list[int]:
        """As ``PromptTokenizer.encode_segment``."""
        return self.prompt_tokenizer.encode_segment(text)

    def decode_ids(self, ids: list[int]) -> str:
        """As ``PromptTokenizer.decode_ids``."""
        return self.prompt_tokenizer.decode_ids(ids)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        return [self.sentencepiece.id_to_piece(i) for i in self.encode_segment(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sentencepiece.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.sentencepiece.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text including special tokens and padding, with spaces around them as in the original's transformers."""
        text = ""
        ordinary: list[int] = []
        special_before = True
        for token in tokens:
            if token in self.all_special_tokens:
                text += ("" if special_before else " ") + str(self.sentencepiece.decode(ordinary)) + token
                ordinary.clear()
                special_before = True
            else:
                ordinary.append(self._convert_token_to_id(token))
                special_before = False
        return text + str(self.sentencepiece.decode(ordinary))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [1, *token_ids_0, *(token_ids_1 or [])]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        ids = (
            token_ids_0
            if already_has_special_tokens
            else self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        )
        return [int(i in self.all_special_ids) for i in ids]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if skip_special_tokens:
            return self.decode_ids(ids)
        return self.convert_tokens_to_string([self._convert_id_to_token(i) for i in ids if 0 <= i < self.vocab_size])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        target = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + VOCABULARY_FILE)
        if not target.exists() or not target.samefile(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
