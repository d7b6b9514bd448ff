"""The Makefile's targets, with a stand-in for uv that logs its arguments."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

Make = Callable[..., list[str]]

UV = """#!/bin/sh
echo "$*" >> {log}
case "$1" in
    export)
        case "$*" in
            *--no-hashes*) test ! -e {broken} && echo torch==2.0 ;;
            *) while [ "$1" != --output-file ]; do shift; done; echo other==1.0 >"$2" ;;
        esac ;;
    venv | sync) mkdir -p .venv ;;
esac
"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs make in a folder of its own; returns the arguments of each call of uv. ``uv export`` fails while there is a
    file "broken" in the test's folder.
    """
    (project := tmp_path / "project").mkdir()
    (programs := tmp_path / "programs").mkdir()
    log = tmp_path / "log"
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copyfile(ROOT / name, project / name)
    (uv := programs / "uv").write_text(UV.format(log=log, broken=tmp_path / "broken"))
    uv.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}

    def run(*words: str, status: int = 0) -> list[str]:
        log.write_text("")
        done = subprocess.run(
            ["make", *words], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return log.read_text().splitlines()

    return run


def test_every_target_that_a_page_names_exists() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", pages, re.MULTILINE))
    assert {"demo", "test", "test-slow", "test-nightly", "coverage", "lint"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_serving_needs_no_developers_tools(make: Make) -> None:
    (sync,) = make("env")
    assert sync.startswith("sync --frozen --inexact --no-dev ")
    assert make("demo") == ["run --frozen --no-sync minigpt4 demo"]


def test_the_developers_environment_serves_too(make: Make) -> None:
    make("env")
    sync, run = make("test")
    assert sync.startswith("sync --frozen ")
    assert "--no-dev" not in sync
    assert "--inexact" not in sync
    assert run.startswith("run --frozen --no-sync pytest -n 3 ")
    assert make("env") == make("env-dev") == []


def test_without_cuda_torch_comes_from_the_cpu_index(make: Make) -> None:
    *_, install = make("env", "CPU=1")
    assert install.startswith("pip install --python .venv --torch-backend=cpu --constraints .venv/.cpu ")
    assert make("demo") == ["run --frozen --no-sync minigpt4 demo"]
    # It stays without CUDA when the developers' tools come.
    (install,) = make("env-dev")
    assert install.startswith("pip install --python .venv --torch-backend=cpu ")
    assert make("env", "env-dev", "CPU=1") == []


def test_a_failed_export_of_constraints_is_repeated(make: Make, tmp_path: Path) -> None:
    (broken := tmp_path / "broken").touch()
    calls = make("env", "CPU=1", status=2)
    assert calls[-1].startswith("export ")
    broken.unlink()
    *exports, install = make("env", "CPU=1")
    assert [call.split()[0] for call in exports] == ["export", "export"]
    assert install.startswith("pip install ")
    assert (tmp_path / "project" / ".venv" / ".cpu").read_text() == "other==1.0\ntorch==2.0\n"


def test_an_environment_with_cuda_is_not_mixed_with_one_without(make: Make) -> None:
    make("env")
    assert make("env", "CPU=1", status=2) == []


def test_workers_and_arguments_reach_pytest(make: Make) -> None:
    assert make("test-slow", "WORKERS=0", "ARGS=-x")[-1].endswith(
        "pytest -n 0 --dist loadgroup --no-loadscope-reorder -m slow -x"
    )


def test_workers_get_no_port_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    ports = []
    for worker in ("gw0", "gw1", "gw2"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        ports += processes._ports()
    assert len(set(ports)) == len(ports) == 12_000


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there are no workers")
def test_tests_of_a_module_run_on_one_worker(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@test_make")


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there are no workers")
def test_tests_that_share_a_server_run_on_one_worker(request: pytest.FixtureRequest) -> None:
    sharing = [item.nodeid for item in request.session.items if "cluster" in getattr(item, "fixturenames", ())]
    if not sharing:
        pytest.skip("no test that uses the cluster is selected")
    assert [name for name in sharing if not name.endswith("@cluster")] == []
