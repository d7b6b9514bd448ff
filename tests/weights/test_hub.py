import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors, hf_api

from minigpt4_serve.errors import InvalidRequest, WeightsError
from minigpt4_serve.prompt.variants import VARIANTS
from minigpt4_serve.weights import hub
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.hub import MODELS, PARTS, Drive, File, Folder, fetch
from tools.parity.subject import recorded_hyperparameters


class _Server(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder, with ranges; with ``cut``, the next answer is incomplete."""

    folder: Path
    cut = False

    def do_GET(self) -> None:
        content = (self.folder / self.path.strip("/")).read_bytes()
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if type(self).cut else body)
        type(self).cut = False

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(golden: Path) -> Iterator[str]:
    _Server.folder = golden / "weights"
    _Server.cut = False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def public(address: str, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small public parts at a local address."""
    for name, file in (("eva-vit-g", "eva_vit_g.pth"), ("blip2-qformer", "blip2_pretrained_flant5xxl.pth")):
        monkeypatch.setitem(PARTS, name, File(f"{address}/{file}"))

    def snapshot(repository: str, *, local_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]) -> None:
        assert repository == "Vision-CAIR/vicuna-7b"
        shutil.copytree(golden / "llm" / "vicuna-tiny", local_dir, ignore=shutil.ignore_patterns(*ignore_patterns))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda _: ["config.json", "model.safetensors"])


def test_public_parts_are_fetched_and_convert(public: None, golden: Path, tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    fetched = fetch("vicuna-7b", tmp_path / "parts", on_progress=lambda *progress: reported.append(progress))
    assert fetched.paths.keys() == {"llm", "vit", "qformer"}
    assert "1RY9jV0dyqLX" in fetched.missing["checkpoint"]
    assert {name for name, _, _ in reported} == {"eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"}
    assert reported[-1][1] == reported[-1][2] > 0
    # A checkpoint that was saved by hand is found by its name, and nothing is downloaded twice.
    checkpoint = tmp_path / "parts" / "prerelease_minigpt4_7b.pth"
    shutil.copy(golden / "weights" / "pretrained_minigpt4_vicuna_tiny.pth", checkpoint)
    again = fetch(
        "vicuna-7b",
        tmp_path / "parts",
        given={"llm": fetched.paths["llm"]},
        on_progress=Mock(side_effect=AssertionError),
    )
    assert again.missing == {}
    hyperparameters = recorded_hyperparameters(golden, image_size=None)
    convert(variant=again.variant, out=tmp_path / "model", hyperparameters=hyperparameters, **again.paths)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_an_interrupted_download_resumes(public: None, golden: Path, tmp_path: Path) -> None:
    given = {"llm": golden, "checkpoint": golden, "qformer": golden}
    _Server.cut = True
    with pytest.raises(WeightsError, match="again to resume"):
        fetch("vicuna-7b", tmp_path, given=given)
    assert [path.name for path in tmp_path.iterdir()] == ["eva_vit_g.pth.partial"]
    starts: list[int] = []
    fetched = fetch("vicuna-7b", tmp_path, given=given, on_progress=lambda _, done, total: starts.append(done))
    assert fetched.paths["vit"].read_bytes() == (golden / "weights" / "eva_vit_g.pth").read_bytes()
    assert starts[0] > 400_000


@pytest.mark.parametrize("more", [b"", b"of something else"])
def test_a_complete_or_too_long_partial_file(public: None, golden: Path, tmp_path: Path, more: bytes) -> None:
    """Interrupted between the last byte and the rename, or from a longer file, as the server's answer shows."""
    whole = (golden / "weights" / "eva_vit_g.pth").read_bytes()
    (tmp_path / "eva_vit_g.pth.partial").write_bytes(whole + more)
    fetched = fetch("vicuna-7b", tmp_path, given={"llm": golden, "checkpoint": golden, "qformer": golden})
    assert fetched.paths["vit"].read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["eva_vit_g.pth"]


def test_a_hub_that_cannot_be_reached(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _: None)  # huggingface_hub retries
    with pytest.raises(WeightsError, match="can't be downloaded now"):
        fetch("v2-7b", tmp_path, given={"vit": golden, "checkpoint": golden})


def _failing(kind: type[Exception]) -> Any:
    response = Mock(headers={}, status_code=403)
    return Mock(side_effect=kind("no", response=response) if issubclass(kind, errors.HfHubHTTPError) else kind("no"))


def test_gated_and_gone_parts_are_explained(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"vit": golden, "checkpoint": golden}
    monkeypatch.setattr(huggingface_hub, "list_repo_files", _failing(errors.GatedRepoError))
    assert "accept its license" in fetch("v2-7b", tmp_path, given=given).missing["llm"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", _failing(errors.RepositoryNotFoundError))
    assert "isn't public" in fetch("llama2-7b", tmp_path, given=given).missing["llm"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", _failing(OSError))
    with pytest.raises(WeightsError, match="can't be downloaded now"):
        fetch("v2-7b", tmp_path, given=given)


def test_a_server_that_cannot_be_reached(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "eva-vit-g", File("http://127.0.0.1:9/eva_vit_g.pth"))
    with pytest.raises(WeightsError, match="by hand"):
        fetch("v2-7b", tmp_path, given={"llm": golden, "checkpoint": golden})


def test_unknown_names_fail_and_every_part_exists() -> None:
    with pytest.raises(InvalidRequest, match="vicuna-13b"):
        fetch("gpt-4", Path("nowhere"))
    kinds = {"vit": File, "qformer": File, "llm": Folder, "checkpoint": Drive}
    for model in MODELS.values():
        assert all(isinstance(PARTS[part], kinds[role]) for role, part in model.roles().items())
        assert (model.qformer is not None) == VARIANTS[model.variant].has_qformer
    assert {part for model in MODELS.values() for part in model.roles().values()} == set(hub.PARTS)
