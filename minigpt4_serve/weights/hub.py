"""The published models, the files they consist of, and their download.

LLMs are downloaded with ``huggingface_hub``, two files by plain HTTPS, both resumable. Files on Google Drive can't be
downloaded automatically; users get instructions.
"""

import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.weights.reader import llm_files

__all__ = ["MODELS", "PARTS", "Drive", "Fetched", "File", "Folder", "Model", "fetch"]

_CHUNK_BYTES = 2**20
_RANGE_NOT_SATISFIABLE = 416  # the requested range begins at the file's end or later


@dataclass(frozen=True)
class File:
    """A file at a plain URL."""

    url: str


@dataclass(frozen=True)
class Folder:
    """An LLM's folder on the Hugging Face hub.

    Attributes:
        repository: ``owner/name``.
        gated: downloads require a signed-in account that has accepted the license.
    """

    repository: str
    gated: bool = False


@dataclass(frozen=True)
class Drive:
    """A file on Google Drive, which serves large files to browsers only.

    Attributes:
        file_id: Google Drive's id.
        name: the file's name.
    """

    file_id: str
    name: str


Part = File | Folder | Drive

_BLIP2 = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"

PARTS: dict[str, Part] = {
    "eva-vit-g": File(f"{_BLIP2}/eva_vit_g.pth"),
    "blip2-qformer": File(f"{_BLIP2}/blip2_pretrained_flant5xxl.pth"),
    "vicuna-v0-7b": Folder("Vision-CAIR/vicuna-7b"),
    "vicuna-v0-13b": Folder("Vision-CAIR/vicuna"),
    "llama2-7b-chat": Folder("meta-llama/Llama-2-7b-chat-hf", gated=True),
    "minigpt4-vicuna-7b": Drive("1RY9jV0dyqLX-o38LrumkKRh6Jtaop58R", "prerelease_minigpt4_7b.pth"),
    "minigpt4-vicuna-13b": Drive("1a4zLvaiDBr-36pasffmgpvH5P7CKmpze", "pretrained_minigpt4.pth"),
    "minigpt4-llama2-7b": Drive("11nAPjEok8eAGGEG1N2vXo3kBLCg0WgUk", "pretrained_minigpt4_llama2_7b.pth"),
    "minigpt4-v2": Drive("1HkoUUrjzFGn33cSiUkI-KcT-zysCynAz", "minigptv2_checkpoint.pth"),
}


@dataclass(frozen=True)
class Model:
    """A published model and its parts.

    Attributes:
        variant: name of its variant.
        llm_size: ``7b`` or ``13b``.
        llm, checkpoint, vit, qformer: keys of ``PARTS``.
    """

    variant: str
    llm_size: str
    llm: str
    checkpoint: str
    vit: str = "eva-vit-g"
    qformer: str | None = None

    def roles(self) -> dict[str, str]:
        """Role (an option of ``minigpt4 convert``) → part."""
        roles = {"vit": self.vit, "llm": self.llm, "checkpoint": self.checkpoint}
        return roles if self.qformer is None else {**roles, "qformer": self.qformer}


MODELS = {
    "vicuna-7b": Model("vicuna", "7b", "vicuna-v0-7b", "minigpt4-vicuna-7b", qformer="blip2-qformer"),
    "vicuna-13b": Model("vicuna", "13b", "vicuna-v0-13b", "minigpt4-vicuna-13b", qformer="blip2-qformer"),
    "llama2-7b": Model("llama2", "7b", "llama2-7b-chat", "minigpt4-llama2-7b"),
    "v2-7b": Model("v2", "7b", "llama2-7b-chat", "minigpt4-v2"),
}


@dataclass
class Fetched:
    """The result of a download.

    Attributes:
        variant: name of the model's variant.
        paths: role → file or folder, as arguments of ``convert``.
        missing: role → why it can't be downloaded, and what to do.
    """

    variant: str
    paths: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def fetch(
    name: str,
    into: Path,
    *,
    given: dict[str, Path] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda item, done, total: None,
) -> Fetched:
    """Download the public parts of a model and explain how to get the others.

    Args:
        name: one of ``MODELS``.
        into: the folder for the parts; existing ones aren't downloaded again.
        given: role → path of parts that the caller already has.
        on_progress: called with (file, bytes done, bytes in total or 0) during plain downloads; ``huggingface_hub``
            shows progress bars of its own.

    Raises:
        InvalidRequest: unknown model.
        WeightsError: a public part can't be downloaded now.
    """
    if name not in MODELS:
        raise InvalidRequest(f"Unknown model {name!r}; use one of {', '.join(MODELS)}.", param="from_hub")
    model = MODELS[name]
    fetched = Fetched(model.variant, dict(given or {}))
    for role, part_name in model.roles().items():
        if role in fetched.paths:
            continue
        part = PARTS[part_name]
        if isinstance(part, File):
            fetched.paths[role] = _download(part.url, into, on_progress)
        elif isinstance(part, Folder):
            result = _snapshot(part, into / part_name)
            if isinstance(result, str):
                fetched.missing[role] = result
            else:
                fetched.paths[role] = result
        elif (into / part.name).is_file():
            fetched.paths[role] = into / part.name
        else:
            fetched.missing[role] = (
                f"{part.name} is on Google Drive, which serves large files to browsers only: open "
                f"drive.google.com/file/d/{part.file_id}/view, save it as {into / part.name} and run this again. If "
                "the link is dead, use a copy from a source you trust; files that contain code are rejected."
            )
    return fetched


def _download(url: str, into: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    """Download a file by HTTPS and return its path. Resumes an earlier download; partial files end in ``.partial``."""
    target = into / url.rpartition("/")[2]
    if target.is_file():
        return target
    into.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(target.suffix + ".partial")
    done = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310  (https)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer, partial.open("ab") as file:  # noqa: S310
            if done and answer.status != 206:
                file.truncate(0)  # the server ignores ranges
                done = 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = done + length if length else 0
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                on_progress(target.name, done, total)
    except (URLError, OSError, TimeoutError) as error:
        if done and isinstance(error, HTTPError) and error.code == _RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{done}":
                partial.rename(target)  # the download was complete
                return target
            partial.unlink()  # it is longer than the file
            return _download(url, into, on_progress)
        raise WeightsError(
            f"{url} can't be downloaded now. Run this again to resume, or save it by hand as {target}."
        ) from error
    if total and done != total:
        raise WeightsError(f"{target.name} ended at {done:,} of {total:,} bytes; run this again to resume.")
    partial.rename(target)
    return target


def _snapshot(part: Folder, into: Path) -> Path | str:
    """Download an LLM and return its folder, or instructions if it is gated or gone. A complete one isn't requested."""
    if _is_complete(into):
        return into
    hub: Any
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InvalidRequest("Downloads need the library huggingface_hub: install minigpt4-serve[model].") from error
    # hub.errors.HTTPError is the error of its HTTP library: httpx or httpx2, depending on its version.
    page = f"huggingface.co/{part.repository}"
    patterns = ["*.json", "tokenizer.model", "*.safetensors", "*.bin"]
    try:
        files = hub.list_repo_files(part.repository)
        # Many repositories have all weights in both formats.
        skipped = ["*.bin", "*.bin.index.json"] if any(name.endswith(".safetensors") for name in files) else []
        hub.snapshot_download(part.repository, local_dir=into, allow_patterns=patterns, ignore_patterns=skipped)
    except errors.GatedRepoError:
        return (
            f"{page} is gated: accept its license there with your account, run `hf auth login`, and run this again. "
            "Or set --llm to a copy that you have."
        )
    except errors.RepositoryNotFoundError:
        return f"{page} doesn't exist or isn't public: set --llm to a copy that you have."
    except (hub.errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"{page} can't be downloaded now; run this again to resume.") from error
    shutil.rmtree(into / ".cache", ignore_errors=True)
    return into


def _is_complete(folder: Path) -> bool:
    """Whether a folder has all files of an LLM; ``huggingface_hub`` renames files when they are complete."""
    try:
        llm_files(folder)
    except (InvalidRequest, WeightsError):
        return False
    return (folder / "tokenizer.model").is_file()
