"""Code blocks of the documents, for tests that run them."""

import re

__all__ = ["code_blocks"]


def code_blocks(page: str, language: str) -> list[str]:
    """The contents of all fenced blocks in ``language``.

    Raises:
        AssertionError: there is none, so a test that loops over them would check nothing.
    """
    found = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found, f"the page has no code block in {language!r}"
    return found
