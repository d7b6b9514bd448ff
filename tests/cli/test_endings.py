"""How commands end: Ctrl-C, and without freeing what the system frees anyway."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawing import draw, encode
from fakes.openai_replies import Gate, Reply
from fakes.openai_server import OpenAIServer
from processes import MINIGPT4

from minigpt4_serve.cli.console import Step

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")

ENDING = """
import atexit
from minigpt4_serve.entry_point import end_at_once, run_program
from minigpt4_serve.errors import InvalidRequest
atexit.register(print, "freed")
def work():
    print("worked")
    {early}
    {ending}
run_program("p", work, {{}})
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(None)", 0),
        ("raise SystemExit(3)", 3),
        ("raise InvalidRequest('no')", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_command_may_end_without_freeing_its_objects(ending: str, code: int, early: bool) -> None:
    script = ENDING.format(ending=ending, early="end_at_once()" if early else "")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code
    assert done.stdout.split() == (["worked"] if early else ["worked", "freed"])
    assert "Traceback" not in done.stderr


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(encode(draw("red")))
    return path


def test_ctrl_c_while_the_model_loads_is_quiet(picture: Path) -> None:
    with subprocess.Popen([MINIGPT4, "ask", str(picture)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "• loading the model …\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
        assert process.stderr.read() == ""


@pytest.mark.parametrize("words", [["ask", "{picture}", "Q"], ["chat", "{picture}"]])
def test_ctrl_c_while_a_server_answers_is_quiet(words: list[str], picture: Path) -> None:
    gate = Gate()
    with OpenAIServer(models_reply=Reply(body={"data": [{"id": "m"}]}), default=Reply([gate]), chats=False) as server:
        command = [MINIGPT4, *(word.format(picture=picture) for word in words), "--server", server.origin]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
            process.stdin.write("Q\n")
            process.stdin.flush()
            deadline = time.monotonic() + 120
            while not server.requests and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, printed = process.communicate("\n", timeout=120)
        gate.open()
    assert process.returncode == (130 if words[0] == "ask" else 0)
    assert [line for line in printed.splitlines() if not line.startswith("Ask about")] == []


@pytest.mark.parametrize(
    ("error", "result"),
    [(None, " s"), (ValueError(), "failed"), (KeyboardInterrupt(), None), (SystemExit(143), None)],
)
def test_a_step_that_a_signal_stops_has_not_failed(
    error: BaseException | None, result: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        with Step("waiting"):
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, SystemExit):
        pass
    begun, *rest = capsys.readouterr().err.splitlines()
    assert begun == "• waiting …"
    assert [line.endswith(result) for line in rest if result] == ([True] if result else [])
    assert result or rest == []
