"""Safe Markdown: always closed, without active links and mentions."""

import re
import time

import pytest
from answer_texts import TICKS
from hypothesis import given, settings
from minigpt4_bots.core.markup import ZERO_WIDTH, safe_markdown
from minigpt4_bots.telegram.markup import telegram_html


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("plain words", "plain words"),
        ("@everyone look", f"@{ZERO_WIDTH}everyone look"),
        ("<@123> <@&4> <#5>", f"<{ZERO_WIDTH}@{ZERO_WIDTH}123> <{ZERO_WIDTH}@{ZERO_WIDTH}&4> <{ZERO_WIDTH}#5>"),
        ("https://evil.example/a?b=c.", "`https://evil.example/a?b=c`."),
        ("<https://evil.example>", "`https://evil.example`"),
        ("[click](https://evil.example)", "click (`https://evil.example`)"),
        ("![x](http://a.example/p(1).png)", "x (`http://a.example/p(1).png`)"),
        ("[https://good.example](https://evil.example)", "`https://good.example` (`https://evil.example`)"),
        ("go to evil.example/x now", "go to `evil.example/x` now"),
        ("VISIT EVIL.COM", "VISIT `EVIL.COM`"),
        ("T.ME/FREEGIFT now", "`T.ME/FREEGIFT` now"),
        ("10.0.0.1:80/x and 10.0.0.1.", "`10.0.0.1:80/x` and `10.0.0.1`."),
        ("xn--e1afmkfd.xn--p1ai", "`xn--e1afmkfd.xn--p1ai`"),
        ("пример.рф/подарок", "`пример.рф/подарок`"),
        ("пример.рф", f"пример.{ZERO_WIDTH}рф"),
        ("Evil.Com", f"Evil.{ZERO_WIDTH}Com"),
        ("_evil.com_ ...evil.com", "_`evil.com`_ ...`evil.com`"),
        ("a@evil.com", f"a@{ZERO_WIDTH}evil.{ZERO_WIDTH}com"),
        ("evil.com/", "`evil.com/`"),
        ("10.0.0.1:80", "`10.0.0.1:80`"),
        ("x/evil.com/@everyone/https://evil.com", "x/`evil.com/@everyone/https://evil.com`"),
        ("tg://user?id=5", "`tg://user?id=5`"),
        ("e.g. 3.14 and so on... end.", "e.g. 3.14 and so on... end."),
        ("`@everyone` stays code", "`@everyone` stays code"),
        ("run /stop now", f"run /{ZERO_WIDTH}stop now"),
        ("and/or", "and/or"),
        ("```py\nx = '@a'", "```py\nx = '@a'\n```"),
        ("```\na\n```\nafter", "```\na\n```\nafter"),
        ("||secret", "||secret||"),
        ("||secret|| open", "||secret|| open"),
        ("a || b", "a || b"),
        ("cat```\n```\n@everyone", "cat\u02cb\u02cb\u02cb\n```\n@everyone\n```"),
        ("a ` b\n`@everyone`", "a \u02cb b\n`@everyone`"),
        ("x``` y `@here`", "x\u02cb\u02cb\u02cb y `@here`"),
        ("\\`@here`", f"\\{ZERO_WIDTH}`@here`"),
        ("````a ``` b````", "`a \u02cb\u02cb\u02cb b`"),
        ("``a`b``", "``a`b``"),
    ],
)
def test_safe_markdown(given_: str, shown: str) -> None:
    assert safe_markdown(given_) == shown


@pytest.mark.parametrize(
    "text",
    [
        "e.g. this, i.e. that",
        "3.5 stars, 1.2.3, v1.2.3.4a",
        "the end.Next one",
        "конец.Дальше",
        "苹果.香蕉",
        "U.S.A. and Ph.D.",
        "wait... what",
        "src/main.py",
        "a_b.c_d",
        "__init__",
    ],
)
def test_ordinary_words_look_as_they_were(text: str) -> None:
    assert safe_markdown(text).replace(ZERO_WIDTH, "") == text


@pytest.mark.parametrize(
    "text",
    [
        "VISIT EVIL.COM",
        "**T.ME/X**",
        "_evil.com_",
        "пример.рф",
        "a@evil.com",
        "/evil.com",
        "||10.0.0.1:80/x||",
        "Evil.Com",
    ],
)
def test_telegram_finds_no_address(text: str) -> None:
    shown = re.sub(r"<code>.*?</code>", "", telegram_html(text))
    assert not re.search(r"\w\.\w", shown)


@pytest.mark.parametrize("part", ["a.", "a..", "a-", "a--", "_", "-", ".", "a_", "1.", "1.2", "a./", "a.bc/", "a.b@"])
def test_no_text_takes_long(part: str) -> None:
    begun = time.process_time()
    safe_markdown(part * 3000)
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("text", ["words", "||inner|| words", "```\ncode\n```", "a `b||c` d"])
def test_a_spoiler_covers_all(text: str) -> None:
    shown = safe_markdown(text, spoiler=True)
    assert shown.startswith("||")
    assert shown.endswith("||")
    assert "||" not in shown[2:-2]


@given(TICKS)
@settings(max_examples=200, deadline=None)
def test_nothing_in_an_answer_can_be_clicked(text: str) -> None:
    # Like Discord's parser: blocks first, then pairs of backticks across lines.
    shown = re.sub(r"```.*?```", "", safe_markdown(text), flags=re.DOTALL)
    shown = re.sub(r"(?<!\\)(`+)(?!`)(.*?[^`])\1(?!`)", "", shown, flags=re.DOTALL)
    assert not re.search(r"https?://|@\w|<[@#]|\]\(", shown)
