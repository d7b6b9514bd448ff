"""All texts that people read, by name and language: one YAML file per language beside this module.

To add a language, copy ``en.yaml`` and translate the right-hand sides, keeping the placeholders in braces. Tests hold
all files to the same names and placeholders.
"""

from functools import cache
from importlib.resources import files
from math import ceil

import yaml

__all__ = ["Texts", "choose_language", "is_progress_line", "languages"]

_DEFAULT = "en"


@cache
def _catalog() -> dict[str, dict[str, str]]:
    entries = (entry for entry in files(__package__).iterdir() if entry.name.endswith(".yaml"))
    return {entry.name.removesuffix(".yaml"): yaml.safe_load(entry.read_text(encoding="utf-8")) for entry in entries}


def languages() -> list[str]:
    """The languages of the catalog, such as ``["en", "zh"]``."""
    return sorted(_catalog())


def choose_language(setting: str, preferred: str | None) -> str:
    """The language for a person.

    Args:
        setting: a language of the catalog, or ``auto``.
        preferred: the platform's language tag for the person, such as ``zh-CN`` or ``pt_BR``.
    """
    if setting != "auto":
        return setting
    language = (preferred or "").replace("_", "-").split("-")[0].lower()
    return language if language in _catalog() else _DEFAULT


def is_progress_line(text: str) -> bool:
    """Whether a message shows the progress before an answer, in any language, rather than the answer's text."""
    templates = (
        template for texts in _catalog().values() for name, template in texts.items() if name.startswith("progress.")
    )
    return text.startswith(tuple(template.partition("{")[0] for template in templates))


class Texts:
    """The texts in one language."""

    def __init__(self, language: str = _DEFAULT) -> None:
        self.language = language
        self._texts = _catalog()[language]

    def __call__(self, name: str, **values: object) -> str:
        """The text of that name with its placeholders filled.

        Raises:
            KeyError: there is no such text, or a placeholder lacks its value.
        """
        return self._texts[name].format(**values)

    def has(self, name: str) -> bool:
        """Whether there is a text of that name."""
        return name in self._texts

    @staticmethod
    def megabytes(size: int) -> str:
        """Bytes as a number of MiB."""
        return f"{size / 2**20:.3g}"

    def describe_wait(self, seconds: float) -> str:
        """A wait in words: ``8 s``, ``3 min``, ``5 h``, rounded up so that a retry isn't too early."""
        if seconds < 90:
            return self("time.seconds", n=max(1, ceil(seconds)))
        if seconds < 90 * 60:
            return self("time.minutes", n=ceil(seconds / 60))
        return self("time.hours", n=ceil(seconds / 3600))
