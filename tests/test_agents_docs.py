"""docs/agents.md does what it shows: its Python runs in one go, its commands exist, its sentences are the real ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mcp.client.stdio  # noqa: F401 - it keeps the stderr of its import, which must not be one test's capture
import pytest
from code_blocks import code_blocks
from drawing import draw, encode
from fakes.openai_server import vision_server
from scripted_model import ScriptedModel, call_vision_tool, repeat_tool_answer

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = str(Path(sys.executable).parent)


def _run_python(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Everything a reader would paste, one block after another; only the paid model is replaced."""
    import langchain.chat_models

    model = ScriptedModel(script=[call_vision_tool("What color is the circle?", "image_1"), repeat_tool_answer])
    monkeypatch.setattr(langchain.chat_models, "init_chat_model", lambda _: model)
    monkeypatch.setenv("MINIGPT4_BASE_URL", url)
    monkeypatch.delenv("MINIGPT4_API_KEY", raising=False)
    monkeypatch.setenv("PATH", os.pathsep.join([BIN, os.environ["PATH"]]))
    # The MCP client hands on few variables; the server's address goes with the command, as the other examples show.
    code = "\n".join(code_blocks(DOCS, "python")).replace('"--folder", "."', f'"--folder", ".", "--base-url", "{url}"')
    (folder / "photo.png").write_bytes(encode(draw("red", (320, 240))))
    monkeypatch.chdir(folder)
    exec(compile(code, "agents.md", "exec"), {})
    assert model.script == []
    return capfd.readouterr().out


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with vision_server() as server:
        printed = _run_python(tmp_path, server.url, monkeypatch, capfd)
        assert printed.split() == ["red", "redred"], "the agent, the chat model without a new line, the MCP server"
        assert len(server.requests) == 3


@pytest.mark.ray
@pytest.mark.e2e
def test_the_python_examples_run_on_the_real_server(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run_python(tmp_path, server_url, monkeypatch, capfd).lower().count("red") == 3


@pytest.mark.parametrize("text", [DOCS, README], ids=["docs", "README"])
def test_documented_commands_have_their_options(text: str) -> None:
    shown = set(re.findall(r"minigpt4-mcp((?: --?[a-z-]+(?: [^\s`]+)?)+)", text))
    for block in code_blocks(text, "json") if text == DOCS else ():
        (settings,) = json.loads(block)["mcpServers"].values()
        assert settings["command"] == "minigpt4-mcp"
        shown.add(" ".join(["", *settings["args"]]))
    assert shown
    helped = subprocess.run([f"{BIN}/minigpt4-mcp", "--help"], capture_output=True, text=True, timeout=280, check=True)
    for arguments in shown:
        for option in re.findall(r"--[a-z-]+", arguments):
            assert option in helped.stdout, option


def test_documented_errors_exist_in_the_code() -> None:
    rows = re.findall(r"^\| [^|]+ \| (Th[^|]+\.) \|$", DOCS, re.MULTILINE)
    assert len(rows) == 11
    sources = [*(ROOT / "minigpt4_serve" / "client").glob("*.py")]
    sources += (ROOT / "minigpt4_serve" / "images").glob("*.py")
    sources.append(ROOT / "integrations" / "langchain_minigpt4" / "tools.py")
    code = " ".join(path.read_text(encoding="utf-8") for path in sources)
    for row in rows:
        pattern = re.sub(r"33\\ seconds|12\\ hours|image_1,\\ image_2", r"\\{[^}]+\\}", re.escape(row))
        assert re.search(pattern, code), row


def test_documented_defaults_are_the_tools() -> None:
    from langchain_minigpt4 import MiniGPT4VisionTool

    fields: Any = MiniGPT4VisionTool.model_fields
    table = DOCS[DOCS.index("| setting of the tool") : DOCS.index("## A chat model")]
    names = re.findall(r"`([a-z_]+)`", table.replace("`True`", "").replace("`None`", ""))
    assert names
    assert set(names) <= set(fields)
    shown = {"timeout_s": 60, "max_wait_s": 10, "max_images": 8, "max_image_bytes": 20 * 2**20}
    shown |= {"max_answer_chars": 2000, "temperature": 0, "cache_size": 128, "allow_urls": False}
    assert {name: fields[name].default for name in shown} == shown


def test_the_readme_agent_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = code_blocks(README, "py")
    scope: dict[str, Any] = {"model": ScriptedModel(script=[])}
    exec(compile(code, "README.md", "exec"), scope)
    assert {"tools", "ImageHandles.before_model"} <= set(scope["agent"].nodes)
