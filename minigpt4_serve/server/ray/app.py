"""The application for Ray Serve: its deployments, their scale and their limits."""

from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from minigpt4_serve.server.ray.replica import EngineReplica, Ingress
from minigpt4_serve.settings import ScaleSettings, ServeSettings

__all__ = ["build", "build_application"]

_DRAIN_CHECK_S = 0.5  # between Ray's checks whether a replica that stops has finished its requests


def build(args: ServeSettings) -> serve.Application:
    """The Serve application; in a Serve config file ``import_path: minigpt4_serve.serving.app:build`` and ``args:``."""
    return build_application(args)


def build_application(
    settings: ServeSettings, socket_path: str | None = None, log_path: str | None = None
) -> serve.Application:
    """The Serve application.

    Args:
        socket_path: of the ``SharedSocket`` that HTTP processes listen on; without one Ray's proxies listen.
        log_path: of the ``LogReceiver`` that gets the replicas' log lines; without one they stay in Ray's files.
    """
    scale = settings.scale
    max_running = settings.engine.max_running
    capacity = max_running + settings.engine.max_waiting
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        # The engine refuses requests itself; Ray's limit is only a second line of defense.
        max_ongoing_requests=capacity + 64,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=scale.drain_s,
        graceful_shutdown_wait_loop_s=_DRAIN_CHECK_S,
        request_router_config=RequestRouterConfig.model_validate(
            {
                "request_router_class": "minigpt4_serve.server.ray.image_affinity_router:ImageAffinityRouter",
                "request_router_kwargs": {"running_slots": max_running},
                "request_routing_stats_period_s": 2,
            }
        ),
        ray_actor_options={"num_cpus": scale.cpus_per_engine, "num_gpus": _num_gpus(settings)},
        **_scaling(scale, max_running),
    )
    http = serve.deployment(
        serve.ingress()(Ingress),
        name="http",
        num_replicas=scale.http,
        max_ongoing_requests=(capacity + 64) * (scale.max_engines or scale.engines) + 256,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=scale.drain_s,
        graceful_shutdown_wait_loop_s=_DRAIN_CHECK_S,
        ray_actor_options={"num_cpus": 0},  # an engine must never lack a CPU because of them
        # In an update the new replica starts before the old one stops. Engines can't do that: a GPU may hold only one.
        max_surge_percent=1,
    )
    return http.bind(settings, engines.bind(settings, log_path), socket_path, log_path)  # type: ignore[attr-defined, no-any-return]


def _num_gpus(settings: ServeSettings) -> float:
    """GPUs of each engine."""
    if settings.scale.gpus_per_engine is not None:
        return settings.scale.gpus_per_engine
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    device = settings.model.device
    return float(has_gpu if device == "auto" else device.startswith("cuda"))


def _scaling(scale: ScaleSettings, max_running: int) -> dict[str, Any]:
    """The number of engines, fixed or automatic, as arguments of ``serve.deployment``."""
    if scale.max_engines is None or scale.max_engines == scale.engines:
        return {"num_replicas": scale.engines}
    return {
        "autoscaling_config": {
            "min_replicas": scale.engines,
            "max_replicas": scale.max_engines,
            "target_ongoing_requests": scale.target_requests or max_running,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        }
    }
