"""Where in its JSON an answer is, and which tokens end what is open. Imports no torch.

A grammar says what may follow. A model that was never trained to write JSON may follow it for ever: a number of
thousands of digits, a string that runs on past the end of its turn, one more element. Among the tokens that a grammar
allows, these classes tell those that lead to the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["JsonProgress", "TokenClasses"]

_MAX_NUMBER = 16  # characters: as many digits as a JSON number keeps in most readers
_MAX_EXPONENT = 2  # digits: more are infinite in most readers
_NUMBER = frozenset(b"0123456789+-.eE")


@dataclass
class JsonProgress:
    """The state of JSON text that is valid so far.

    Attributes:
        open: brackets that are open, ``{`` and ``[``.
        in_string, escaped: inside a string; after a backslash in it.
        string_length: bytes of the open string.
        number_length: characters of the number at the end, which may go on; 0 if there is none.
        exponent_length: digits of its exponent; None if it has none.
        after: what the last character outside strings and numbers was.
    """

    open: list[str] = field(default_factory=list)
    in_string: bool = False
    escaped: bool = False
    string_length: int = 0
    number_length: int = 0
    exponent_length: int | None = None
    after: Literal["start", "value", "comma", "colon", "bracket"] = "start"

    @property
    def number_is_long(self) -> bool:
        """Whether the number has as many characters as it may need."""
        return self.number_length >= _MAX_NUMBER or (self.exponent_length or 0) >= _MAX_EXPONENT

    def copy(self) -> "JsonProgress":
        """An independent copy."""
        return replace(self, open=list(self.open))

    def feed(self, text: bytes) -> None:
        """Advance by some bytes."""
        for byte in text:
            if self.in_string:
                self._feed_string(byte)
            else:
                self._feed_outside(byte)

    def _feed_string(self, byte: int) -> None:
        if self.escaped:
            self.escaped = False
        elif byte == ord("\\"):
            self.escaped = True
        elif byte == ord('"'):
            self.in_string = False
            self.after = "value"
        self.string_length += 1

    def _feed_outside(self, byte: int) -> None:
        if byte in _NUMBER and (self.number_length or byte in b"-0123456789"):
            self.number_length += 1
            if byte in b"eE":
                self.exponent_length = 0
            elif self.exponent_length is not None and byte not in b"+-":
                self.exponent_length += 1
            self.after = "value"
            return
        self.number_length = 0
        self.exponent_length = None
        if byte == ord('"'):
            self.in_string = True
            self.string_length = 0
        elif byte in b"{[":
            self.open.append(chr(byte))
            self.after = "bracket"
        elif byte in b"}]":
            if self.open:
                self.open.pop()
            self.after = "value"
        elif byte == ord(","):
            self.after = "comma"
        elif byte == ord(":"):
            self.after = "colon"
        elif byte not in b" \n\r\t":
            self.after = "value"  # true, false or null


class TokenClasses:
    """Masks of a vocabulary's tokens by their first byte, as integers with a bit for each token.

    Args:
        tokens: bytes of each token.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokens: Sequence[bytes], eos_ids: Sequence[int]) -> None:
        self._tokens = tokens
        eos = sum(1 << token for token in set(eos_ids))
        self._quote = self._mask(b'"')
        self._close = self._mask(b"]}") | eos
        number = self._mask(bytes(_NUMBER))
        opening = self._mask(b"{[")
        every = (1 << (max(len(tokens), *(token + 1 for token in eos_ids)))) - 1
        self._not_number = every & ~number
        self._not_opening = every & ~opening

    def get_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for tokens without text."""
        return self._tokens[token] if token < len(self._tokens) else b""

    def preferred(self, progress: JsonProgress, *, wants_end: bool, must_end: bool) -> Iterator[int]:
        """Masks in the order of preference; the first with an allowed token is to be used. See ``Grammar.allowed``."""
        in_array = progress.open[-1:] == ["["]
        if progress.in_string:
            if (must_end or (wants_end and progress.string_length > 0)) and not progress.escaped:
                yield self._quote
        elif progress.number_length and (must_end or wants_end or progress.number_is_long):
            if must_end or in_array:
                yield self._close
            yield self._not_number
        elif must_end:
            yield self._close
            if progress.after in ("start", "colon", "comma", "bracket"):
                yield self._not_opening
        elif wants_end and in_array and progress.after == "value":
            yield self._close

    def _mask(self, first: bytes) -> int:
        return sum(1 << i for i, token in enumerate(self._tokens) if token[:1] and token[0] in first)
