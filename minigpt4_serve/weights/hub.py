"""The published parts of the family: where each lies, how to get it, or why it can't be fetched and what to do then.

Downloads go through ``huggingface_hub`` (resumable, cached by it) and plain HTTPS for the two files outside it.
"""

import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.weights.infer_config import Variant
from minigpt4_serve.weights.reader import llm_files

__all__ = ["MODELS", "PARTS", "Drive", "Fetched", "File", "Folder", "Model", "fetch"]

_CHUNK = 2**20
_NOTHING_LEFT = 416  # HTTP: the range that is asked for begins where the file ends, or later


@dataclass(frozen=True)
class File:
    """One file behind a plain address."""

    url: str


@dataclass(frozen=True)
class Folder:
    """An LLM's folder on the Hugging Face hub.

    Attributes:
        repository: its name there.
        gated: it can be fetched only by who has accepted its licence and is signed in.
    """

    repository: str
    gated: bool = False


@dataclass(frozen=True)
class Drive:
    """A file on Google Drive, which gives large files to browsers only; some links are reported dead.

    Attributes:
        ident: the file's id there.
        name: what it is called.
    """

    ident: str
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
    """Which parts make a model."""

    variant: Variant
    llm: str
    checkpoint: str
    vit: str = "eva-vit-g"
    qformer: str | None = None

    def roles(self) -> dict[str, str]:
        """Role, as the options of ``minigpt4 convert`` are called → part."""
        roles = {"vit": self.vit, "llm": self.llm, "checkpoint": self.checkpoint}
        return roles if self.qformer is None else {**roles, "qformer": self.qformer}


MODELS = {
    "vicuna-7b": Model("vicuna", "vicuna-v0-7b", "minigpt4-vicuna-7b", qformer="blip2-qformer"),
    "vicuna-13b": Model("vicuna", "vicuna-v0-13b", "minigpt4-vicuna-13b", qformer="blip2-qformer"),
    "llama2-7b": Model("llama2", "llama2-7b-chat", "minigpt4-llama2-7b"),
    "v2-7b": Model("v2", "llama2-7b-chat", "minigpt4-v2"),
}


@dataclass
class Fetched:
    """What is there now and what isn't.

    Attributes:
        paths: role → file or folder, to be given to ``convert``.
        missing: role → why it can't be fetched, and what to do.
    """

    variant: Variant
    paths: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def fetch(
    name: str,
    into: Path,
    *,
    given: dict[str, Path] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda item, done, total: None,
) -> Fetched:
    """Get what is public of a model; explain the rest.

    Args:
        name: one of ``MODELS``.
        into: the folder for the parts; what lies there already isn't fetched again.
        given: role → path of what the caller has already.
        on_progress: hears (file, bytes done, bytes in all or 0) of plain downloads; the hub's library shows its own.

    Raises:
        InvalidRequest: no such model.
        WeightsError: a public part could not be fetched.
    """
    if name not in MODELS:
        raise InvalidRequest(f"No model {name!r} is known; there are {', '.join(MODELS)}.", param="from_hub")
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
                f"{part.name} lies on Google Drive, which hands large files to browsers only: open "
                f"drive.google.com/file/d/{part.ident}/view, save it as {into / part.name} and run this again. Where "
                "the link is dead, a copy from somebody you trust serves as well: code in it would be refused."
            )
    return fetched


def _download(url: str, into: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    """A file by HTTPS, under its own name once it is whole; goes on where an earlier try was cut off."""
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
                file.truncate(0)  # the server began anew
                done = 0
            length = int(answer.headers.get("Content-Length") or 0)
            total = done + length if length else 0
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                on_progress(target.name, done, total)
    except (URLError, OSError, TimeoutError) as error:
        if done and isinstance(error, HTTPError) and error.code == _NOTHING_LEFT:
            if error.headers.get("Content-Range") == f"bytes */{done}":
                partial.rename(target)  # it was whole, but for its name
                return target
            partial.unlink()  # of another file
            return _download(url, into, on_progress)
        raise WeightsError(
            f"{url} can't be downloaded now. Run this again to go on, or save it by hand as {target}."
        ) from error
    if total and done != total:
        raise WeightsError(f"{target.name} ended at {done:,} of {total:,} bytes; run this again to go on.")
    partial.rename(target)
    return target


def _snapshot(part: Folder, into: Path) -> Path | str:
    """An LLM's folder, or what to do when it is gated or gone. One that is whole already needs no network."""
    if _whole(into):
        return into
    hub: Any
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise InvalidRequest("Downloads need the library huggingface_hub: install minigpt4-serve[model].") from error
    # hub.errors.HTTPError, below, is of the library that it speaks HTTP with: httpx in some versions, httpx2 in others.
    page = f"huggingface.co/{part.repository}"
    wanted = ["*.json", "tokenizer.model", "*.safetensors", "*.bin"]
    try:
        files = hub.list_repo_files(part.repository)
        # Many folders hold every tensor twice; one kind is enough, and safetensors is the safer.
        skipped = ["*.bin", "*.bin.index.json"] if any(name.endswith(".safetensors") for name in files) else []
        hub.snapshot_download(part.repository, local_dir=into, allow_patterns=wanted, ignore_patterns=skipped)
    except errors.GatedRepoError:
        return (
            f"{page} is gated: accept its licence there with your account, run `hf auth login`, and run this again. "
            "Or give --llm a copy that you have."
        )
    except errors.RepositoryNotFoundError:
        return f"{page} isn't there, or isn't public any more: give --llm a copy that you have."
    except (hub.errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"{page} can't be downloaded now; run this again to go on where it stopped.") from error
    shutil.rmtree(into / ".cache", ignore_errors=True)
    return into


def _whole(folder: Path) -> bool:
    """Whether a folder has an LLM's every file; the hub's library gives files their names when they are complete."""
    try:
        llm_files(folder)
    except (InvalidRequest, WeightsError):
        return False
    return (folder / "tokenizer.model").is_file()
