"""The files in ``configs/`` are valid: for our settings, for Ray's schemas, for the metrics that exist."""

import importlib
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config
from ray.scripts.scripts import start as ray_start
from ray.serve._private import constants
from ray.serve.schema import ServeDeploySchema

from minigpt4_serve.server import ray as ray_environment
from minigpt4_serve.server.ray.metrics import METRICS
from minigpt4_serve.settings import ServeSettings, read_serve_settings

CONFIGS = Path(__file__).parents[1] / "configs"
KUBERAY: dict[str, Any] = yaml.safe_load((CONFIGS / "kuberay.yaml").read_text())


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("serve-*.yaml")), ids=lambda file: file.name)
def test_settings_of_minigpt4_serve(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT4_API_KEY", "sesame")
    assert read_serve_settings(file, {}).port == 8000


@pytest.mark.parametrize(
    "text",
    [(CONFIGS / "ray-serve.yaml").read_text(), KUBERAY["spec"]["serveConfigV2"]],
    ids=["ray-serve.yaml", "kuberay.yaml"],
)
def test_serve_configs_fit_rays_schema_and_our_settings(text: str) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (application,) = config.applications
    assert application.import_path is not None
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    settings = ServeSettings.model_validate(application.args)
    # The application can't see where Serve listens. With another host here it might allow access without a key.
    assert config.http_options.host == settings.host
    assert config.http_options.port == settings.port


def test_rays_autoscaler_accepts_the_kuberay_cluster() -> None:
    assert (KUBERAY["apiVersion"], KUBERAY["kind"]) == ("ray.io/v1", "RayService")
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")
    resource = {"metadata": {"name": "minigpt4", "namespace": "default"}, "spec": cluster}
    derived = _derive_autoscaling_config_from_ray_cr(resource)
    validate_config(derived)  # ray-schema.json
    types = derived["available_node_types"]
    assert types["gpu"]["resources"]["GPU"] == 1
    (head,) = [kind for name, kind in types.items() if name != "gpu"]
    assert head["resources"]["CPU"] == 0
    options = {name for option in ray_start.params for name in option.opts}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert {f"--{name}" for name in group["rayStartParams"]} <= options
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"] == "token"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    args = yaml.safe_load(KUBERAY["spec"]["serveConfigV2"])["applications"][0]["args"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > args["scale"]["drain_s"]
    assert workers["maxReplicas"] >= args["scale"]["max_engines"]


@pytest.mark.parametrize(
    "text",
    [(CONFIGS / "ray-serve.yaml").read_text(), KUBERAY["spec"]["serveConfigV2"]],
    ids=["ray-serve.yaml", "kuberay.yaml"],
)
def test_engines_request_a_gpu_before_any_node_has_one(text: str) -> None:
    (application,) = yaml.safe_load(text)["applications"]
    assert application["args"]["scale"]["gpus_per_engine"] > 0


def test_cluster_nodes_use_the_local_servers_transport() -> None:
    ours = re.findall(
        r'setdefault\("(RAY_SERVE_\w+|RAY_worker_niceness)", "(\w+)"\)', Path(ray_environment.__file__).read_text()
    )
    assert len(ours) == 6
    longest = int(dict(ours)["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"])
    assert longest > 2 * ServeSettings().max_body_bytes, "a body, and fetched images of the same size"
    lines = (CONFIGS / "ray-cluster.env").read_text().splitlines()
    (head,) = KUBERAY["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    for name, value in ours:
        assert hasattr(constants, name) or not name.startswith("RAY_SERVE_"), "Ray no longer has it"
        assert f"{name}={value}" in lines
        assert {"name": name, "value": value} in head["env"]


def test_the_dashboard_shows_exactly_the_metrics_that_exist() -> None:
    dashboard = json.loads((CONFIGS / "grafana.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    series = set(re.findall(r"\bray_minigpt4_\w+", asked))
    known: dict[str, str] = {}
    for name, metric in METRICS.items():
        known[metric.exported(name)] = name
        if metric.kind == "histogram":
            known |= {f"ray_{name}_sum": name, f"ray_{name}_count": name}
    assert series <= set(known)
    assert {known[one] for one in series} == set(METRICS)
    labels = {label for metric in METRICS.values() for label in metric.labels} | {"le", "replica"}
    assert set(re.findall(r"by \(([\w, ]+)\)", asked)) <= {"le", "reason", "path, status"}
    assert set(re.findall(r"\{\{(\w+)\}\}", json.dumps(dashboard))) <= labels


def test_grpc_uses_no_proxy_on_any_node() -> None:
    assert os.environ["grpc_proxy"] == "", "set by the import of minigpt4_serve.server.ray"  # noqa: SIM112
    assert "grpc_proxy=" in (CONFIGS / "ray-cluster.env").read_text().splitlines()
    cluster = KUBERAY["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            assert {"name": "grpc_proxy", "value": ""} in container["env"]
