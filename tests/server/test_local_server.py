"""A real ``minigpt4 serve``: what its HTTP process loads, its log, and its start-up errors."""

import base64
import io
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from processes import Server, free_port, run, serving

from minigpt4_serve.settings import TINY_MODEL

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

MAX_HTTP_MIB = 250
PROGRESS = re.compile(r"• .*|Ready.*|Stopping …|")

# Ray runs any function in an actor that a driver can name.
LIST_MODULES = """
import minigpt4_serve.server.ray, json, ray, sys
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False, logging_level="error")
names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
(name,) = [name for name in names if name.startswith("SERVE_REPLICA::minigpt4#http#")]
actor = ray.get_actor(name, namespace="serve")
print(json.dumps(ray.get(actor.__ray_call__.remote(lambda _: sorted(__import__("sys").modules)))))
"""


@pytest.fixture(scope="module")
def fresh_server() -> Iterator[Server]:
    """A server of this module only: others' requests would count as its memory, their killed processes as its log.

    Its user has no home folder, as that of a service may.
    """
    with serving(HOME="/dev/null") as running:
        yield running


def _image_request(number: int) -> dict[str, object]:
    """A question about a photo-sized image unlike all others."""
    image = Image.effect_noise((1024, 768), 40 + number / 10).convert("RGB")
    image.save(data := io.BytesIO(), "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}


def _gcs_address(server: Server) -> str:
    """Of the server's own cluster: other clusters may run on this machine."""
    (raylet,) = {
        found[1]
        for pid in server.workers("ServeReplica")
        if (found := re.search(r"--gcs-address=([\d.:]+)", _command_line(_parent(pid))))
    }
    return raylet


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("requests", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_http_process_is_small_and_imports_no_torch(fresh_server: Server, requests: int) -> None:
    with httpx.Client(base_url=fresh_server.url, timeout=120) as client:
        for number in range(requests):
            answer = client.post("/v1/chat/completions", json=_image_request(number))
            assert answer.status_code == 200, answer.text
    (http,) = fresh_server.replicas("http")
    assert _memory_mib(http) < MAX_HTTP_MIB
    command = [sys.executable, "-c", LIST_MODULES, _gcs_address(fresh_server)]
    # All of the cluster listens on 127.0.0.1, which Ray replaces by another address of the machine unless the last
    # variable is set.
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(fresh_server.folder() / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert listed.returncode == 0, listed.stderr
    modules = set(json.loads(listed.stdout.splitlines()[-1]))
    assert "minigpt4_serve.server.http.routes" in modules
    assert not {"torch", "transformers"} & modules


def test_log_lines_of_replicas_reach_stderr(fresh_server: Server) -> None:
    request_id = f"test-{os.getpid()}-{time.monotonic_ns()}"
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    answer = httpx.post(
        f"{fresh_server.url}/v1/chat/completions", json=body, headers={"x-request-id": request_id}, timeout=120
    )
    assert answer.status_code == 200
    deadline = time.monotonic() + 60
    while True:
        try:
            text = fresh_server.lines.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError("the request's line did not come") from None
        if not text.startswith("{"):
            assert PROGRESS.fullmatch(text.rstrip("\n")), f"not a line of this project: {text!r}"
            continue
        line = json.loads(text)
        assert line["logger"].startswith("minigpt4_serve")
        if line.get("request_id") == request_id:
            break
    assert (line["event"], line["path"], line["status"]) == ("request", "/v1/chat/completions", 200)


@pytest.mark.slow
def test_startup_error_of_a_replica_is_reported(tmp_path: Path) -> None:
    """The tensors' shapes are compared by the engine's process only."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_MODEL, folder)
    os.truncate(folder / "model.safetensors", 1000)
    done = run("serve", "--model", str(folder), "--port", str(free_port()), "--log-level", "error")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"minigpt4: {folder / 'model.safetensors'} is cut short or damaged; download or copy it again."
    )
    assert "Traceback" not in done.stderr
