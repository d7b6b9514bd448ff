"""A model with its engine in this process, and how a process loads fast. torch is imported by ``load_engine`` only."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4_serve.settings import ServeSettings

if TYPE_CHECKING:
    from minigpt4_serve.engine import Engine
    from minigpt4_serve.server.http.chat_service import ChatService

__all__ = ["load_engine", "loading"]


@contextmanager
def loading() -> Iterator[None]:
    """Suspend garbage collection while a process loads its libraries and its model: it takes a tenth of that time.

    Nearly all of these objects live until the process ends, so later collections skip them, too (``gc.freeze``). They
    are collected at exit: libraries made with nanobind, such as Triton, list the objects that outlive Python.

    PyTorch's empty folder for compiled kernels, which it makes while it is imported, is removed: nothing is compiled.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        if enabled:
            gc.enable()
        _remove_empty_kernel_cache()


def _remove_empty_kernel_cache() -> None:
    module = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    default = getattr(module, "default_cache_dir", None)
    # PyTorch sets the variable as well; another value is the user's own folder.
    if default is not None and os.environ.get("TORCHINDUCTOR_CACHE_DIR", default()) == default():
        with suppress(OSError):  # it isn't empty, or has been removed
            Path(default()).rmdir()


def load_engine(settings: ServeSettings) -> "tuple[Engine, ChatService]":
    """Load the model and start its engine in this process.

    Raises:
        WeightsError: the folder isn't a model that can be served.
    """
    from minigpt4_serve.engine import Engine
    from minigpt4_serve.model_folder import read_generation_defaults
    from minigpt4_serve.server.engine_client import LocalEngineClient
    from minigpt4_serve.server.http.chat_service import ChatService
    from minigpt4_serve.weights.load import load_model

    model, processor = load_model(settings.model)
    defaults = read_generation_defaults(settings.model.path)
    engine = Engine(model, processor, settings.engine)
    engine.start()
    return engine, ChatService(processor.encoder, defaults, LocalEngineClient(engine), settings)
