"""docs/clients.md: each snippet that is marked as tested runs in an environment with its client only."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_app import serving
from uv_command import run_uv

from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.load import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("clients"),
]
ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SNIPPETS: dict[str, tuple[str, str]] = {
    name: (language, code)
    for language, name, code in re.findall(r"^```(python|bash|js) ([\w-]+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}
PACKAGES = {"pydantic-ai": "pydantic-ai-slim[openai]"}  # others are named as their snippets
COLORS = ("white", "black", "gray")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the embedded model."""
    with serving(load_model(ModelSettings(device="cpu")), model_name="minigpt4-tiny") as (client, _):
        yield str(client.base_url)


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": f"{Path(command[0]).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd), **env},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def _install(name: str, folder: Path) -> Path:
    """A new environment with the client; the path of its Python."""
    run_uv("venv", "-q", folder / "env")
    python = folder / "env" / "bin" / "python"
    run_uv("pip", "install", "-q", "-p", python, PACKAGES.get(name, name))
    return python


@pytest.mark.parametrize("name", [name for name, (language, _) in SNIPPETS.items() if language == "python"][1:])
def test_a_python_client_works(name: str, address: str, tmp_path: Path) -> None:
    python = _install(name, tmp_path)
    code = SNIPPETS["shared"][1] + SNIPPETS[name][1]
    printed = _run(python, "-c", code.replace("http://127.0.0.1:8000", address), cwd=_checkout(tmp_path))
    if "Literal" in code:
        assert re.search("|".join(f"background=.{color}." for color in COLORS), printed), printed
    else:
        assert "star" in printed


def test_the_command_line_client_works(address: str, tmp_path: Path) -> None:
    python = _install("llm", tmp_path)
    folder = tmp_path / "llm"
    folder.mkdir()
    code = SNIPPETS["llm"][1].replace("http://127.0.0.1:8000", address)
    bash = python.parent / "bash"
    bash.symlink_to(str(shutil.which("bash")))
    printed = _run(bash, "-ec", code, cwd=_checkout(tmp_path), LLM_USER_PATH=str(folder))
    assert "star" in printed
    assert re.search(r'\{"objects": -?\d+\}', printed), printed


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_ai_sdk_works(address: str, tmp_path: Path) -> None:
    npm = str(shutil.which("npm"))
    packages = re.findall(r"`npm install ([^`]+)`", PAGE)[0].split()
    done = subprocess.run(
        [npm, "install", "--silent", "--prefix", str(tmp_path), *packages],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "ask.mjs").write_text(SNIPPETS["ai"][1].replace("http://127.0.0.1:8000", address))
    printed = _run(str(shutil.which("node")), tmp_path / "ask.mjs", cwd=_checkout(tmp_path))
    assert re.search("|".join(f"background: .{color}." for color in COLORS), printed), printed


def _checkout(folder: Path) -> Path:
    """A folder with the picture where the page's snippets expect it, and nothing else of the checkout."""
    picture = Path("minigpt4_serve/weights/tiny/example.png")
    target = folder / "checkout" / picture
    target.parent.mkdir(parents=True)
    shutil.copy(ROOT / picture, target)
    return folder / "checkout"


def test_each_client_has_a_snippet_or_says_why() -> None:
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
    for title, text in sections.items():
        tested = bool(re.search(r"^```(?:python|bash|js) [\w-]+$", text, re.MULTILINE))
        assert tested == text.strip().startswith("Tested"), title
        assert tested or "test" in text or "logits" in text, title
