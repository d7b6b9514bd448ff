"""Start-up errors of replicas as objects: Ray itself passes on only the text of what a replica's constructor raises."""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from minigpt4_serve.errors import MiniGPT4Error

__all__ = ["clear_startup_error", "read_startup_error", "report_startup_error"]

_log = logging.getLogger(__name__)

_NAMESPACE = b"minigpt4"
_KEY = b"startup_error"


@contextmanager
def report_startup_error() -> Iterator[None]:
    """Keep a ``MiniGPT4Error`` that passes in the cluster's key-value store, for ``read_startup_error``."""
    try:
        yield
    except MiniGPT4Error as error:
        try:
            _internal_kv_put(_KEY, pickle.dumps(error), namespace=_NAMESPACE)
        except Exception:  # the error itself matters more
            _log.exception("the start-up error could not be reported")
        raise


def read_startup_error() -> MiniGPT4Error | None:
    """The last error that a replica of this cluster reported since ``clear_startup_error``."""
    stored: bytes | None = _internal_kv_get(_KEY, namespace=_NAMESPACE)
    if stored is None:
        return None
    error = pickle.loads(stored)  # noqa: S301 - the cluster belongs to this user
    assert isinstance(error, MiniGPT4Error)
    return error


def clear_startup_error() -> None:
    """Remove what was reported before."""
    _internal_kv_del(_KEY, namespace=_NAMESPACE)
