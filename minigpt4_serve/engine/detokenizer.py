"""Incremental detokenization that never outputs half a character or part of a stop string. Imports no torch."""

from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["Detokenizer"]

_REPLACEMENT_CHARACTER = "\ufffd"


class Detokenizer:
    """The text of one answer.

    Args:
        decode: text of token ids without special tokens; an incomplete character at the end decodes to U+FFFD.
        stop: strings that end the answer.
        min_tokens: stop strings in the text of the ids before the one of this number, counted from 1, don't count.

    Attributes:
        stopped: True once a stop string has occurred.
        num_shown: leading ids whose text has been returned; ids that were pushed together count together. An id whose
            text a stop string cuts counts, too, unless only blanks are left of it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), *, min_tokens: int = 0) -> None:
        self._decode = decode
        self._stop = stop
        self._min_tokens = min_tokens
        self._ids: list[int] = []
        self._context_start = 0  # earlier ids don't change how later ones decode
        self._num_decoded = 0  # leading ids whose text has been decoded
        self._held = ""  # decoded, but a stop string may begin with it
        self._unshown: deque[tuple[int, str]] = deque()  # (number of ids decoded so far, text of the latest of them)
        self._num_partial = 0  # characters of the first of these texts that have been returned
        self.stopped = False
        self.num_shown = 0

    def push(self, ids: Sequence[int], *, last: bool = False) -> str:
        """Add token ids; returns the text that no further id can change.

        With ``last``, no text is held back. After a stop string the result is always empty.
        """
        if self.stopped:
            return ""
        free = self._min_tokens - 1 - len(self._ids)
        if 0 < free < len(ids):
            return self.push(ids[:free]) + self.push(ids[free:], last=last)
        self._ids += ids
        # Whether a token starts with a space depends on the one before it: decode both and cut the known text off.
        known = self._decode(self._ids[self._context_start : self._num_decoded])
        text = self._decode(self._ids[self._context_start :])
        if len(text) == len(known):  # special tokens only: the token before them remains the context
            self._num_decoded = len(self._ids)
            self._unshown.append((self._num_decoded, ""))
        elif last or not text.endswith(_REPLACEMENT_CHARACTER):
            self._held += text[len(known) :]
            self._context_start = self._num_decoded
            self._num_decoded = len(self._ids)
            self._unshown.append((self._num_decoded, text[len(known) :]))
        output = self._take_certain(hold=not last)
        self._count_shown(len(output))
        return output

    def _take_certain(self, *, hold: bool) -> str:
        """Take what can be output of the held text; with ``hold``, without an end that a stop string begins with."""
        if len(self._ids) < self._min_tokens:
            output = self._held
            self._held = ""
            return output
        # The stop string that is complete first counts, as if the text arrived one character at a time.
        matches = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if matches:
            self.stopped = True
            _, start = min(matches)
            output = self._held[:start]
            self._held = ""
            return output
        num_certain = len(self._held) - (self._stop_prefix_length() if hold else 0)
        output = self._held[:num_certain]
        self._held = self._held[num_certain:]
        return output

    def _count_shown(self, num_output: int) -> None:
        """Advance ``num_shown`` by the ids whose text is complete with ``num_output`` more characters."""
        self._num_partial += num_output
        while self._unshown and len(self._unshown[0][1]) <= self._num_partial:
            self.num_shown, text = self._unshown.popleft()
            self._num_partial -= len(text)
        if self.stopped and self._unshown and self._unshown[0][1][: self._num_partial].strip():
            self.num_shown = self._unshown[0][0]

    def _stop_prefix_length(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
