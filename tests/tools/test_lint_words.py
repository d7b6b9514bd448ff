"""Each rule of the words' check finds what it is for, and leaves alone what it isn't for."""

from pathlib import Path

import pytest

from tools import lint_words


def _messages(source: str) -> list[str]:
    return [finding.message for finding in lint_words.lint_python("module.py", source)]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("# Whoever waits is served.\n", "'Whoever'"),
        ('"""The queue is full,\nand nobody waits."""\n', "'nobody'"),
        ('raise ValueError("The key is told to the server.")\n', "'told'"),
        ('text = f"{name} hears of it"\n', "'hears'"),
        ("def test_nobody_waits(): ...\n", "the name 'test_nobody_waits'"),
        ("class NobodyWaits: ...\n", "the name 'NobodyWaits'"),
        ("normalise = 1\n", "'normalize'"),
        ("# The neighbour waits\n", "'neighbor'"),
        ('"""A coloured box."""\n', "'colored'"),
        ("# The task was cancelled.\n", "'canceled'"),
        ("entry.check_room()\n", "'check_capacity'"),
        ('"""Knows nothing of HTTP."""\n', "say what the code does"),
        ('def find():\n    """Is there one?\n\n    Returns: one.\n    """\n', "states"),
        ("from collections.abc import Sequence as Ids\n", "'Ids'"),
        ("def name_of(file): ...\n", "begin with a verb"),
        ("self.size, self.depth = 1, 2\n", "one line each"),
        ("count = total + (not name)\n", "use if"),
        ("count += name in names\n", "use if"),
    ],
)
def test_what_is_not_used_is_found(source: str, part: str) -> None:
    (message, *_) = _messages(source)
    assert part in message


@pytest.mark.parametrize(
    "source",
    [
        "# An image is decoded again; no one waits.\n",
        'ask("What colour is the circle?")\n',
        "task.cancelled()\n",
        "raise asyncio.CancelledError\n",
        '"""Whether there is one: yes."""\n',
        "def of(value): ...\n",
        "a, b = b, a\n",
        "total, rest = rest, total - rest\n",
        "a, b = pair\n",
        "a, *b = 1, 2\n",
        "mask = (ids == stop) * weights\n",
        "from collections.abc import Sequence\n",
        "# they asked whoever was there  # words: allow\n",
        "size = emphasis + organism + enterprise + promise\n",
    ],
)
def test_other_sources_pass(source: str) -> None:
    assert _messages(source) == []


def test_findings_have_the_line_of_the_word() -> None:
    source = 'x = 1\n"""First.\n\nAsk somebody.\n"""\n'
    assert [finding.line for finding in lint_words.lint_python("module.py", source)] == [4]
    page = "# Title\n\nA key that is left\nover.\n"
    (finding,) = lint_words.lint_markdown("page.md", page)
    assert str(finding) == "page.md:3: 'left over': write unexpected (keys), remaining"


def test_markdown_lines_can_be_allowed() -> None:
    assert lint_words.lint_markdown("page.md", "They said whoever. <!-- words: allow -->\n") == []


def test_a_finding_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lint_words, "ROOT", tmp_path)
    monkeypatch.setattr(lint_words, "_files", lambda _: ["page.md", "module.py"])
    (tmp_path / "page.md").write_text("# A page\n")
    (tmp_path / "module.py").write_text("x = 1\n")
    assert lint_words.main() == 0
    (tmp_path / "module.py").write_text("# anew\n")
    assert lint_words.main() == 1
    assert capsys.readouterr().out == "module.py:1: 'anew': write again\n"


def test_history_translations_and_fixtures_are_left_out() -> None:
    files = lint_words._files(())
    assert "README.md" in files
    assert "tools/lint_words.py" not in files
    assert not [name for name in files if name.startswith(("CHANGELOG", "tests/golden/")) or name.endswith(".yaml")]
