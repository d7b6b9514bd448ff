"""Hugging Face's Auto classes load a folder with hub code in a process that didn't import this package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt4_serve.settings import TINY_MODEL
from minigpt4_serve.weights.hub_code import add_hub_code

LOADERS = [
    ("AutoConfig", "MiniGPT4Config"),
    ("AutoImageProcessor", "MiniGPT4ImageProcessor"),
    ("AutoModelForImageTextToText", "MiniGPT4ForConditionalGeneration"),
    ("AutoProcessor", "MiniGPT4Processor"),
    ("AutoTokenizer", "MiniGPT4Tokenizer"),
]

SCRIPT = """
import sys, transformers
assert not [name for name in sys.modules if name.startswith("minigpt4")]
print(type(getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], trust_remote_code=True)).__name__)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def test_hub_code_keeps_what_the_files_hold(folder: Path) -> None:
    before = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    add_hub_code(folder)
    after = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    named = {
        *after["config.json"].pop("auto_map"),
        *after["processor_config.json"].pop("auto_map"),
        *after["processor_config.json"]["image_processor"].pop("auto_map"),
        *after["tokenizer_config.json"].pop("auto_map"),
    }
    assert after == before
    assert named == {kind for kind, _ in LOADERS}
    assert (folder / "minigpt4_hub.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("loader", "kind"), LOADERS)
def test_auto_classes_load_the_folder(folder: Path, tmp_path: Path, loader: str, kind: str) -> None:
    add_hub_code(folder)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, loader, folder],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [kind], done.stderr
