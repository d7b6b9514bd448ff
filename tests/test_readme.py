"""What the README shows is what happens: its commands are run, its answers compared."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "minigpt4_serve/weights/tiny/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_make_knows_the_two_commands() -> None:
    for target in ("demo", "test"):
        assert f"make {target}" in README
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.e2e
def test_the_request_gives_the_answer_shown(server: str) -> None:
    (command,) = [block for block in _blocks("bash") if "curl" in block]
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", server)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    import json

    answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert answer == _blocks("text")[0].strip()


@pytest.mark.ray
@pytest.mark.e2e
def test_the_python_example_runs(server: str) -> None:
    for number, code in enumerate(_blocks("python")):
        exec(compile(code.replace("http://127.0.0.1:8000", server), f"README.md python {number}", "exec"), {})
