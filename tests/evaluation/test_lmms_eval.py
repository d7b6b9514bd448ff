"""lmms-eval, from PyPI and in an environment of its own, runs a local task by the commands of docs/evaluation.md."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from code_blocks import code_blocks
from drawing import draw, encode
from serving_app import serving
from uv_command import run_uv

from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.load import load_model

ROOT = Path(__file__).parents[2]
COLORS = ("red", "blue", "green", "yellow")

(BLOCK,) = code_blocks((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"), "sh")
INSTALL, RUN = BLOCK.replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with lmms-eval: that of LMMS_EVAL_PYTHON, or a new one."""
    if given := os.environ.get("LMMS_EVAL_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("lmms_eval") / "lmms"
    for command in INSTALL.split(" && "):
        uv, *words = shlex.split(command)
        assert uv == "uv"
        run_uv(*(str(folder) if word == "lmms" else word for word in words))
    return folder / "bin" / "python"


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_lmms_eval_runs_a_local_task(python: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    records = []
    for color in COLORS:
        (tmp_path / f"{color}.png").write_bytes(encode(draw(color, (224, 224))))
        image = str(tmp_path / f"{color}.png")
        record = {"image": image, "question": "What color is the circle?", "answer": f"The circle is {color}."}
        records.append(json.dumps(record) + "\n")
    (tmp_path / "questions.jsonl").write_text("".join(records))
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with serving(load_model(ModelSettings(device="cpu")), model_name="minigpt4-tiny") as (client, _):
        address = str(client.base_url).rstrip("/")
        _, *words = shlex.split(RUN.replace("http://127.0.0.1:8000", address))
        done = subprocess.run(
            [python, *words], cwd=tmp_path, env={**os.environ, **offline}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "runs").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["drawn_vqa"]["exact,none"] == 1
