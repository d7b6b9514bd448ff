"""Detects files that aren't what their name says because a download went wrong. Imports no torch."""

from pathlib import Path

from minigpt4_serve.errors import WeightsError

__all__ = ["reject_wrong_download"]

_HEAD_BYTES = 4096
_AGAIN = "download it again"
_IN_A_BROWSER = (
    "open the file's address in a browser, confirm the download there if it asks, and save the file itself; links with "
    "/blob/ on huggingface.co lead to a page, those with /resolve/ to the file"
)

_ARCHIVES = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}


def reject_wrong_download(path: Path, *, expected: str = "the file itself") -> None:
    """Check the first bytes of a file of a model for what a failed download leaves in its place.

    Args:
        expected: what it should be, for the message.

    Raises:
        WeightsError: it is empty, a Git LFS or git-annex pointer, a web page, a server's error message or an archive.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if found := _describe(head):
        what, advice = found
        raise WeightsError(f"{path} is {what}, not {expected}: {advice}.")


def _describe(head: bytes) -> tuple[str, str] | None:
    """(what it is, what to do) of a file that isn't what it should be."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file", _AGAIN
    if text.startswith(b"version https://") and b"\noid " in text:
        return "a Git LFS pointer", "run `git lfs pull` in its folder, or download the file"
    if b"/annex/objects/" in text[:512]:
        return "a git-annex pointer", "run `git annex get` on it, or download the file"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<script")):
        page = "a web page of Google Drive" if b"google drive" in text or b"drive.google" in text else "a web page"
        return page, _IN_A_BROWSER
    if text.startswith((b"<?xml", b"<error", b'{"error', b'{"message', b"invalid username")):
        return "a server's error message", _IN_A_BROWSER
    for signature, name in _ARCHIVES.items():
        if head.startswith(signature):
            return f"an archive ({name})", "unpack it and use the file inside"
    return None
