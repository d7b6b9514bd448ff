"""Ids → text as it grows: never half a character, never part of a stop string. Touches no tensor."""

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer"]

_BROKEN = "\ufffd"


class Detokenizer:
    """One answer's text.

    Args:
        decode: text of ids, special ones dropped; ids of a character that isn't complete decode to U+FFFD at the end.
        stop: strings that end the answer.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._from = 0  # ids before this one don't change how later ones decode
        self._read = 0  # ids before this one are in the text
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False

    def push(self, ids: Sequence[int], *, last: bool = False) -> str:
        """Text that is certain now. ``last`` gives up holding back; after a stop string nothing more comes."""
        if self.stopped:
            return ""
        self._ids += ids
        # A piece's blank depends on what stands before it: decode with the previous piece and cut its text off.
        known = self._decode(self._ids[self._from : self._read])
        text = self._decode(self._ids[self._from :])
        if len(text) == len(known):  # special tokens only: the piece before them stays the one to decode with
            self._read = len(self._ids)
        elif last or not text.endswith(_BROKEN):
            self._held += text[len(known) :]
            self._from, self._read = self._read, len(self._ids)
        # The one that is complete first, as if the text came character by character.
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            certain, self._held = self._held[: min(ends)[1]], ""
            return certain
        keep = 0 if last else self._longest_beginning()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _longest_beginning(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
