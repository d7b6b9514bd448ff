"""A server on this machine: a local Ray cluster with one application, its socket and its log."""

import atexit
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from minigpt4_serve.errors import EngineFailed, MiniGPT4Error
from minigpt4_serve.process_tree import descendants, kill_descendants
from minigpt4_serve.server.http.shared_socket import SharedSocket
from minigpt4_serve.server.logs import LogReceiver, configure_logging, resolve_log_format
from minigpt4_serve.server.private_folder import PrivateFolder, is_full
from minigpt4_serve.server.ray.app import build_application
from minigpt4_serve.server.ray.loopback import keep_on_loopback
from minigpt4_serve.server.ray.ray_token import provide_token, withdraw_token
from minigpt4_serve.server.ray.startup_errors import clear_startup_error, read_startup_error
from minigpt4_serve.server.start_checks import check_start
from minigpt4_serve.settings import ServeSettings
from minigpt4_serve.signal_handlers import signal_handler

__all__ = ["LocalServer"]

_NAME = "minigpt4"
_STATUS_CHECK_S = 0.2
_OVERDUE_S = 5.0  # HTTP processes stop by themselves after ``scale.drain_s``; one that hangs gets this much longer
_MAX_ATTEMPTS = 3
_VITAL = frozenset({"raylet", "gcs_server"})  # Ray's names; Serve restarts its controller and all replicas itself

_log = logging.getLogger(__name__)


class LocalServer:
    """The server of this process; there can be one at a time, as Ray's state is the process's.

    Args:
        settings: of the first ``deploy``.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._socket: SharedSocket | None = None  # None where Ray's proxy listens
        self._logs: LogReceiver | None = None
        self._folder: PrivateFolder | None = None
        self._others = descendants()  # processes of this one that aren't the server's
        self._failed = False  # to start, or later: the folder with Ray's logs is kept
        self._was_full = False

    def start(self, *, on_progress: Callable[[str], None] = lambda line: None) -> None:
        """Start a local cluster with the application and return when it answers.

        Raises:
            InvalidRequest: the port is taken, the keys file holds no key, or the model doesn't fit into memory.
            WeightsError: there is no model.
            EngineFailed: the application didn't start, or not within ``start_timeout_s``.
        """
        settings = self._settings
        check_start(settings)
        configure_logging(settings.log_level, settings.log_format)
        # Serve's messages are for its own developers; progress and errors are reported by this process.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._folder = PrivateFolder()
        try:
            self._open_sockets(self._folder)
            on_progress("starting Ray")
            with _time_limit(settings.start_timeout_s, self._folder):
                with signal_handler(signal.SIGTERM):  # ray.init installs one of its own
                    _start_cluster(settings.metrics_port, self._folder)
                if self._socket is not None:
                    serve.start(proxy_location="Disabled")
                else:
                    serve.start(http_options={"host": settings.host, "port": settings.port})
                on_progress("loading the model")
                self.deploy(settings)
        except BaseException:  # also when a signal ends the start
            self._failed = True
            self.stop()
            raise

    def deploy(self, settings: ServeSettings) -> None:
        """Run the application on the cluster and return when it answers. If it runs already, replace its processes.

        Replaced processes finish their answers first (``scale.drain_s``). An engine stops before its successor loads,
        since a GPU may hold only one; where there is no other engine, requests wait.

        Raises:
            MiniGPT4Error: a replica's own error.
            EngineFailed: the application didn't start for another reason.
        """
        self._settings = settings
        clear_startup_error()
        socket_path = self._socket.path if self._socket is not None else None
        log_path = self._logs.path if self._logs is not None else None
        # Replicas can't determine it: their lines go to this process's stderr.
        log_format = resolve_log_format(settings.log_format)
        application = build_application(settings.model_copy(update={"log_format": log_format}), socket_path, log_path)
        target = serve.RunTarget(application, name=_NAME, route_prefix="/")
        try:
            # Ray itself checks only once a second whether the application runs.
            serve.run_many([target], wait_for_applications_running=self._socket is None)
            _wait_until_running()
        except RuntimeError as error:
            folder = self._folder.path if self._folder else "its temporary folder"
            raise read_startup_error() or EngineFailed(
                f"The server could not start; Ray's logs in {folder} say why."
            ) from error

    def check_cluster(self) -> None:
        """Log when the temporary folder becomes full.

        Raises:
            EngineFailed: a process of Ray has ended that the server can't do without, and that nothing restarts. The
                others have been killed.
        """
        node = ray._private.worker._global_node
        ended = {str(kind) for kind, _ in node.dead_processes()} & _VITAL if node is not None else _VITAL
        if ended:
            self._failed = True
            kill_descendants(keep=self._others)
            if self._folder is not None:
                self._folder.end_processes()  # those that the raylet had started are no descendants any more
            raise EngineFailed(
                f"A process of Ray ended ({', '.join(sorted(ended))}), and without it the server can't answer. Start "
                f"the server again; Ray's logs in {self._folder.path if self._folder else 'its folder'} may say why."
            )
        if self._folder is not None:
            full = is_full(self._folder.path)
            if full and not self._was_full:
                _log.error("the disk of %s is full; an engine that is lost now can't be replaced", self._folder.path)
            self._was_full = full

    def stop(self, *, on_answers: Callable[[int], None] = lambda count: None) -> None:
        """Stop the application and the local cluster. Answers in progress are finished first (``scale.drain_s``).

        If the start failed or the cluster is lost there are none.

        Args:
            on_answers: called with the number of answers in progress, if there are any.
        """
        if self._socket is None:
            if ray.is_initialized():
                serve.shutdown()  # type: ignore[no-untyped-call]
        elif self._failed:
            self._socket.close()
        else:
            # HTTP processes stop after their last answer. Then the engines have nothing to do, and Ray's own way of
            # stopping an application, replica by replica, would only take time.
            self._socket.drain(self._settings.scale.drain_s + _OVERDUE_S, on_answers)
        ray.shutdown()
        _leave_stdout_alone()
        if self._logs is not None:
            self._logs.close()
        if self._folder is not None:
            withdraw_token(self._folder.path)
            self._folder.close(keep=self._failed and (self._folder.path / "ray").exists())

    def _open_sockets(self, folder: PrivateFolder) -> None:
        if not hasattr(socket, "AF_UNIX"):  # Windows
            return
        try:
            self._socket = SharedSocket(self._settings.host, self._settings.port, folder.path / "http")
            self._logs = LogReceiver(folder.path / "log")
        except OSError as error:
            raise EngineFailed(
                f"No sockets can be made in {folder.path}: set RAY_TMPDIR to a folder on a local disk."
            ) from error


def _leave_stdout_alone() -> None:
    """Undo what colorama, which Ray initializes, does at exit: it writes a control sequence to stdout."""
    if (colorama := sys.modules.get("colorama.initialise")) is not None:  # words: allow
        atexit.unregister(colorama.reset_all)


@contextmanager
def _time_limit(seconds: float, folder: PrivateFolder) -> Iterator[None]:
    """Raise ``EngineFailed`` in the main thread if the block takes longer; no limit in other threads or on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(_: int, __: FrameType | None) -> None:
        raise EngineFailed(
            f"The server did not become ready within {seconds:g} s (start_timeout_s); Ray's logs in {folder.path} may "
            "say why."
        )

    handler = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, _OVERDUE_S)  # again, in case a library catches the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def _wait_until_running() -> None:
    """Raise ``RuntimeError`` with Ray's message if the application doesn't start."""
    while (application := serve.status().applications[_NAME]).status != ApplicationStatus.RUNNING:
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(application.message)
        time.sleep(_STATUS_CHECK_S)


def _replace_unwritable_home(folder: Path) -> None:
    """Let Triton keep the kernels that it compiles for GPUs in ``folder`` if it can't write to the home folder."""
    if not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111 - Path raises where there is no home
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def _start_cluster(metrics_port: int | None, folder: PrivateFolder) -> None:
    """Start a local Ray cluster, on loopback only, with its files in ``folder``.

    Ray's limit of thirty seconds is too short on a busy machine, hence the retries.

    Raises:
        EngineFailed: no attempt succeeded.
    """
    provide_token(folder.path)
    _replace_unwritable_home(folder.path)
    keep_on_loopback()
    before = descendants()
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            ray.init(
                "local",  # never a cluster that runs already, whatever RAY_ADDRESS says: ``stop`` would stop all of it
                include_dashboard=False,
                _temp_dir=str(folder.path / "ray"),
                _metrics_export_port=metrics_port,
                log_to_driver=False,  # replicas send their own lines to the LogReceiver; the rest is Ray's
                logging_level=logging.CRITICAL,  # of the start's errors there is one sentence, and Ray's logs
                configure_logging=True,
            )
        except MiniGPT4Error:  # the time limit
            raise
        except Exception as error:  # Ray raises plain Exception here
            ray.shutdown()
            kill_descendants(keep=before)  # Ray doesn't stop the processes that it had started
            if attempt == _MAX_ATTEMPTS:
                if is_full(folder.path):
                    raise EngineFailed(
                        f"Ray could not start: the disk of {folder.path} is full. Free space there, or set TMPDIR to "
                        "another folder."
                    ) from error
                raise EngineFailed(
                    f"Ray could not start: the machine is very busy. Its logs in {folder.path} say why."
                ) from error
        else:
            return
