"""Signal handlers that are installed for a block."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["signal_handler"]


@contextmanager
def signal_handler(number: signal.Signals, handler: Callable[[int, object], object] | None = None) -> Iterator[None]:
    """Handle a signal during the block; afterwards the handler of before is installed again.

    Has no effect outside the main thread, which alone can install handlers.

    Args:
        handler: None keeps the present one, which is restored if the block replaces it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    if handler is not None:
        signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
