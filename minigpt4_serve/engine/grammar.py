"""Answers that follow a JSON schema: which tokens may come next, computed by llguidance.

llguidance was chosen over xgrammar and outlines-core: it accepts any vocabulary as bytes (SentencePiece models have no
tokenizer.json), has no dependencies, compiles in milliseconds and computes a step's mask in about 0.1 ms.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

from minigpt4_serve.engine.json_progress import JsonProgress, TokenClasses
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.json_schema import TrialCompiler, prepare_schema
from minigpt4_serve.json_schema.prepare import reject_schema
from minigpt4_serve.json_schema.trial import COMPILER_OPTIONS, PARSER_LIMITS, explain_verdict
from minigpt4_serve.model import MiniGPT4Tokenizer

__all__ = ["Grammar", "GrammarCompiler"]


class Grammar:
    """One answer's state in a grammar. Errors inside llguidance are reported by ``failed``, never raised."""

    def __init__(self, matcher: Any, classes: TokenClasses, progress: JsonProgress | None = None) -> None:
        self._matcher = matcher
        self._classes = classes
        self._progress = progress or JsonProgress()

    def fork(self) -> "Grammar":
        """A copy with the same state, for another answer."""
        return Grammar(self._matcher.deep_copy(), self._classes, self._progress.copy())

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
        self._progress.feed(self._classes.get_bytes(token))

    def allowed(self, *, wants_end: bool = False, must_end: bool = False) -> bytes:
        """Mask of the tokens allowed next: one bit per token, lowest bit first; empty if none is allowed.

        Args:
            wants_end: the model would end its answer here: of the allowed tokens only those that end the string,
                number or array, if there are any.
            must_end: the answer's length is nearly used up: only those that lead to its end soon.
        """
        mask = bytes(_call_guarded(self._matcher.compute_bitmask) or b"")
        for preferred in self._classes.preferred(self._progress, wants_end=wants_end, must_end=must_end):
            chosen = int.from_bytes(mask, "little") & preferred
            if chosen:
                return chosen.to_bytes(len(mask), "little")
        return mask


class GrammarCompiler:
    """Compiles JSON schemas for one vocabulary.

    Args:
        size: columns of the model's logits; ids beyond the vocabulary are never allowed.
    """

    def __init__(self, tokenizer: MiniGPT4Tokenizer, eos_ids: Sequence[int], size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = list(eos_ids)
        self._size = size
        self._trials = TrialCompiler()
        self._vocabulary: Any = None  # created at first use, which most servers never see
        self._classes: TokenClasses | None = None
        self.end_tokens = lru_cache(maxsize=16)(self._find_end_tokens)

    def compile(self, schema: str) -> Grammar:
        """The grammar of a JSON schema, given as JSON text. Takes milliseconds, the first one a second.

        Raises:
            InvalidRequest: the schema is invalid, too large or uses features that llguidance lacks, or llguidance
                isn't installed.
            EngineFailed: see ``TrialCompiler``.
        """
        try:
            from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise InvalidRequest(
                "This server doesn't support 'response_format': llguidance isn't installed.", param="response_format"
            ) from None
        value = json.loads(schema)
        if not isinstance(value, dict):
            reject_schema("it must be a JSON object.")
        prepared = prepare_schema(value).text
        if verdict := self._trials.verdict(prepared):
            reject_schema(explain_verdict(verdict, prepared))
        if self._vocabulary is None or self._classes is None:
            vocabulary = _Vocabulary(self._tokenizer, self._eos_ids[0])
            self._classes = TokenClasses(vocabulary.tokens, self._eos_ids)
            self._vocabulary = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=self._size, eos_token=self._eos_ids)

        def make_matcher() -> Any:
            grammar = LLMatcher.grammar_from_json_schema(prepared, overrides=COMPILER_OPTIONS)
            limits = LLParserLimits(**PARSER_LIMITS)
            return LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)

        matcher = _call_guarded(make_matcher)
        if matcher is None or matcher.is_error():
            reject_schema("it can't be compiled; send a simpler one.")
        return Grammar(matcher, self._classes)

    def close(self) -> None:
        """End the processes that compile on trial."""
        self._trials.close()

    def forbidden(
        self,
        grammars: Sequence[Grammar | None],
        device: torch.device,
        *,
        wants_end: Sequence[bool] = (),
        must_end: Sequence[bool] = (),
    ) -> torch.Tensor:
        """Mask of forbidden tokens ``[S, size]``; all False in rows without a grammar.

        Args:
            wants_end, must_end: for each row, see ``Grammar.allowed``.
        """
        width = -(-self._size // 8)
        full = b"\xff" * width
        rows = [
            full
            if grammar is None
            else grammar.allowed(wants_end=bool(wants_end) and wants_end[i], must_end=bool(must_end) and must_end[i])[
                :width
            ].ljust(width, b"\0")
            for i, grammar in enumerate(grammars)
        ]
        packed = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).to(device).view(len(rows), width, 1)
        bits = packed >> torch.arange(8, device=device, dtype=torch.uint8) & 1  # [S, width, 8]
        return bits.flatten(1)[:, : self._size] == 0

    def _find_end_tokens(self, stops: tuple[str, ...]) -> frozenset[int]:
        """Tokens with which the model ends an answer: end of sequence, and those that most of a stop begins with."""
        ids = set(self._eos_ids)
        for token in range(self._tokenizer.vocab_size):
            text = str(self._tokenizer.sentencepiece.id_to_piece(token)).lstrip("▁")
            if any(text.startswith(stop) or (stop.startswith(text) and 2 * len(text) > len(stop)) for stop in stops):
                ids.add(token)
        return frozenset(ids)


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
