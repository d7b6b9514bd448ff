"""The MCP server with the official SDK's client: in this process, over stdio and over HTTP, as MCP clients start it."""

import asyncio
import base64
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drawing import draw, encode
from fakes.openai_replies import ENDLESS, KEY, USAGE, ErrorEvent, Gate, Reply, refusal
from fakes.openai_server import OpenAIServer, vision_server
from mcp import Client, StdioServerParameters
from mcp_minigpt4 import cli, create_server
from mcp_minigpt4.server import _folders, _Roots
from mcp_types import CallToolResult, ListRootsResult, Root, TextContent
from processes import free_port
from waiting import wait_until

from minigpt4_serve.client import PictureSources, VisionAnswer, VisionClient

COMMAND = str(Path(sys.executable).with_name("minigpt4-mcp"))
SECRET = "sk-the-real-key-77"
TOOL = "look_at_pictures"
INITIALIZE = (
    b'{"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", '
    b'"capabilities": {}, "clientInfo": {"name": "person", "version": "1"}}}\n'
)


@pytest.fixture
def eyes() -> Iterator[OpenAIServer]:
    with vision_server() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "pictures"
    inside.mkdir()
    for color in ("red", "green", "blue"):
        (inside / f"{color}.png").write_bytes(encode(draw(color)))
    (tmp_path / "outside.png").write_bytes(encode(draw()))
    (inside / "notes.txt").write_text("hello")
    damaged = encode(draw(size=(400, 400)))
    (inside / "damaged.png").write_bytes(damaged[: len(damaged) // 2])
    return inside


def words(result: Any) -> str:
    assert isinstance(result, CallToolResult)
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def data_url(color: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode(draw(color))).decode()}"


async def use(client: Client, first: str, second: str) -> None:
    """What any client does: list, call with one picture, compare two, read typed results and progress."""
    (tool,) = (await client.list_tools()).tools
    assert tool.name == TOOL
    assert set(tool.input_schema["properties"]) == {"images", "question"}
    assert tool.input_schema["required"] == ["images"]
    assert tool.output_schema is not None
    assert {"text", "digests", "usage", "boxes"} <= set(tool.output_schema["properties"])
    assert tool.annotations is not None
    assert tool.annotations.read_only_hint is True
    messages: list[str] = []

    async def progress(_: float, __: float | None, message: str | None) -> None:
        messages.append(message or "")

    result = await client.call_tool(TOOL, {"images": [first], "question": "Colour?"}, progress_callback=progress)
    assert not result.is_error
    assert re.search(r'<picture_answer id="(\w+)">\nred\n</picture_answer id="\1">', words(result))
    answer = VisionAnswer.model_validate(result.structured_content)
    assert answer.text == "red"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == USAGE["prompt_tokens"]
    assert messages[0] == "waiting, 2 ahead"
    assert messages[1].startswith("answering")
    both = await client.call_tool(TOOL, {"images": [first, second]})
    assert "red and blue" in words(both)


async def test_the_tool_works_within_the_process(eyes: OpenAIServer, folder: Path) -> None:
    server = create_server(VisionClient(eyes.url), PictureSources((folder,)))
    async with Client(server) as client:
        await use(client, "red.png", str(folder / "blue.png"))
        assert "green" in words(await client.call_tool(TOOL, {"images": [data_url("green")]}))


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_stdio_reads_files_of_the_clients_roots(mode: str, eyes: OpenAIServer, folder: Path) -> None:
    async def roots(_: Any) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri=folder.as_uri())])  # type: ignore[arg-type]

    started = StdioServerParameters(command=COMMAND, env={"MINIGPT4_BASE_URL": eyes.url})
    async with Client(started, mode=mode, list_roots_callback=roots) as client:
        await use(client, str(folder / "red.png"), "blue.png")
        outside = await client.call_tool(TOOL, {"images": [str(folder.parent / "outside.png")]})
        assert outside.is_error


async def test_http_reads_only_folders_of_the_settings(eyes: OpenAIServer, folder: Path) -> None:
    async def roots(_: Any) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri=folder.parent.as_uri())])  # type: ignore[arg-type]

    port = free_port()
    words_of_command = ["--transport", "http", "--port", str(port), "--folder", str(folder), "--base-url", eyes.url]
    process = await asyncio.create_subprocess_exec(COMMAND, *words_of_command)
    try:
        await asyncio.wait_for(_listening(port, process), timeout=150)
        async with Client(f"http://127.0.0.1:{port}/mcp", list_roots_callback=roots) as client:
            await use(client, "red.png", str(folder / "blue.png"))
            outside = await client.call_tool(TOOL, {"images": [str(folder.parent / "outside.png")]})
            assert outside.is_error
            assert "outside the folders" in words(outside)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), timeout=60)


async def test_canceling_a_call_aborts_the_request(eyes: OpenAIServer, folder: Path) -> None:
    started = StdioServerParameters(
        command=COMMAND, args=["--folder", str(folder)], env={"MINIGPT4_BASE_URL": eyes.url}
    )
    here = create_server(VisionClient(eyes.url, max_chars=10**6), PictureSources((folder,)))
    for server in (here, started):
        eyes.answers = [ENDLESS]
        eyes.aborted.clear()
        async with Client(server) as client:
            before = len(eyes.requests)
            calling = asyncio.create_task(client.call_tool(TOOL, {"images": ["red.png"]}))
            await wait_until(lambda before=before, calling=calling: len(eyes.requests) > before or calling.done())
            assert not calling.done()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            await wait_until(lambda: eyes.aborted)  # long before the answer would be cut
            # The server goes on.
            assert "red" in words(await client.call_tool(TOOL, {"images": ["red.png"]}))


async def test_calls_run_concurrently(eyes: OpenAIServer, folder: Path) -> None:
    async with Client(create_server(VisionClient(eyes.url), PictureSources((folder,)))) as client:
        names = ["red", "green", "blue"]
        calls = [client.call_tool(TOOL, {"images": [f"{name}.png"]}) for name in names]
        assert [words(result).split("\n")[2] for result in await asyncio.gather(*calls)] == names


@pytest.mark.parametrize(
    ("roots", "folders"),
    [
        (
            [{"uri": "file:///home/me/My%20Pictures"}, {"uri": "https://example.com/a"}, {"uri": "file://"}],
            ["/home/me/My Pictures"],
        ),
        ([{"uri": "vscode-remote://ssh/home/me"}, {"uri": "file:///"}, {"uri": "file://server/share"}], ["/"]),
        ([None, 1, "a", {}, {"uri": None}, {"uri": "file:a"}, {"uri": "file://["}, {"uri": "file:///a"}], ["/a"]),
        ([Root(uri="file:///a")], ["/a"]),  # type: ignore[arg-type]
        (None, []),
        ({}, []),
        ("file:///a", []),
    ],
)
def test_only_folders_among_roots_are_used(roots: Any, folders: list[str]) -> None:
    assert _folders(_Roots(roots=roots)) == [Path(folder) for folder in folders]


class RawClient:
    """Writes and reads lines of a server on stdio, as a client that doesn't follow the protocol may."""

    def __init__(self, process: asyncio.subprocess.Process, roots_answer: Any) -> None:
        self._process = process
        self._roots_answer = roots_answer
        self.asked = 0

    async def send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        await self._process.stdin.drain()

    async def result(self, wanted: int) -> Any:
        """The response to a request, and answers to ``roots/list`` meanwhile."""
        assert self._process.stdout is not None
        while True:
            message = json.loads(await self._process.stdout.readline())
            if message.get("method") == "roots/list":
                self.asked += 1
                if self._roots_answer is not None:
                    await self.send({"id": message["id"], **self._roots_answer})
            elif message.get("id") == wanted and "method" not in message:
                return message

    async def call(self, number: int, *images: str) -> Any:
        await self.send(
            {"id": number, "method": "tools/call", "params": {"name": TOOL, "arguments": {"images": images}}}
        )
        return (await self.result(number))["result"]


ROOTS_ANSWERS: dict[str, Any] = {
    "never": None,
    "an error": {"error": {"code": -32603, "message": "no"}},
    "nothing": {"result": {}},
    "null": {"result": {"roots": None}},
    "others": {"result": {"roots": [{"uri": "vscode-remote://x/y"}, {"uri": "http://x"}, {"uri": "OTHER"}]}},
    "odd ones": {"result": {"roots": [1, None, {"name": "a"}, {"uri": "OTHER", "name": 5}]}},
}


@pytest.mark.parametrize("name", ROOTS_ANSWERS)
async def test_calls_are_answered_whatever_the_roots_are(name: str, eyes: OpenAIServer, folder: Path) -> None:
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "blue too.png").write_bytes(encode(draw("blue")))
    other = (folder.parent / "other").as_uri()
    answer = json.loads(json.dumps(ROOTS_ANSWERS[name]).replace("OTHER", other))
    code = (
        "from mcp_minigpt4 import create_server; from minigpt4_serve.client import PictureSources, VisionClient\n"
        "from pathlib import Path; import sys\n"
        "sources = PictureSources((Path(sys.argv[2]),))\n"
        "create_server(VisionClient(sys.argv[1]), sources, trust_roots=True, roots_timeout_s=1).run('stdio')"
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, eyes.url, str(folder), stdin=pipe, stdout=pipe, limit=2**22
    )
    try:
        client = RawClient(process, answer)
        start = json.loads(INITIALIZE)
        start["params"]["capabilities"] = {"roots": {"listChanged": True}}
        await client.send(start)
        await client.result(1)
        await client.send({"method": "notifications/initialized"})
        for number, image in enumerate(("red.png", str(folder / "red.png"), data_url("red")), start=2):
            assert "red" in (await client.call(number, image))["content"][0]["text"]
        assert client.asked == 0, "no call needed roots"
        result = await client.call(9, "blue too.png")
        assert client.asked == 1
        if "OTHER" in json.dumps(ROOTS_ANSWERS[name]):
            assert "blue" in result["content"][0]["text"]
        else:
            assert "no readable picture" in result["content"][0]["text"]
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"images": "red.png"}, "red"),
        ({"images": '["red.png", "blue.png"]'}, "red and blue"),
        ({"images": ["'red.png'"]}, "red"),
        ({"images": None}, "Call this tool with"),
        ({"images": 5}, "Call this tool with"),
        ({"images": [{"path": "red.png"}]}, "Call this tool with"),
        ({"image": "red.png"}, "Call this tool with"),
        ({"images": ["red.png"], "question": ["a"]}, "Call this tool with"),
    ],
)
async def test_arguments_as_models_write_them(
    arguments: dict[str, Any], expected: str, eyes: OpenAIServer, folder: Path
) -> None:
    async with Client(create_server(VisionClient(eyes.url), PictureSources((folder,)))) as client:
        text = words(await client.call_tool(TOOL, arguments))
    assert expected in text
    assert "pydantic" not in text
    assert "http" not in text


def test_sessions_over_http_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setattr("mcp.server.mcpserver.MCPServer.run", lambda *_, **options: started.update(options))
    cli.serve(transport=cli.Transport.HTTP)
    assert started["session_idle_timeout"] <= 3600
    assert started["max_sessions"] <= 1000


def test_ctrl_c_ends_an_idle_server() -> None:
    process = subprocess.Popen([COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(INITIALIZE)
        process.stdin.flush()
        assert b"serverInfo" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=150) == -signal.SIGINT
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_missing_sdk_is_explained_in_one_line() -> None:
    code = (
        "import sys; sys.modules['mcp'] = None; sys.argv = ['minigpt4-mcp']; from mcp_minigpt4.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 1
    assert done.stderr == "minigpt4-mcp: This needs the extra 'mcp': pip install \"minigpt4-serve[mcp]\"\n"


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    while True:
        assert process.returncode is None, "the server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--transport", "http", "--host", "0.0.0.0"], 1, "this machine only"),
        (["--base-url", "eyes:8000"], 1, "should look like http://"),
        (["--port", "0"], 2, "greater than or equal to 1"),
        (["--transport", "carrier-pigeon"], 2, "carrier-pigeon"),
    ],
)
def test_wrong_settings_are_explained(arguments: list[str], code: int, sentence: str) -> None:
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == code
    assert sentence in " ".join(done.stderr.split())
    assert done.stdout == ""


def _answers(*answers: Any) -> Callable[[OpenAIServer], dict[str, Any]]:
    def prepare(server: OpenAIServer) -> dict[str, Any]:
        server.answers = list(answers)
        return {}

    return prepare


def _locked(server: OpenAIServer) -> dict[str, Any]:
    server.key = KEY
    return {}


_RED = {"images": ["red.png"]}
# name → (preparation of the vision server that gives the client's settings, arguments, words of the sentence)
FAILURES: dict[str, tuple[Callable[[OpenAIServer], dict[str, Any]], dict[str, Any], str]] = {
    "server down": (
        lambda _: {"base_url": f"http://127.0.0.1:{free_port()}", "max_wait_s": 0},
        _RED,
        "can't be reached",
    ),
    "wrong key": (_locked, _RED, "refused the key"),
    "too large for the server": (_answers(refusal(413)), _RED, "fewer or smaller"),
    "busy": (_answers(refusal(429, "overloaded", retry_after="33")), _RED, "try again in 33 seconds"),
    "key used up": (
        _answers(refusal(429, "rate_limit_exceeded", retry_after="43000")),
        _RED,
        "key's share of the vision server is used up; try again in 12 hours",
    ),
    "too slow": (_answers(refusal(408, "deadline_exceeded")), _RED, "time for this request ran out"),
    "timeout": (lambda s: {**_answers(Reply(hold=Gate()))(s), "timeout_s": 0.3}, _RED, "did not answer in time"),
    "dies in the middle": (_answers(Reply(["a red", ErrorEvent()])), _RED, "failed while answering"),
    "no such model": (lambda _: {"model": "other"}, _RED, "no such model"),
    "corrupt image": (lambda _: {}, {"images": ["damaged.png"]}, "damaged"),
    "not a picture": (lambda _: {}, {"images": ["notes.txt"]}, "not a picture"),
    "one of several": (lambda _: {}, {"images": ["red.png", "notes.txt"]}, "Picture 2 of 2:"),
    "no such file": (lambda _: {}, {"images": ["gone.png"]}, "no readable picture"),
    "path outside": (lambda _: {}, {"images": ["../outside.png"]}, "outside the folders"),
    "private url": (lambda _: {}, {"images": ["https://10.0.0.7/a.png"]}, "public internet"),
    "plain http": (lambda _: {}, {"images": ["http://example.com/a.png"]}, "https://"),
    "damaged data url": (lambda _: {}, {"images": ["data:image/png;base64,!!!"]}, "base64"),
    "no image": (lambda _: {}, {"images": []}, "No picture is given"),
    "too many images": (lambda _: {}, {"images": ["red.png"] * 9}, "At most 8"),
    "empty question": (lambda _: {}, {**_RED, "question": " "}, "question is empty"),
    "no arguments": (lambda _: {}, {}, "Call this tool with 'question', a text, and 'images'"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_failures_are_errors_with_advice(name: str, eyes: OpenAIServer, folder: Path) -> None:
    prepare, arguments, sentence = FAILURES[name]
    settings = {"base_url": eyes.url, "api_key": None, **prepare(eyes)}
    server = create_server(VisionClient(**settings), PictureSources((folder,), urls=True))
    async with Client(server) as client:
        result = await client.call_tool(TOOL, arguments)
    text = words(result)
    assert result.is_error
    assert sentence in text
    for secret in (KEY, str(folder.parent), "/srv", "Traceback", "127.0.0.1"):
        assert secret not in text
