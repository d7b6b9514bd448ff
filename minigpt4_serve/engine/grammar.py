"""Answers of a given shape: which tokens a JSON schema allows next. Knows llguidance and vocabularies, no requests.

llguidance was chosen over xgrammar and outlines-core: it takes any vocabulary as bytes (SentencePiece models have no
tokenizer.json), depends on nothing, compiles in milliseconds and masks a step in about 0.1 ms.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4Tokenizer

__all__ = ["Grammar", "Grammars"]


class Grammar:
    """One answer's way through a shape. Whatever goes wrong inside the library fails the request, never the engine."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fork(self) -> "Grammar":
        """The same state, for another answer."""
        return Grammar(self._matcher.deep_copy())

    @property
    def finished(self) -> bool:
        """Nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    @property
    def failed(self) -> bool:
        """The library gave up, mostly because the schema takes more computing than it allows for one token."""
        return _guarded(self._matcher.is_error) is not False

    def accept(self, token: int) -> None:
        """The answer has grown by this token."""
        _guarded(lambda: self._matcher.consume_token(token))

    def allowed(self) -> bytes:
        """One bit per token, lowest bit first; empty if nothing is allowed."""
        return bytes(_guarded(self._matcher.compute_bitmask) or b"")


class Grammars:
    """Makes grammars for one vocabulary.

    Args:
        size: rows of the model's logits; ids past the vocabulary are never allowed.
    """

    def __init__(self, tokenizer: MiniGPT4Tokenizer, eos_ids: Sequence[int], size: int) -> None:
        self._tokenizer, self._eos_ids, self._size = tokenizer, list(eos_ids), size
        self._vocabulary: Any = None  # made when first needed: most servers never need it

    def compile(self, schema: str) -> Grammar:
        """The grammar of JSON that follows ``schema``, a JSON schema as text. Takes milliseconds.

        Raises:
            InvalidRequest: not a schema, one that uses what llguidance doesn't know, or llguidance isn't installed.
        """
        try:
            from llguidance import JsonCompiler, LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise InvalidRequest(
                "This server can't honour 'response_format': llguidance isn't installed there.", param="response_format"
            ) from None
        if self._vocabulary is None:
            vocabulary = _Vocabulary(self._tokenizer, self._eos_ids[0])
            self._vocabulary = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=self._size, eos_token=self._eos_ids)

        def make() -> Any:
            # With a free choice of blanks, a small model may write blanks for ever.
            grammar = JsonCompiler(whitespace_flexible=False).compile(schema)
            return LLMatcher(self._vocabulary, grammar, log_level=0)

        matcher = _guarded(make) if isinstance(json.loads(schema), dict) else None
        if matcher is None or matcher.is_error():
            raise InvalidRequest(
                "The JSON schema can't be followed: it is not valid, or it uses what this server doesn't know, such as "
                "'not' or references to elsewhere.",
                param="response_format",
            )
        return Grammar(matcher)

    def forbidden(self, grammars: Sequence[Grammar | None], device: torch.device) -> torch.Tensor:
        """What each row may not write ``[S, size]``; nothing is forbidden where there is no grammar."""
        width = -(-self._size // 8)
        full = b"\xff" * width
        rows = [full if grammar is None else grammar.allowed()[:width].ljust(width, b"\0") for grammar in grammars]
        packed = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).to(device).view(len(rows), width, 1)
        bits = packed >> torch.arange(8, device=device, dtype=torch.uint8) & 1  # [S, width, 8]
        return bits.flatten(1)[:, : self._size] == 0


class _Vocabulary:
    """The vocabulary as llguidance wants it: the bytes that each token writes, none for those that write nothing."""

    def __init__(self, tokenizer: MiniGPT4Tokenizer, eos_id: int) -> None:
        self._pieces = pieces = tokenizer.sentencepiece
        silent = {0, 1, 2, tokenizer.pad_token_id, eos_id}
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_token_id
        self.special_token_ids = sorted(silent)
        self.tokens = [self._bytes(i) if i not in silent else b"" for i in range(tokenizer.vocab_size)]
        self._newline = pieces.piece_to_id("<0x0A>")

    def _bytes(self, token: int) -> bytes:
        piece = self._pieces.id_to_piece(token)
        if self._pieces.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return b"" if self._pieces.is_control(token) else str(piece).replace("▁", " ").encode()

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text in the middle of an answer: after a line break, SentencePiece adds no blank of its own."""
        words = text if isinstance(text, str) else text.decode()
        ids: list[int] = self._pieces.encode("\n" + words)
        return ids[ids.index(self._newline) + 1 :] if self._newline in ids else ids


def _guarded(call: Callable[[], Any]) -> Any:
    """The result, or None when the library fails: it may panic, which is no ordinary exception."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None
