"""Paths of images as language models write them → files in and below allowed folders."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minigpt4_serve.client.untrusted_text import is_invisible

__all__ = ["find_file", "open_beneath", "path_of_file_url", "strip_quotes"]

_MAX_ENTRIES = 20_000  # of one folder that are compared with a name
_QUOTES = (("'", "'"), ('"', '"'), ("`", "`"), ("<", ">"), ("“", "”"), ("‘", "’"))
_ALIKE = str.maketrans("‘’‚‛“”„‟‐‑‒–—−", "''''\"\"\"\"------")
_DRIVE = re.compile(r"/?([A-Za-z])[:|](?=[\\/]|$)")


def find_file(folders: Sequence[Path], reference: str) -> tuple[Path, Path] | None:
    """An allowed folder and the file in or below it that a reference names; both are real paths, without links.

    Relative paths are tried in each folder. The exact name has precedence. Otherwise quotes around the path are
    removed, ``~``, a shell's ``\\`` and percent-encoding are resolved, and a name also means the only one in its folder
    that differs from it in the kind of blanks, quotation marks and dashes, in composed and decomposed letters, or in
    invisible characters. The file need not exist.

    Returns:
        None if the path is outside of all folders.
    """
    found: tuple[Path, Path] | None = None
    # Windows would log in to the host of //host/share as the user.
    spellings = [text for text in dict.fromkeys(_spellings(reference)) if not text.replace("\\", "/").startswith("//")]
    for find in (_exact, _similar):
        for spelling in spellings:
            for folder in folders:
                try:
                    root = folder.expanduser().resolve()
                    path = find(folder.expanduser().absolute(), root, spelling)
                    exists = path is not None and path.exists()
                except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links, far too long
                    continue
                if path is None or not path.is_relative_to(root):
                    continue
                if exists:
                    return root, path
                # Whether there is such a file outside must make no difference: the spelling as given decides.
                if found is None and spelling == reference:
                    found = root, path
    return found


def open_beneath(root: Path, path: Path) -> int:
    """A descriptor of a file for reading; no link is followed below ``root``, even one made after ``find_file``.

    Raises:
        OSError: it can't be opened, or a link is on the way.
    """
    # A pipe must not block.
    flags = _flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC")
    *folders, name = path.relative_to(root).parts or (".",)
    if os.open not in os.supports_dir_fd:  # Windows
        descriptor = os.open(path, flags)
        if path.resolve() == path and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
        raise PermissionError("the path was changed")
    into = _flags("O_PATH" if hasattr(os, "O_PATH") else "O_RDONLY", "O_DIRECTORY", "O_CLOEXEC")
    folder = os.open(root, into)
    try:
        for part in folders:
            deeper = os.open(part, into | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = deeper
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(folder)


def path_of_file_url(url: str, *, windows: bool = os.name == "nt") -> str | None:
    r"""The path in a ``file:`` URL; None if it isn't one, or names another host where paths have none.

    Args:
        windows: in Windows' notation: ``file:///c%3A/temp`` is ``c:\temp``, ``file://server/share`` is
            ``\\server\share``.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme != "file" or not parts.path:
        return None
    host = "" if parts.netloc.lower() == "localhost" else unquote(parts.netloc)
    if host and not windows:
        return None
    # A name may contain ? and # that should have been escaped.
    written = url.split(":", 1)[1].removeprefix(f"//{parts.netloc}")
    path = unquote(written, errors="surrogateescape")
    if not windows:
        return path
    if drive := _DRIVE.match(path):
        path = f"{drive[1]}:{path[drive.end() :] or '/'}"
    elif host:
        path = f"//{host}{path}"
    return path.replace("/", "\\")


def strip_quotes(text: str) -> str:
    """The text without blanks and quotation marks around it."""
    text = text.strip()
    for before, after in _QUOTES:
        if len(text) > 1 and text.startswith(before) and text.endswith(after):
            return text[1:-1].strip()
    return text


def _flags(*names: str) -> int:
    return sum(getattr(os, name, 0) for name in names)


def _spellings(reference: str) -> Iterator[str]:
    """The reference as it is, then what it may mean."""
    yield reference
    text = strip_quotes(reference)
    path = path_of_file_url(text) or text
    unescaped = path if os.name == "nt" else re.sub(r"\\(.)", r"\1", path)
    for spelling in (path, unescaped, unquote(path), unquote(unescaped)):
        yield spelling
        if spelling.startswith("~"):
            try:
                yield str(Path(spelling).expanduser())
            except RuntimeError:  # no such user
                continue


def _exact(_: Path, root: Path, spelling: str) -> Path:
    return (root / spelling).resolve()


def _similar(given: Path, root: Path, spelling: str) -> Path | None:
    """The path below a folder whose names equal those of ``spelling`` after normalization, if there is one."""
    path = Path(spelling)
    parts = path.parts
    if path.is_absolute():
        below = (_below(parts, folder.parts) for folder in (given, root))
        parts = next((part for part in below if part is not None), ())
    if not parts or ".." in parts:
        return None
    current = root
    for part in parts:
        inner = current / part
        if not os.path.lexists(inner):
            similar = _similar_entry(current, part)
            if similar is None:
                return None
            inner = current / similar
        current = inner.resolve()
        if not current.is_relative_to(root):  # nothing outside is listed
            return None
    return current


def _below(parts: tuple[str, ...], folder: tuple[str, ...]) -> tuple[str, ...] | None:
    """The parts of an absolute path that are below a folder."""
    if len(parts) <= len(folder) or any(_key(a) != _key(b) for a, b in zip(parts[: len(folder)], folder, strict=True)):
        return None
    return parts[len(folder) :]


def _similar_entry(folder: Path, name: str) -> str | None:
    """The only entry of a folder that ``name`` may mean."""
    key = _key(name)
    found: list[str] = []
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_ENTRIES:
                return None
            if key in (_key(entry.name), _key("".join(char for char in entry.name if not is_invisible(char)))):
                found.append(entry.name)
    return found[0] if len(found) == 1 else None


def _key(name: str) -> str:
    """Equal for names that look alike."""
    return " ".join(unicodedata.normalize("NFC", name).translate(_ALIKE).split())
