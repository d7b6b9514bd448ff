"""The built wheel: each extra installs into an empty environment, imports and starts; clients without torch and Ray.

Needs uv, which ``make`` has fetched, and versions that are in uv's cache after ``make env-dev``.
"""

import os
import subprocess
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from uv_command import run_uv

ROOT = Path(__file__).parent.parent
PACKAGES = ("minigpt4_serve", "langchain_minigpt4", "mcp_minigpt4", "minigpt4_bots")
SERVER_ONLY = {"torch", "ray", "transformers", "fastapi", "llguidance"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a release whose repository is at code.example."""
    folder = tmp_path_factory.mktemp("dist")
    run_uv("build", "--wheel", "--out-dir", folder, REPOSITORY_URL="https://code.example/minigpt4-serve")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The locked versions."""
    path = tmp_path_factory.mktemp("lock") / "constraints.txt"
    path.write_text(run_uv("export", "--quiet", "--frozen", "--all-extras", "--no-hashes", "--no-emit-project"))
    return path


Install = Callable[[str], Path]


@pytest.fixture
def install(wheel: Path, constraints: Path, tmp_path: Path) -> Install:
    """Installs one extra of the wheel into an empty environment; returns the environment's folder of programs."""

    def install(extra: str) -> Path:
        environment = tmp_path / "venv"
        run_uv("venv", environment)
        requirement = f"minigpt4-serve{extra} @ {wheel.as_uri()}"
        run_uv("pip", "install", "--python", environment, "--constraints", constraints, requirement)
        return environment / "bin"

    return install


def _run(programs: Path, *command: str) -> None:
    """Run a command of the environment outside of the checkout, so that only the wheel's packages are found."""
    done = subprocess.run(
        [str(programs / command[0]), *command[1:]],
        cwd=programs,
        env={"PATH": os.environ["PATH"], "HOME": str(programs), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "module", "script"),
    [
        ("", "minigpt4_serve.client", "minigpt4"),
        ("[langchain]", "langchain_minigpt4", "minigpt4"),
        ("[mcp]", "mcp_minigpt4.server", "minigpt4-mcp"),
        ("[discord]", "minigpt4_bots.discord.bot", "minigpt4-discord"),
        ("[telegram]", "minigpt4_bots.telegram.bot", "minigpt4-telegram"),
    ],
)
def test_clients_work_without_torch_and_ray(install: Install, extra: str, module: str, script: str) -> None:
    programs = install(extra)
    installed = {line.split("==")[0] for line in run_uv("pip", "freeze", "--python", programs.parent).splitlines()}
    assert "openai" in installed
    assert not installed & SERVER_ONLY
    _run(programs, "python", "-c", f"import {module}")
    _run(programs, script, "--help")


@pytest.mark.skipif((ROOT / ".venv" / ".cpu").exists(), reason="torch with CUDA is not in the cache")
@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("[model]", "minigpt4_serve.model, minigpt4_serve.engine"),
        ("[serve]", "minigpt4_serve.server.ray.app, minigpt4_serve.engine"),
        ("[quantize]", "minigpt4_serve.weights.quantize, bitsandbytes"),
    ],
)
def test_extras_with_torch_import(install: Install, extra: str, module: str) -> None:
    programs = install(extra)
    _run(programs, "python", "-c", f"import {module}")
    _run(programs, "minigpt4", "doctor")


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return BytesParser().parsebytes(archive.read(name))


def test_the_wheel_contains_types_and_licenses(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    licenses = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licenses == {"LICENSE", "THIRD_PARTY_NOTICES"}
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_the_readme_of_a_release_has_no_relative_links(wheel: Path) -> None:
    metadata = _metadata(wheel)
    text = metadata.get_payload()
    assert isinstance(text, str)
    links = [line for line in text.splitlines() if 'src="' in line or "](" in line]
    assert len(links) > 5
    for line in links:
        assert 'src="https:' in line or "](https:" in line or "](#" in line, line
    urls = dict(value.split(", ") for value in metadata.get_all("Project-URL", []))
    assert urls["Repository"] == "https://code.example/minigpt4-serve"
