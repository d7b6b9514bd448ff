"""What docs/web.md says of the command line is so."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minigpt4_serve.cli import app
from minigpt4_serve.errors import InvalidRequest

DOCS = (Path(__file__).parents[2] / "docs" / "web.md").read_text(encoding="utf-8")


def test_the_table_names_the_options_there_are() -> None:
    shown = CliRunner().invoke(app, ["web", "--help"], env={"COLUMNS": "200"}).output
    options = set(re.findall(r"(--[a-z-]+)", shown)) - {"--help"}
    table = [line for line in DOCS.splitlines() if line.startswith("| `--")]
    assert set(re.findall(r"(--[a-z-]+)", "".join(table))) == options
    variables = re.findall(r"`(MINIGPT4_\w+)`", "".join(table))
    assert variables
    for variable in variables:
        assert variable in shown


def test_an_open_door_is_refused_before_anything_starts() -> None:
    done = CliRunner().invoke(app, ["web", "--host", "0.0.0.0"], env={"MINIGPT4_WEB_PASSWORD": ""})
    assert isinstance(done.exception, InvalidRequest)
    with pytest.raises(InvalidRequest, match="Without a password"):
        raise done.exception
