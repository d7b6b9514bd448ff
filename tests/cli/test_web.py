"""``minigpt4 web``: which address it opens, where, and with which settings."""

import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from minigpt4_serve.cli import app
from minigpt4_serve.cli import web as web_command
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings import ServeSettings

DISPLAYS = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")


class Started:
    """What ``run_server`` was called with; the server is ready at once."""

    def __init__(self) -> None:
        self.settings: ServeSettings | None = None

    def __call__(
        self,
        settings: ServeSettings,
        config: Path | None,
        overrides: dict[str, Any],
        *,
        on_ready: Callable[[str], None],
    ) -> None:
        self.settings = settings
        on_ready("http://unused")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    monkeypatch.setattr(web_command, "run_server", started)
    return started


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that browsers are asked to open; the thread that opens them has ended."""
    urls: list[str] = []

    class Immediate(threading.Thread):
        def start(self) -> None:
            self.run()

    monkeypatch.setattr(web_command.threading, "Thread", Immediate)
    monkeypatch.setattr(webbrowser, "open", urls.append)
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(web_command.sys, "platform", "linux")
    return urls


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ([], "http://127.0.0.1:8000/"),
        (["--port", "9000"], "http://127.0.0.1:9000/"),
        (["--host", "localhost"], "http://localhost:8000/"),
        (["--host", "0.0.0.0", "--keys-file", "{keys}"], "http://127.0.0.1:8000/"),
        (["--host", "::", "--keys-file", "{keys}"], "http://[::1]:8000/"),
        (["--host", "::1"], "http://[::1]:8000/"),
    ],
)
def test_the_page_of_the_server_is_opened(
    words: list[str], url: str, started: Started, opened: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    done = CliRunner().invoke(app, ["web", *[word.format(keys=tmp_path / "keys.json") for word in words]])
    assert done.exit_code == 0, done.output
    assert f"Open {url} " in done.output
    assert opened == [url]


@pytest.mark.parametrize("name", [*DISPLAYS, None])
def test_no_browser_opens_without_a_display(
    name: str | None, started: Started, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name:
        monkeypatch.setenv(name, "x")
    done = CliRunner().invoke(app, ["web"])
    assert "Open http://127.0.0.1:8000/ " in done.output
    assert bool(opened) == bool(name)


def test_settings_of_the_file_count(started: Started, opened: list[str], tmp_path: Path) -> None:
    (file := tmp_path / "serve.yaml").write_text("port: 8123\nmodel_name: mine\n")
    done = CliRunner().invoke(app, ["web", "--config", str(file)])
    assert "Open http://127.0.0.1:8123/ " in done.output
    assert started.settings is not None
    assert started.settings.model_name == "mine"


def test_a_page_that_is_switched_off_is_refused(started: Started, tmp_path: Path) -> None:
    (file := tmp_path / "serve.yaml").write_text("page: false\n")
    done = CliRunner().invoke(app, ["web", "--config", str(file)])
    assert isinstance(done.exception, InvalidRequest)
    assert "page: false" in str(done.exception)
    assert started.settings is None


@pytest.mark.parametrize("words", [["--password", "x"], ["--server", "http://127.0.0.1:1"]])
def test_options_of_the_former_page_are_wrong_usage(words: list[str], started: Started) -> None:
    done = CliRunner().invoke(app, ["web", *words])
    assert done.exit_code == 2
    assert started.settings is None
