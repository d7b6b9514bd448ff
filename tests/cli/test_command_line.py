"""The command line without a server: help, bad input, one line per error, no tracebacks."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from drawing import draw, encode
from fakes.openai_replies import Reply
from fakes.openai_server import OpenAIServer
from processes import free_port, run

from minigpt4_serve.cli import COMMANDS, app, main


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(encode(draw("red")))
    return path


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


def _commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All commands with their words, groups included."""
    for name, command in sorted(group.commands.items()):
        yield " ".join((*words, name)), command
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))


ALL_COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_command_and_option_is_described(name: str) -> None:
    command = ALL_COMMANDS[name]
    summary, *_ = command.help.split("\n")
    assert re.fullmatch(r"[A-Z].{9,48}\.", summary), "short enough to be listed whole"
    assert command.get_short_help_str(60) == summary
    for parameter in command.params:
        if parameter.name == "help":
            continue
        assert re.fullmatch(r"[A-Z0-9].*\.", parameter.help or ""), parameter.name
        if not getattr(parameter, "is_flag", False):
            assert re.fullmatch(r"[A-Z|]+(_DIR)?", parameter.metavar or ""), parameter.name


def test_help_is_quick_because_it_loads_little() -> None:
    """Counted in modules: a machine that others use takes twice the seconds, even of its processor."""
    code = (
        "import sys; before = set(sys.modules); from minigpt4_serve.cli import main; sys.argv[1:] = ['--help']\n"
        "try:\n    main()\nfinally:\n    print(*(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True)
    loaded = done.stderr.split()
    assert len(loaded) < 300
    others = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert {"minigpt4_serve", "typer"} <= others
    assert not others & {"PIL", "fastapi", "httpx", "numpy", "openai", "ray", "torch", "transformers", "yaml"}


def test_version() -> None:
    assert run("--version").stdout.startswith("minigpt4-serve 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "none.png", "Q"], "no such file"),
        (["ask", "{picture}", "none.jpg"], "no such file"),
        (["ask", "."], "folder"),
        (["ask", "{text}", "Q"], "not a picture"),
        (["ask", "{half}", "Q"], "damaged"),
        (["ask", "{picture}", "Q", "--server", "http://127.0.0.1:{port}"], "Can't reach a server"),
        (["ask", "{picture}", "Q", "--server", "ftp://x"], "should look like"),
        (["chat", "none.png"], "no such file"),
        (["serve", "--config", "none.yaml"], "no settings file"),
        (["serve", "--host", "0.0.0.0"], "API key"),
    ],
)
def test_errors_are_one_line(
    words: list[str],
    message: str,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.png"
    half = tmp_path / "half.png"
    text.write_text("this is no picture")
    half.write_bytes(picture.read_bytes()[:60])
    places = {"picture": picture, "text": text, "half": half, "port": free_port()}
    monkeypatch.setattr(sys, "argv", ["minigpt4", *(word.format(**places) for word in words)])
    monkeypatch.setenv("MINIGPT4_API_KEY", "")
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    _assert_one_line(ended.value.code, printed.out, printed.err, message)


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["serve", "--port", "{taken}"], {}, "is in use"),
        (["web", "--port", "{taken}"], {}, "is in use"),
        (["demo", "--port", "{taken}"], {}, "is in use"),
        (["serve", "--host", "192.0.2.1", "--keys-file", "{keys}"], {}, "not an address of this machine"),
        (["serve", "--keys-file", "none.json"], {}, "none.json"),
        (["web", "--keys-file", "none.json"], {}, "none.json"),
        (["serve", "--keys-file", "{text}"], {}, "text.png"),
        (["serve"], {"MINIGPT4_KEYS_FILE": "none.json"}, "none.json"),
        (["serve", "--model", "nowhere"], {}, "not a model folder"),
        (["web", "--model", "nowhere"], {}, "not a model folder"),
        (["serve", "--port", "{port}"], {"RAY_TMPDIR": "/dev/null/x"}, "temporary folder"),
        (["demo", "--port", "{port}"], {"RAY_TMPDIR": "/dev/null/x"}, "temporary folder"),
    ],
)
def test_start_errors_come_before_ray_is_imported(
    words: list[str],
    variables: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "minigpt4_serve.server.ray.local_server", None)
    (keys := tmp_path / "keys.json").write_text('{"keys": []}')
    (text := tmp_path / "text.png").write_text("no keys")
    monkeypatch.setenv("MINIGPT4_API_KEY", "")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if "192.0.2.1" in words:
        monkeypatch.setenv("MINIGPT4_API_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"taken": taken.getsockname()[1], "port": free_port(), "keys": keys, "text": text}
        monkeypatch.setattr(sys, "argv", ["minigpt4", *(word.format(**places) for word in words)])
        with pytest.raises(SystemExit) as ended:
            main()
    printed = capfd.readouterr()
    assert "importing Ray" not in printed.err
    _assert_one_line(ended.value.code, printed.out, printed.err, message)


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["ask", "{picture}", "Q"], "", "requires an API key: give --api-key or MINIGPT4_API_KEY."),
        (["ask", "{picture}", "Q"], "wrong", "does not accept this key: correct --api-key or MINIGPT4_API_KEY."),
        (["ask", "{picture}", "Q", "--api-key", "wrong"], "", "correct --api-key or MINIGPT4_API_KEY."),
        (["chat", "{picture}"], "", "requires an API key: give --api-key or MINIGPT4_API_KEY."),
        (["chat", "{picture}"], "wrong", "correct --api-key or MINIGPT4_API_KEY."),
        (["serve", "--status"], "", "requires an API key: give MINIGPT4_API_KEY."),
        (["serve", "--status"], "wrong", "does not accept this key: correct MINIGPT4_API_KEY."),
    ],
)
@pytest.mark.parametrize("models_need_key", [True, False])
def test_a_refused_key_is_one_sentence_with_the_option(
    words: list[str],
    key: str,
    message: str,
    models_need_key: bool,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = None if models_need_key else Reply(body={"data": [{"id": "m"}]})
    with OpenAIServer(key="sesame", models_reply=listed, pages={"/status": Reply(body={})}) as server:
        place = ["--port", str(server.port)] if "--status" in words else ["--server", server.origin]
        monkeypatch.setattr(sys, "argv", ["minigpt4", *(word.format(picture=picture) for word in words), *place])
        monkeypatch.setenv("MINIGPT4_API_KEY", key)
        questions = iter(["Q", ""])
        monkeypatch.setattr("builtins.input", lambda _: next(questions))
        with pytest.raises(SystemExit) as ended:
            main()
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("minigpt4:")]
    assert len(lines) == 1
    assert lines[0].endswith(message)
    assert ended.value.code == (0 if words[0] == "chat" else 1)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("minigpt4_serve")] == []


@pytest.mark.parametrize("words", [["ask", "{picture}", "Q"], ["serve"]])
def test_heavy_imports_add_no_line_to_errors(words: list[str], picture: Path) -> None:
    done = run(*[word.format(picture=picture) for word in words], "--model", "nowhere", MINIGPT4_API_KEY="")
    _assert_one_line(done.returncode, done.stdout, done.stderr, "not a model folder")


def _assert_one_line(code: object, out: str, err: str, message: str) -> None:
    assert code == 1
    lines = [line for line in err.splitlines() if not line.startswith("•")]
    assert len(lines) == 1, err
    assert lines[0].startswith("minigpt4: ")
    assert message in lines[0]
    assert out == ""


@pytest.mark.parametrize(
    ("libraries", "words", "extra"),
    [
        (["ray"], ["serve"], "serve"),
        (["ray", "fastapi", "starlette", "uvicorn", "grpc", "torch", "transformers", "numpy"], ["serve"], "serve"),
        (["torch"], ["ask", "{picture}"], "model"),
        (["torch", "transformers", "numpy", "safetensors", "sentencepiece"], ["ask", "{picture}"], "model"),
        (["ray"], ["web"], "serve"),
    ],
)
def test_a_missing_extra_is_named(libraries: list[str], words: list[str], extra: str, picture: Path) -> None:
    absent = f"sys.modules.update(dict.fromkeys({libraries!r}))"
    without = f"import sys; {absent}; from minigpt4_serve.cli import main; main()"
    place = ["--port", str(free_port())] if words[0] in ("serve", "web") else []
    done = subprocess.run(
        [sys.executable, "-c", without, *[word.format(picture=picture) for word in words], *place],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 1
    assert f'pip install "minigpt4-serve[{extra}]"' in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "is in use" in done.stderr


def test_a_server_of_something_else_is_a_clear_error(picture: Path) -> None:
    nothing = Reply(status=404, body=b"", content_type="text/html")
    with OpenAIServer(models_reply=nothing, default=nothing, chats=False) as other:
        done = run("ask", str(picture), "Q", "--server", other.origin)
    assert done.returncode == 1
    _assert_one_line(done.returncode, done.stdout, done.stderr, "answered with an error")
