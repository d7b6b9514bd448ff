"""Admission control of one engine: its capacity, its queue, and the expected wait. Thread-safe; imports no torch.

Event loops accept sequences and read queue positions. The engine thread publishes snapshots of its queue. Both release
sequences.
"""

import threading
from collections.abc import Iterable

from minigpt4_serve.errors import Overloaded

__all__ = ["Admission"]

_MIN_WEIGHT = 0.1  # of the latest request, in the running mean of seconds per request


class Admission:
    """Counts accepted sequences; derives capacity, queue positions and expected waits from the count.

    A request's sequences are accepted before its images are decoded, and released together when the request ends.

    Args:
        max_running: running slots, one per sequence.
        max_waiting: accepted sequences beyond the running slots; one more is rejected.
    """

    def __init__(self, *, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._accepted = 0
        self._completed = 0
        self._seconds_per_request = 1.0
        self._queue: tuple[str, ...] = ()  # replaced as a whole, never modified

    @property
    def accepted(self) -> int:
        """Sequences accepted and not released."""
        return self._accepted

    @property
    def seconds_per_request(self) -> float:
        """Running mean of the time from when a request gets a running slot to its end; 1 before the first one."""
        return self._seconds_per_request

    def check_capacity(self, ahead: int = 0) -> None:
        """Raise ``Overloaded`` if one more sequence would be rejected after ``ahead`` others."""
        with self._lock:
            self._position_of_next(1, self._accepted + ahead)

    def accept(self, sequences: int) -> int:
        """Count a request's sequences and return its queue position, 0 if running slots are free.

        Raises:
            Overloaded: the queue is full. An idle engine accepts any request.
        """
        with self._lock:
            position = self._position_of_next(sequences, self._accepted)
            self._accepted += sequences
            return position

    def release(self, sequences: int) -> None:
        """Free the capacity of accepted sequences."""
        with self._lock:
            self._accepted -= sequences

    def record_completion(self, seconds: float) -> None:
        """Add a request to ``seconds_per_request``. Called by the engine thread only."""
        self._completed += 1
        weight = max(_MIN_WEIGHT, 1 / self._completed)
        self._seconds_per_request += weight * (seconds - self._seconds_per_request)

    def expected_wait(self, position: int) -> float:
        """Expected seconds until the request at this queue position gets a running slot."""
        return position * self._seconds_per_request / self._max_running

    def publish_queue(self, request_ids: Iterable[str]) -> None:
        """Replace the snapshot of the queue with these ids, in order; repeated ids count once.

        Called by the engine thread, which owns the queue itself.
        """
        self._queue = tuple(dict.fromkeys(request_ids))

    def queue_position(self, request_id: str) -> int | None:
        """Position in the latest snapshot of the queue, starting at 1; None if the request isn't in it."""
        queue = self._queue
        return queue.index(request_id) + 1 if request_id in queue else None

    def _position_of_next(self, sequences: int, accepted: int) -> int:
        """Queue position of the next request behind ``accepted`` sequences. Raises ``Overloaded``."""
        waiting = accepted + sequences - self._max_running
        if waiting > self._max_waiting and accepted:
            raise Overloaded.queue_full(self.expected_wait(accepted - self._max_running + 1))
        return max(0, waiting)
