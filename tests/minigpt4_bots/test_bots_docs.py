"""README.md and docs/bots.md agree with the code."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from discord import Permissions
from minigpt4_bots.core.commands import COMMAND_NAMES
from minigpt4_bots.core.settings import ENVIRONMENT, BotSettings

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bots" / "minigpt4_bots"
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/bots.md")}


@pytest.mark.parametrize("name", TEXTS)
def test_variables_are_read(name: str) -> None:
    named = set(re.findall(r"\b((?:DISCORD|TELEGRAM)_[A-Z_]+[A-Z])\b", TEXTS[name]))
    assert named
    assert named <= set(ENVIRONMENT)


@pytest.mark.parametrize("name", TEXTS)
def test_the_invitation_grants_what_the_bot_needs_and_no_more(name: str) -> None:
    (address,) = re.findall(r"https://discord\.com/oauth2/authorize\?[^`\s]+", TEXTS[name])
    query = parse_qs(urlsplit(address).query)
    assert query["scope"] == ["bot applications.commands"]
    granted = [permission for permission, is_on in Permissions(int(query["permissions"][0])) if is_on]
    expected = ["read_messages", "send_messages", "read_message_history", "send_messages_in_threads"]
    assert sorted(granted) == sorted(expected)


@pytest.mark.parametrize("name", TEXTS)
def test_pictures_are_there_and_small(name: str) -> None:
    sources = re.findall(r'src="([^"]+)"', TEXTS[name])
    assert len(sources) >= 2
    for source in sources:
        assert 1000 < (ROOT / name).parent.joinpath(source).stat().st_size < 200_000


def test_named_settings_commands_and_sentences_exist() -> None:
    text = TEXTS["docs/bots.md"]
    keys = re.findall(r"`(telegram\.[a-z_.]+)`", text)
    assert keys
    for key in keys:
        value: object = BotSettings()
        for step in key.split("."):
            value = getattr(value, step)
    assert {f"/{command}" for command in COMMAND_NAMES} <= set(re.findall(r"`(/[a-z]+)`", text))
    code = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    cells = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    sentences = [cell for cell in cells if cell[0].isupper() and "_" not in cell.split()[0]]
    assert len(sentences) >= 3
    for sentence in sentences:
        for part in sentence.split(" … "):
            assert part in code, part
