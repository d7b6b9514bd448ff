"""The README and the other pages: files that they name exist, commands run, answers are those shown."""

import base64
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from code_blocks import code_blocks
from langchain_core.messages import HumanMessage
from scripted_model import ScriptedModel, call_vision_tool, repeat_tool_answer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "minigpt4_serve/weights/tiny/README.md",
]

GENERATED = {"minigpt4_hub.py"}
"""Written into a converted folder."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_link_to_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_that_a_page_names_exist(page: Path) -> None:
    sources = [
        path.relative_to(ROOT).as_posix()
        for folder in ("minigpt4_serve", "integrations", "bots", "tools", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    named = set(re.findall(r"(?<![\w./…])([\w/]+\.py)\b", page.read_text(encoding="utf-8"))) - GENERATED
    assert [name for name in named if not any(f"/{source}".endswith(f"/{name}") for source in sources)] == []


def test_python_blocks_are_those_that_tests_run() -> None:
    """A new block needs a test that runs it; then add its page or raise its number here."""
    blocks = {str(page.relative_to(ROOT)): len(re.findall(r"^```py", page.read_text(), re.MULTILINE)) for page in PAGES}
    assert {page: number for page, number in blocks.items() if number} == {
        "README.md": 1,  # below and in test_agents_docs.py
        "docs/agents.md": 4,
        "docs/api.md": 1,
        "docs/checkpoints.md": 2,
        "docs/clients.md": 7,
    }


def test_the_speed_shown_is_a_measured_row() -> None:
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rate, ratio, plain = re.findall(r"([\d.]+) tokens/s|\*\*([\d.]+) times\*\*", README.split("**How fast**")[1])[:3]
    assert f"| (a) one at a time | {plain[0]} | 7,789 | {ratio[1]}× |" in measured
    assert f"| **(d) this engine** | **{rate[0]}** |" in measured
    assert "| 5,980 ms | 116 ms |" in measured
    assert "5,980 ms" in README
    assert "--preset cpu" in README


def test_make_has_the_two_commands() -> None:
    for target in ("demo", "test"):
        assert f"make {target}" in README
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.e2e
def test_the_request_gives_the_answer_shown(server: str) -> None:
    (command,) = [block for block in code_blocks(README, "bash") if "curl" in block]
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", server)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert answer == code_blocks(README, "text")[0].strip()


@pytest.mark.ray
@pytest.mark.e2e
def test_the_agent_shown_sees_with_the_real_server(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT4_BASE_URL", server_url)
    monkeypatch.delenv("MINIGPT4_API_KEY", raising=False)
    question = "What is in this picture?"
    (code,) = code_blocks(README, "py")
    scope: dict[str, Any] = {"model": ScriptedModel(script=[call_vision_tool(question, "image_1"), repeat_tool_answer])}
    exec(compile(code, "README.md", "exec"), scope)
    picture = base64.b64encode((ROOT / "minigpt4_serve/weights/tiny/example.png").read_bytes()).decode()
    image = {"type": "image", "base64": picture, "mime_type": "image/png"}
    asked = HumanMessage([{"type": "text", "text": question}, image])
    answer = scope["agent"].invoke({"messages": [asked]})["messages"][-1].content
    assert answer == code_blocks(README, "text")[0].strip()
