"""What a process leaves behind after it has loaded its libraries."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigpt4_serve.server.local_engine import loading

MODULE = "torch._inductor.runtime.cache_dir_utils"


@pytest.mark.parametrize(
    ("content", "variable", "stays"),
    [
        (None, None, False),
        (None, "{default}", False),
        ("kernel", None, True),
        ("kernel", "{default}", True),
        (None, "{default}/../other", True),
    ],
)
def test_an_empty_folder_of_compiled_kernels_is_removed(
    content: str | None, variable: str | None, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "torchinductor_me"
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(default_cache_dir=lambda: str(default)))  # type: ignore[arg-type]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    with loading():
        default.mkdir()
        if content:
            (default / content).touch()
        if variable:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = variable.format(default=default)
    assert default.exists() == stays


def test_without_pytorch_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)  # type: ignore[arg-type]
    (tmp_path / "torchinductor_me").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with loading():
        pass
    assert (tmp_path / "torchinductor_me").exists()
