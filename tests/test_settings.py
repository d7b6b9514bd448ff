"""Settings from a file, the command line and the environment; mistakes are one sentence."""

from pathlib import Path
from typing import Any

import pytest

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings import API_KEY_VARIABLE, TINY_MODEL, is_loopback, read_serve_settings


def test_defaults_listen_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    settings = read_serve_settings(None, {})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 9000\nmodel:\n  path: here\n  device: cpu\r\n")
    settings = read_serve_settings(file, {"port": 9001, "model": {"path": Path("there")}})
    assert settings.port == 9001
    assert settings.model.path == Path("there")
    assert settings.model.device == "cpu"


def _nested_aliases(levels: int, width: int) -> str:
    """Lists of ``width`` aliases of the list before."""
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 9000", "prot: there is no such setting"),
        ("model:\n  dtyp: float32", "model.dtyp: there is no such setting"),
        ("port: 99999", "port"),
        ("port: [", "can't be read as YAML"),
        ("- a", "must hold keys"),
        ("model: 5", "model"),
        ("host: 0.0.0.0", "API key"),
        ("host: '::'", "API key"),
        ("host: 192.168.1.5", "API key"),
        ("host: example.org", "API key"),
        ("host: 0.0.0.0\napi_key: ''", "api_key: it is empty"),
        ("api_key: '  '", "api_key: it is empty"),
        ('api_key: "a\\nb"', "api_key: it contains a line break"),
        ("keep_alive_s: 0", "keep_alive_s"),
        ("start_timeout_s: 0", "start_timeout_s"),
        ("cors_origins: ['*']", "needs an API key"),
        ("cors_origins: ['chat.example']", "isn't an origin"),
        ("cors_origins: ['https://chat.example/']", "isn't an origin"),
        ("cors_origins: ['https://*.example']", "isn't an origin"),
        ("cors_origins: ['null']", "isn't an origin"),
        ("port: " + "9" * 5000, "can't be read as YAML"),
        ("port: -0x" + "f" * 5000, "port"),
        ("[" * 5000, "can't be read as YAML"),
        ("{a: " * 5000, "can't be read as YAML"),
        ("a: !!timestamp x", "can't be read as YAML"),
        ("a: !!bool x", "can't be read as YAML"),
        ("a: 2001-99-99", "can't be read as YAML"),
        ("? [a]\n: b", "can't be read as YAML"),
        ("port: 1\n---\nport: 2", "can't be read as YAML"),
        ("a: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: *a}", "contains itself"),
        (_nested_aliases(9, 9), "more than 50,000 values"),
        (_nested_aliases(2, 300), "more than 50,000 values"),
        ("a: " + "x" * 2**20, "larger than 1 MiB"),
    ],
)
def test_a_bad_file_gives_one_sentence_that_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        read_serve_settings(file, {})
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_aliases_work_in_settings(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: &m {device: cpu}\nport: &p 9000\nmetrics_port: *p\n")
    assert read_serve_settings(file, {}).metrics_port == 9000
    file.write_text("model:\n  <<: {device: cpu}\n  dtype: float32\n")
    assert read_serve_settings(file, {}).model.device == "cpu"
    file.write_text("# nothing\n")
    assert read_serve_settings(file, {}).port == 8000


@pytest.mark.parametrize(
    ("text", "wrong"), [("model:", False), ("model:\n  # path: x\nport:", False), ("model: models/x", True)]
)
def test_a_section_without_keys_and_an_option_on_the_line(tmp_path: Path, text: str, wrong: bool) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    given = {"model": {"path": tmp_path}}
    if wrong:
        with pytest.raises(InvalidRequest, match="model: "):
            read_serve_settings(file, given)
    else:
        settings = read_serve_settings(file, given)
        assert (settings.model.path, settings.port) == (tmp_path, 8000)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no settings file"):
        read_serve_settings(tmp_path / "none.yaml", {})


def test_a_key_allows_any_host_and_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "very-secret")
    settings = read_serve_settings(None, {"host": "0.0.0.0"})
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "very-secret"
    assert "very-secret" not in repr(settings)
    with pytest.raises(InvalidRequest) as caught:
        read_serve_settings(None, {"port": 0})
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ("minigpt4-tiny",)),
        ({"model": {"path": TINY_MODEL / ".." / "tiny"}}, ("minigpt4-tiny",)),
        ({"model": {"path": Path("models") / "llama2-7b"}}, ("llama2-7b",)),
        ({"model_name": "a"}, ("a",)),
        ({"model_name": ("a", "b", "a")}, ("a", "b")),
        ({"model_name": ["a", "b"]}, ("a", "b")),
        ({"model_name": ""}, ("minigpt4-tiny",)),
        ({"model_name": ()}, ("minigpt4-tiny",)),
    ],
)
def test_the_model_has_one_name_or_several(given: dict[str, Any], names: tuple[str, ...]) -> None:
    assert read_serve_settings(None, given).model_names == names


def test_names_and_hosts_can_be_lists_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model_name: [a, gpt-4o]\nallowed_hosts: [pictures.example]\n")
    settings = read_serve_settings(file, {})
    assert settings.model_names == ("a", "gpt-4o")
    assert settings.allowed_hosts == ("pictures.example",)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "LocalHost", "127.0.0.1", "127.8.9.1", "::1")),
        *((host, False) for host in ("", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2", "0.0.0.0")),
    ],
)
def test_loopback_names_are_recognized(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
