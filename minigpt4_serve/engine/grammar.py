"""Answers that follow a JSON schema: which tokens may come next, computed by llguidance.

llguidance was chosen over xgrammar and outlines-core: it accepts any vocabulary as bytes (SentencePiece models have no
tokenizer.json), has no dependencies, compiles in milliseconds and computes a step's mask in about 0.1 ms.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.model import MiniGPT4Tokenizer

__all__ = ["Grammar", "GrammarCompiler"]


class Grammar:
    """One answer's state in a grammar. Errors inside llguidance are reported by ``failed``, never raised."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fork(self) -> "Grammar":
        """A copy with the same state, for another answer."""
        return Grammar(self._matcher.deep_copy())

    @property
    def finished(self) -> bool:
        """True if the answer is complete: no token can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def failed(self) -> bool:
        """True if llguidance gave up, mostly because the schema exceeds its computing limit for one token."""
        return _call_guarded(self._matcher.is_error) is not False

    def accept(self, token: int) -> None:
        """Advance the state by a sampled token."""
        _call_guarded(lambda: self._matcher.consume_token(token))

    def allowed(self) -> bytes:
        """Mask of the tokens allowed next: one bit per token, lowest bit first; empty if none is allowed."""
        return bytes(_call_guarded(self._matcher.compute_bitmask) or b"")


class GrammarCompiler:
    """Compiles JSON schemas for one vocabulary.

    Args:
        size: columns of the model's logits; ids beyond the vocabulary are never allowed.
    """

    def __init__(self, tokenizer: MiniGPT4Tokenizer, eos_ids: Sequence[int], size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = list(eos_ids)
        self._size = size
        self._vocabulary: Any = None  # created at first use, which most servers never see

    def compile(self, schema: str) -> Grammar:
        """The grammar of a JSON schema, given as JSON text. Takes milliseconds.

        Raises:
            InvalidRequest: the schema is invalid or uses features that llguidance lacks, or llguidance isn't installed.
        """
        try:
            from llguidance import JsonCompiler, LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise InvalidRequest(
                "This server doesn't support 'response_format': llguidance isn't installed.", param="response_format"
            ) from None
        if self._vocabulary is None:
            vocabulary = _Vocabulary(self._tokenizer, self._eos_ids[0])
            self._vocabulary = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=self._size, eos_token=self._eos_ids)

        def make_matcher() -> Any:
            # If whitespace is flexible, a small model may write nothing else until max_tokens.
            grammar = JsonCompiler(whitespace_flexible=False).compile(schema)
            return LLMatcher(self._vocabulary, grammar, log_level=0)

        matcher = _call_guarded(make_matcher) if isinstance(json.loads(schema), dict) else None
        if matcher is None or matcher.is_error():
            raise InvalidRequest(
                "The JSON schema is not supported: it is invalid, or it uses a feature that this server lacks, such as "
                "'not' or external references.",
                param="response_format",
            )
        return Grammar(matcher)

    def forbidden(self, grammars: Sequence[Grammar | None], device: torch.device) -> torch.Tensor:
        """Mask of forbidden tokens ``[S, size]``; all False in rows without a grammar."""
        width = -(-self._size // 8)
        full = b"\xff" * width
        rows = [full if grammar is None else grammar.allowed()[:width].ljust(width, b"\0") for grammar in grammars]
        packed = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).to(device).view(len(rows), width, 1)
        bits = packed >> torch.arange(8, device=device, dtype=torch.uint8) & 1  # [S, width, 8]
        return bits.flatten(1)[:, : self._size] == 0


class _Vocabulary:
    """The vocabulary in llguidance's interface: the bytes of each token, none for tokens without text."""

    def __init__(self, tokenizer: MiniGPT4Tokenizer, eos_id: int) -> None:
        self._tokenizer = tokenizer.prompt_tokenizer
        self._sentencepiece = tokenizer.sentencepiece
        special = {0, 1, 2, tokenizer.pad_token_id, eos_id}
        self.eos_token_id = eos_id
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(special)
        self.tokens = [self._token_bytes(i) if i not in special else b"" for i in range(tokenizer.vocab_size)]
        self._newline = self._sentencepiece.piece_to_id("<0x0A>")

    def _token_bytes(self, token: int) -> bytes:
        return b"" if self._sentencepiece.is_control(token) else self._tokenizer.token_bytes(token)

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of text inside an answer. SentencePiece adds no leading space after a line break."""
        string = text if isinstance(text, str) else text.decode()
        ids: list[int] = self._sentencepiece.encode("\n" + string)
        return ids[ids.index(self._newline) + 1 :] if self._newline in ids else ids


def _call_guarded(call: Callable[[], Any]) -> Any:
    """The result, or None if llguidance fails. A Rust panic is a BaseException that isn't an Exception."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return None
