"""Public names, light imports, dependencies of the extras, names of tests."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import minigpt4_serve


def _modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import minigpt4_serve",
        "import minigpt4_serve.cli, minigpt4_serve.cli.status, minigpt4_serve.entry_point",
        "import minigpt4_serve.settings, minigpt4_serve.cli.sources, minigpt4_serve.images",
        "import minigpt4_serve.images.fetch, minigpt4_serve.protocol, minigpt4_serve.prompt.encoder",
        "import langchain_minigpt4",
        "import mcp_minigpt4",
        "import minigpt4_bots",
        "import minigpt4_serve.client.chat_client",
        "import tools.tiny.shards, tools.tiny.worker",
    ],
)
def test_light_imports_load_neither_torch_nor_ray(statement: str) -> None:
    assert not _modules_after(statement) & {"torch", "ray", "transformers", "fastapi"}


def test_deploying_loads_no_torch_in_the_driver() -> None:
    assert "torch" not in _modules_after("import minigpt4_serve.server.ray.app")


def test_public_names() -> None:
    assert set(minigpt4_serve.__all__) == {"MiniGPT4Error", "__version__"}
    import minigpt4_serve.client as client

    assert set(client.__all__) == {
        "DEFAULT_BASE_URL",
        "DEFAULT_QUESTION",
        "MAX_IMAGES",
        "ChatClient",
        "Completed",
        "Event",
        "FoundBox",
        "ModelCard",
        "PictureSources",
        "Progress",
        "Queued",
        "Retrying",
        "SyncChatClient",
        "TextDelta",
        "TokenUsage",
        "VisionAnswer",
        "VisionClient",
        "find_model",
        "find_model_async",
        "is_handle",
        "path_of_file_url",
        "read_each",
        "server_address",
        "server_key",
        "split_references",
        "wait_for",
    }
    import minigpt4_serve.model as model

    assert set(model.__all__) == {
        "TEMPLATES",
        "ConversationTemplate",
        "EncodedChat",
        "MiniGPT4Config",
        "MiniGPT4ForConditionalGeneration",
        "MiniGPT4ImageProcessor",
        "MiniGPT4Processor",
        "MiniGPT4Tokenizer",
        "Turn",
    }


def test_the_error_tree_is_the_one_its_docstring_draws() -> None:
    from minigpt4_serve import errors

    drawn = errors.__doc__ or ""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.MiniGPT4Error)
        line = next(line for line in drawn.splitlines() if f"{name} " in line)
        assert str(kind.status) in line
        assert kind.code in line


@pytest.mark.parametrize("extra", ["", "langchain", "mcp", "discord", "telegram"])
def test_clients_install_without_torch_or_ray(extra: str) -> None:
    """Covers all packages that the lock has for an extra, on any platform."""
    lock = tomllib.loads((Path(__file__).parent.parent / "uv.lock").read_text(encoding="utf-8"))
    packages: dict[str, list[dict[str, Any]]] = {}
    for package in lock["package"]:
        packages.setdefault(package["name"], []).append(package)
    wanted = [("minigpt4-serve", extra)]
    seen = set()
    while wanted:
        name, chosen = wanted.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        for package in packages[name]:
            needed = package.get("dependencies", []) if not chosen else package["optional-dependencies"].get(chosen, [])
            for need in needed:
                wanted += [(need["name"], more) for more in ("", *need.get("extra", []))]
    names = {name for name, _ in seen}
    expected = {"": "openai", "langchain": "langgraph", "mcp": "mcp", "discord": "discord-py"}
    assert expected.get(extra, "python-telegram-bot") in names
    assert not names & {"torch", "ray", "transformers", "fastapi", "nvidia-cublas"}


def test_test_names_have_at_most_60_characters() -> None:
    names = [
        name
        for path in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    ]
    assert len(names) > 900
    assert [name for name in names if len(name) > 60] == []
