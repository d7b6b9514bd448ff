"""Every sentence that people read, by name and language: one YAML file per language beside this module.

To add a language, copy ``en.yaml`` and translate the right-hand sides; placeholders in braces stay. Tests hold all
files to the same names and placeholders.
"""

from functools import cache
from importlib.resources import files
from math import ceil

import yaml

__all__ = ["Texts", "choose_language", "languages"]

_DEFAULT = "en"


@cache
def _catalogue() -> dict[str, dict[str, str]]:
    found = (entry for entry in files(__package__).iterdir() if entry.name.endswith(".yaml"))
    return {entry.name.removesuffix(".yaml"): yaml.safe_load(entry.read_text(encoding="utf-8")) for entry in found}


def languages() -> list[str]:
    """The languages of the catalogue, such as ``["en", "zh"]``."""
    return sorted(_catalogue())


def choose_language(setting: str, spoken: str | None) -> str:
    """The language for a person whose platform says ``spoken`` (``zh-CN``, ``pt_BR``, None)."""
    if setting != "auto":
        return setting
    language = (spoken or "").replace("_", "-").split("-")[0].lower()
    return language if language in _catalogue() else _DEFAULT


class Texts:
    """The sentences in one language."""

    def __init__(self, language: str = _DEFAULT) -> None:
        self.language = language
        self._texts = _catalogue()[language]

    def __call__(self, name: str, **values: object) -> str:
        """The sentence of that name with its placeholders filled. A name that isn't there is a programmer's error."""
        return self._texts[name].format(**values)

    def has(self, name: str) -> bool:
        """Is there a sentence of that name?"""
        return name in self._texts

    @staticmethod
    def megabytes(size: int) -> str:
        """Bytes as a number of MiB."""
        return f"{size / 2**20:.3g}"

    def seconds(self, seconds: float) -> str:
        """A wait for people: ``8 s``, ``3 min``, ``5 h``; rounded up, so that nobody comes back too early."""
        if seconds < 90:
            return self("time.seconds", n=max(1, ceil(seconds)))
        if seconds < 90 * 60:
            return self("time.minutes", n=ceil(seconds / 60))
        return self("time.hours", n=ceil(seconds / 3600))
