"""The application for Ray Serve and how a local cluster is started. Knows Ray; loads no model itself."""

import logging
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.schema import ApplicationStatus

from minigpt4_serve.errors import EngineFailed, WeightsError
from minigpt4_serve.process_tree import descendants, kill_descendants
from minigpt4_serve.server.http.shared_socket import SharedSocket
from minigpt4_serve.server.keys.key_ring import KeyRing
from minigpt4_serve.server.ray.ray_token import protect_token
from minigpt4_serve.server.ray.replica import EngineReplica, Ingress
from minigpt4_serve.settings import ScaleSettings, ServeSettings

__all__ = ["build", "check", "deploy", "start", "stop"]


_NAME = "minigpt4"
_socket: SharedSocket | None = None  # of the local cluster that this process has started, if it has
_drain_s = 0.0  # of the application that runs there
_DRAIN_CHECK_S = 0.5  # between Ray's looks at what a leaving process has still to do
_STATUS_CHECK_S = 0.2
_OVERDUE_S = 5.0  # HTTP processes end by themselves after ``scale.drain_s``; one that hangs gets this much more


def build(args: ServeSettings) -> serve.Application:
    """The Serve application; in a Serve config file ``import_path: minigpt4_serve.serving.app:build`` and ``args:``."""
    scale, slots = args.scale, args.engine.max_running
    most = slots + args.engine.max_waiting
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        # The engine admits and refuses; Ray's own limits only stand behind it.
        max_ongoing_requests=most + 64,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=scale.drain_s,
        graceful_shutdown_wait_loop_s=_DRAIN_CHECK_S,
        request_router_config=RequestRouterConfig.model_validate(
            {
                "request_router_class": "minigpt4_serve.server.ray.image_affinity_router:ImageAffinityRouter",
                "request_router_kwargs": {"slots": slots},
                "request_routing_stats_period_s": 2,
            }
        ),
        ray_actor_options={"num_cpus": scale.cpus_per_engine, "num_gpus": _gpus(args)},
        **_replicas(scale, slots),
    )
    http = serve.deployment(
        serve.ingress()(Ingress),
        name="http",
        num_replicas=scale.http,
        max_ongoing_requests=(most + 64) * (scale.max_engines or scale.engines) + 256,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=scale.drain_s,
        graceful_shutdown_wait_loop_s=_DRAIN_CHECK_S,
        ray_actor_options={"num_cpus": 0},  # an engine must never miss its CPU for them
        # In an update the new one starts before an old one goes: it needs no room. An engine may have no second GPU.
        max_surge_percent=1,
    )
    shared = _socket.path if _socket is not None else None
    return http.bind(args, engines.bind(args), shared)  # type: ignore[attr-defined, no-any-return]


def _gpus(args: ServeSettings) -> float:
    if args.scale.gpus_per_engine is not None:
        return args.scale.gpus_per_engine
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    return float(has_gpu if args.model.device == "auto" else args.model.device.startswith("cuda"))


def _replicas(scale: ScaleSettings, slots: int) -> dict[str, Any]:
    if scale.max_engines is None or scale.max_engines == scale.engines:
        return {"num_replicas": scale.engines}
    return {
        "autoscaling_config": {
            "min_replicas": scale.engines,
            "max_replicas": scale.max_engines,
            "target_ongoing_requests": scale.target_requests or slots,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
    }


def start(settings: ServeSettings, *, on_progress: Callable[[str], None] = lambda line: None) -> None:
    """Start a local cluster with one application and return when it answers.

    Raises:
        InvalidRequest: the port is taken, or the keys file holds no key.
        WeightsError: no model there.
        EngineFailed: the application didn't come up.
    """
    check(settings)
    # What Ray and Serve tell their own developers; ours comes through on_progress and as errors.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    _take_port(settings.host, settings.port)
    try:
        on_progress("starting Ray")
        with _own_sigterm_handler():
            _start_cluster(settings.metrics_port)
        if _socket is not None:
            serve.start(proxy_location="Disabled")
        else:
            serve.start(http_options={"host": settings.host, "port": settings.port})
        on_progress("loading the model")
        deploy(settings)
    except BaseException:  # also when a signal ends the start
        stop()
        raise


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """``ray.init`` installs a SIGTERM handler of its own; put back the one that was there before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def check(settings: ServeSettings) -> None:
    """What can be seen before a cluster is started, or a process replaced, for nothing; replicas look at the rest.

    Raises:
        InvalidRequest: the keys file holds no key.
        WeightsError: no model there.
    """
    if not (settings.model.path / "config.json").is_file():
        raise WeightsError(f"{settings.model.path} is not a model folder: it has no config.json.")
    if settings.keys_file is not None:
        KeyRing(settings.keys_file, settings.api_key)


def _take_port(host: str, port: int) -> None:
    """The socket of a machine's own processes; on clusters Ray's proxies listen."""
    global _socket  # noqa: PLW0603 - as Ray's own state is the process's
    if not hasattr(socket, "AF_UNIX"):
        return  # Windows can't hand sockets on: Ray's proxy listens
    _socket = SharedSocket(host, port)


def deploy(settings: ServeSettings) -> None:
    """Run the application on the cluster, and return when it answers. If it runs already, its processes are replaced.

    Replaced ones finish their answers first (``scale.drain_s``). An engine goes before its successor loads, since a GPU
    may hold only one: where there is no other, requests wait.

    Raises:
        EngineFailed: it didn't come up.
    """
    global _drain_s  # noqa: PLW0603 - as Ray's own state is the process's
    _drain_s = settings.scale.drain_s
    target = serve.RunTarget(build(settings), name=_NAME, route_prefix="/")
    try:
        # Ray itself looks once a second whether the application runs.
        serve.run_many([target], wait_for_applications_running=_socket is None)
        _wait_until_running()
    except RuntimeError as error:
        # Ray hands on what the replica raised as text; the sentence of ours in it is what helps.
        ours = re.search(r"minigpt4_serve\.errors\.\w+: (.+)", str(error))
        raise EngineFailed(
            ours[1] if ours else "The server could not start; Ray's logs in /tmp/ray say why."
        ) from error


def _wait_until_running() -> None:
    """Raise ``RuntimeError`` with Ray's message if the application doesn't come up."""
    while (application := serve.status().applications[_NAME]).status != ApplicationStatus.RUNNING:
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(application.message)
        time.sleep(_STATUS_CHECK_S)


def _start_cluster(metrics_port: int | None) -> None:
    """A local Ray cluster. Ray gives its parts thirty seconds, which a busy machine exceeds: two more tries are made.

    Raises:
        EngineFailed: not even then.
    """
    protect_token()
    before = descendants()
    for attempt in range(3):
        try:
            ray.init(
                "local",  # never a cluster that runs already, whatever RAY_ADDRESS says: stopping would stop all of it
                include_dashboard=False,
                _metrics_export_port=metrics_port,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except Exception as error:  # Ray raises plain Exception here
            ray.shutdown()
            kill_descendants(keep=before)  # Ray leaves those that had started to run beside the next ones
            if attempt == 2:
                raise EngineFailed(
                    "Ray could not start: the machine is very busy, or /tmp is full. Its logs in /tmp/ray say why."
                ) from error
        else:
            return


def stop() -> None:
    """Stop the application and the local cluster. Answers in progress are finished first (``scale.drain_s``)."""
    if _socket is None:
        serve.shutdown()  # type: ignore[no-untyped-call]
    else:
        # HTTP processes end when their last answer has gone out. Engines then have nothing to do, and Ray's own way of
        # stopping an application, replica by replica, would only take time.
        _socket.drain(_drain_s + _OVERDUE_S)
    ray.shutdown()
