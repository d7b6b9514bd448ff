"""Common code of the worker processes of rendering and of training. Imports no torch: rendering doesn't need it."""

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """End this process when its parent ends, even by SIGKILL: an orphan would go on writing the files that the next
    start of the run reads. (What torch does, SIGINT, is ignored by jobs in a shell's background.)
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
