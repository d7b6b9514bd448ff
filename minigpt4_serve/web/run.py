"""Serves the page until a signal stops it. The page itself is imported last, which takes seconds."""

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Callable

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.web.settings import PageSettings

__all__ = ["listen", "serve_page"]


def listen(settings: PageSettings) -> socket.socket:
    """Take the port before anything slow begins.

    Raises:
        InvalidRequest: it is taken, or no address of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError:
        raise InvalidRequest(
            f"The page can't listen on {settings.host}, port {settings.port}: it is in use, or not this machine's. "
            "Give another --port or --host."
        ) from None


def serve_page(settings: PageSettings, listening: socket.socket, *, on_ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, which the caller's handlers receive; ``on_ready`` gets the page's address.

    Raises:
        InvalidRequest: the server's address isn't one.
        ModuleNotFoundError: the extra ``web`` isn't installed.
    """
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    # Gradio wants a folder for files; ours stays empty, and goes.
    with tempfile.TemporaryDirectory(prefix="minigpt4-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        import uvicorn

        from minigpt4_serve.web.page import create_page

        config = uvicorn.Config(
            create_page(settings),
            log_level="warning",
            access_log=False,
            # Open pages hold connections; they needn't be waited for, nor complained about.
            timeout_graceful_shutdown=1,
        )
        logging.getLogger("uvicorn.error").addFilter(_worth_telling)
        server = uvicorn.Server(config)
        started = server.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await started(sockets)
            on_ready(address)

        server.startup = startup  # type: ignore[method-assign]
        server.run(sockets=[listening])  # it ends by SIGTERM or Ctrl-C, and raises the signal again


def _worth_telling(record: logging.LogRecord) -> bool:
    cut_at_the_end = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_at_the_end and "graceful shutdown" not in record.getMessage()
