"""lmms-eval, from PyPI and in an environment of its own, runs a local task against this project's server."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from drawing import draw, encode
from serving_app import serving
from uv_command import run_uv

from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.load import load_model

ROOT = Path(__file__).parents[2]
COLORS = ("red", "blue", "green", "yellow")


@pytest.fixture(scope="module")
def lmms_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with lmms-eval: that of LMMS_EVAL_PYTHON, or a new one."""
    if given := os.environ.get("LMMS_EVAL_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("lmms_eval") / "venv"
    run_uv("venv", "--python", "3.11", folder)
    python = folder / "bin" / "python"
    run_uv("pip", "install", "--python", python, "lmms-eval")
    return python


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_lmms_eval_runs_a_local_task(lmms_eval: Path, tmp_path: Path) -> None:
    records = []
    for color in COLORS:
        (tmp_path / f"{color}.png").write_bytes(encode(draw(color, (224, 224))))
        record = {"image": str(tmp_path / f"{color}.png"), "question": "What color is the circle?", "answer": color}
        records.append(json.dumps(record) + "\n")
    (tmp_path / "questions.jsonl").write_text("".join(records))
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with serving(load_model(ModelSettings(device="cpu")), model_name="minigpt4-tiny") as (client, _):
        model = f"model=minigpt4-tiny,base_url={client.base_url}/v1,api_key=none,timeout=600"
        done = subprocess.run(
            [
                *(lmms_eval, "-m", "lmms_eval", "--model", "openai", "--model_args", model, "--tasks", "drawn_vqa"),
                *("--include_path", ROOT / "configs" / "lmms_eval", "--batch_size", "1"),
                *("--output_path", tmp_path / "out", "--log_samples"),
            ],
            cwd=tmp_path,
            env={**os.environ, **offline},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["drawn_vqa"]["exact,none"] >= 0.5
