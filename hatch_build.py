"""Completes the metadata of a build: the project's addresses, and a README that is readable on PyPI.

The README links to files of the repository, which works wherever the repository is hosted. PyPI has no such files, so a
release is built with ``REPOSITORY_URL`` set (``make dist``), and each relative link becomes an address of the tagged
version. Without the variable the README is used as it is and the project has no addresses.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE_SUFFIXES = (".png", ".jpg", ".svg")


def with_absolute_links(readme: str, repository: str, version: str) -> str:
    """Replace relative links and image sources by addresses of the tag ``v{version}`` in ``repository``."""

    def absolute(match: re.Match[str]) -> str:
        before, path, after = match.groups()
        kind = "raw" if path.endswith(IMAGE_SUFFIXES) else "blob"
        return f"{before}{repository}/{kind}/v{version}/{path}{after}"

    links = re.sub(r"(\]\()(?!https?:|#)([^)\s]+)(\))", absolute, readme)
    return re.sub(r'(src=")(?!https?:)([^"]+)(")', absolute, links)


class ProjectMetadataHook(MetadataHookInterface):
    """Sets ``readme`` and ``urls``, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the two fields."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        urls: dict[str, str] = {}
        if repository:
            text = with_absolute_links(text, repository, metadata["version"])
            urls["Repository"] = repository
            urls["Documentation"] = f"{repository}/blob/v{metadata['version']}/docs/README.md"
            urls["Changelog"] = f"{repository}/blob/v{metadata['version']}/CHANGELOG.md"
            urls["Issues"] = f"{repository}/issues"
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls
