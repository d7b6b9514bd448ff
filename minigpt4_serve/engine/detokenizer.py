"""Incremental detokenization that never outputs half a character or part of a stop string. Imports no torch."""

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer"]

_REPLACEMENT_CHARACTER = "\ufffd"


class Detokenizer:
    """The text of one answer.

    Args:
        decode: text of token ids without special tokens; an incomplete character at the end decodes to U+FFFD.
        stop: strings that end the answer.

    Attributes:
        stopped: True once a stop string has occurred.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._context_start = 0  # earlier ids don't change how later ones decode
        self._num_decoded = 0  # leading ids whose text has been decoded
        self._held = ""  # decoded, but a stop string may begin with it
        self.stopped = False

    def push(self, ids: Sequence[int], *, last: bool = False) -> str:
        """Add token ids; returns the text that no further id can change.

        With ``last``, no text is held back. After a stop string the result is always empty.
        """
        if self.stopped:
            return ""
        self._ids += ids
        # Whether a token starts with a space depends on the one before it: decode both and cut the known text off.
        known = self._decode(self._ids[self._context_start : self._num_decoded])
        text = self._decode(self._ids[self._context_start :])
        if len(text) == len(known):  # special tokens only: the token before them remains the context
            self._num_decoded = len(self._ids)
        elif last or not text.endswith(_REPLACEMENT_CHARACTER):
            self._held += text[len(known) :]
            self._context_start = self._num_decoded
            self._num_decoded = len(self._ids)
        # The stop string that is complete first counts, as if the text arrived one character at a time.
        matches = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if matches:
            self.stopped = True
            _, start = min(matches)
            output = self._held[:start]
            self._held = ""
            return output
        num_certain = len(self._held) - (0 if last else self._stop_prefix_length())
        output = self._held[:num_certain]
        self._held = self._held[num_certain:]
        return output

    def _stop_prefix_length(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
