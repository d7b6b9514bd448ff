"""Settings of the bots, from file and environment; their command lines."""

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from minigpt4_bots.core.settings import BotSettings, read_bot_settings

from minigpt4_serve.errors import InvalidRequest

TOKEN = "123456789:AAE-secret_secret_secret_secret_12345"


def read_settings(folder: Path, text: str, **environment: str) -> BotSettings:
    file = folder / "bot.yaml"
    file.write_text(text)
    return read_bot_settings(file, environment)


def test_defaults_need_no_file() -> None:
    settings = read_bot_settings(None, {})
    assert settings.server.base_url == "http://127.0.0.1:8000/v1"
    assert settings.telegram.token is None


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    text = "telegram: {token: from-file}\nserver: {base_url: 'http://file/v1', api_key: a}"
    settings = read_settings(
        tmp_path, text, TELEGRAM_TOKEN=TOKEN, MINIGPT4_BASE_URL="http://env/v1/", MINIGPT4_API_KEY=""
    )
    assert settings.telegram.token is not None
    assert settings.telegram.token.get_secret_value() == TOKEN
    assert settings.server.base_url == "http://env/v1"
    assert settings.server.api_key is not None
    assert settings.server.api_key.get_secret_value() == "a"
    assert TOKEN not in repr(settings)


def test_a_key_without_a_value_counts_as_not_given(tmp_path: Path) -> None:
    settings = read_settings(tmp_path, "server:\ntelegram:\nlimits:\n", TELEGRAM_TOKEN=TOKEN)
    assert settings.model_fields_set == {"telegram"}
    assert settings.telegram.token is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("telegrm: {}", "telegrm: there is no such setting"),
        ("access: {allow: {user: [1]}}", "access.allow.user: there is no such setting"),
        ("limits: {user_per_minute: many}", "limits.user_per_minute"),
        ("limits: {user_per_day: -1}", "limits.user_per_day"),
        ("language: tlh", "language: must be auto or one of en, zh"),
        ("server: {base_url: 'ftp://x'}", "server.base_url: must be an address such as http"),
        ("server: {base_url: 'http://'}", "server.base_url: must be an address such as http"),
        ("telegram: {webhook: {secret: 'no spaces'}}", "telegram.webhook.secret: must be 1 to 256"),
        ("[1, 2]", "must hold keys and values"),
        ("a: [", "can't be read as YAML"),
        ("telegram: 5", "telegram"),
        ("access: {admins: 5}", "access.admins"),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_settings(tmp_path, text, TELEGRAM_TOKEN=TOKEN)
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert TOKEN not in caught.value.message


@pytest.mark.parametrize("name", ["discord", "telegram"])
def test_a_missing_library_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, f"minigpt4_bots.{name}.connection", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv(f"{name.upper()}_TOKEN", "x")
    monkeypatch.setattr(sys, "argv", [f"minigpt4-{name}"])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"minigpt4_bots.{name}.cli").main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"minigpt4-{name}: This needs the extra '{name}': pip install \"minigpt4-serve[{name}]\"\n"
    )


@pytest.mark.parametrize("name", ["discord", "telegram"])
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 1, "minigpt4-{name}: Set {variable}"),
        (["--settings", "none.yaml"], 1, "minigpt4-{name}: There is no settings file none.yaml."),
        (["--nonsense"], 2, "No such option: --nonsense"),
    ],
)
def test_exit_codes_are_those_of_all_commands(
    name: str,
    words: list[str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variable = f"{name.upper()}_TOKEN"
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", [f"minigpt4-{name}", *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"minigpt4_bots.{name}.cli").main()
    printed = capsys.readouterr()
    assert ended.value.code == code
    assert says.format(name=name, variable=variable) in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("name", ["discord", "telegram"])
@pytest.mark.parametrize(("level", "known"), [("WARNING", True), ("debug", True), ("loud", False)])
def test_an_unknown_log_level_is_refused(
    name: str, level: str, known: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(f"{name.upper()}_TOKEN", raising=False)
    monkeypatch.setattr(sys, "argv", [f"minigpt4-{name}", "--log-level", level])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"minigpt4_bots.{name}.cli").main()
    printed = capsys.readouterr().err
    assert ended.value.code == (1 if known else 2)
    assert ("Set " if known else "'loud' is not one of") in printed


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no settings file"):
        read_bot_settings(tmp_path / "nothing.yaml", {})


@pytest.mark.parametrize(
    ("given", "base", "files"),
    [
        ("http://h:8081/bot", "http://h:8081/bot", "http://h:8081/file/bot"),
        ("http://h:8081", "http://h:8081/bot", "http://h:8081/file/bot"),
        ("http://h:8081/", "http://h:8081/bot", "http://h:8081/file/bot"),
    ],
)
def test_addresses_of_a_local_bot_api_server(given: str, base: str, files: str) -> None:
    telegram = read_bot_settings(None, {"TELEGRAM_BASE_URL": given}).telegram
    assert (telegram.base_url, telegram.file_url) == (base, files)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("https://h/", "https://h/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/proxied/v1", "https://h/proxied/v1"),
    ],
)
def test_the_servers_address_is_completed_as_everywhere(given: str, asked: str) -> None:
    assert read_bot_settings(None, {"MINIGPT4_BASE_URL": given}).server.base_url == asked


@pytest.mark.parametrize("given", ["http://f", "http://f/file", "http://f/file/bot", "http://f/file/bot/"])
def test_the_address_of_files_may_be_another(given: str) -> None:
    assert read_bot_settings(None, {"TELEGRAM_BASE_FILE_URL": given}).telegram.file_url == "http://f/file/bot"


@pytest.mark.parametrize("name", ["discord", "telegram"])
def test_the_example_files_are_valid(name: str) -> None:
    file = Path(__file__).parents[3] / "configs" / f"{name}.yaml"
    settings = read_bot_settings(file, {})
    assert settings.model_fields_set == set(yaml.safe_load(file.read_text())) != set()


def test_command_lines_import_no_platform_and_no_cryptography() -> None:
    code = "import sys, minigpt4_bots.discord.cli, minigpt4_bots.telegram.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not set(done.stdout.split()) & {"discord", "telegram", "aiohttp", "cryptography"}
