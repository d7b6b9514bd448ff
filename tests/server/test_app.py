"""The Serve application before any cluster: how many replicas there are, and what each may take on at a time."""

from typing import Any

import pytest
from ray.serve.deployment import Deployment

from minigpt4_serve.server.ray.app import build
from minigpt4_serve.settings import EngineSettings, ScaleSettings, ServeSettings

SLOTS = 64
QUEUE = 128


def built(**scale: Any) -> tuple[Deployment, Deployment]:
    """(HTTP's deployment, the engines') of an application whose engines have ``SLOTS`` and a queue of ``QUEUE``."""
    engine = EngineSettings(max_running=SLOTS, max_waiting=QUEUE)
    # Without gpus_per_engine the cluster would be asked whether it has any.
    http = build(ServeSettings(engine=engine, scale=ScaleSettings(gpus_per_engine=0, **scale)))._bound_deployment
    engines = http.init_args[1]
    return http, engines._bound_deployment


def autoscaling(deployment: Deployment) -> Any:
    return deployment._deployment_config.autoscaling_config


@pytest.mark.parametrize("scale", [{"engines": 3}, {"engines": 3, "max_engines": 3}], ids=["no maximum", "as many"])
def test_without_room_to_grow_the_engines_are_fixed(scale: dict[str, int]) -> None:
    http, engines = built(**scale)
    assert engines.num_replicas == 3
    assert autoscaling(engines) is None
    assert http.max_ongoing_requests >= 3 * (SLOTS + QUEUE)


def test_with_a_maximum_ray_adds_and_takes_engines_away() -> None:
    limits = {"engines": 2, "max_engines": 8, "target_requests": 4.5, "upscale_delay_s": 7, "downscale_delay_s": 90}
    http, engines = built(**limits, http=3)
    config = autoscaling(engines)
    assert (config.min_replicas, config.max_replicas) == (2, 8)
    assert config.target_ongoing_requests == 4.5
    assert (config.upscale_delay_s, config.downscale_delay_s) == (7, 90)
    # HTTP doesn't scale, and must hold what all engines that there can be hold.
    assert autoscaling(http) is None
    assert http.num_replicas == 3
    assert http.max_ongoing_requests >= 8 * (SLOTS + QUEUE)


def test_engines_aim_at_their_slots_without_a_target() -> None:
    config = autoscaling(built(max_engines=2)[1])
    assert (config.min_replicas, config.max_replicas) == (1, 2)
    assert config.target_ongoing_requests == SLOTS


def test_the_engine_itself_refuses_before_ray_does() -> None:
    _, engines = built()
    assert engines.max_ongoing_requests > SLOTS + QUEUE
