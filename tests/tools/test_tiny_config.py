"""Configurations of training runs: valid and invalid ones, and the error messages."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from minigpt4_serve.errors import InvalidRequest
from tools.tiny.config import TrainConfig
from tools.tiny.train import main

CONFIGS = sorted((Path(__file__).parents[2] / "tools" / "tiny" / "configs").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "vision": {"steps": 10, "learning_rate": 1e-3},
    "language": {"steps": 20, "learning_rate": 1e-3},
    "finetune": {"steps": 30, "learning_rate": 1e-3},
}


def _written(folder: Path, values: object) -> Path:
    file = folder / "config.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_committed_configurations_are_valid(file: Path) -> None:
    assert TrainConfig.read(file).stages[0] == "render"


def test_stages_follow_from_the_sections(tmp_path: Path) -> None:
    scratch = TrainConfig.read(_written(tmp_path, MINIMAL))
    assert scratch.stages == ("render", "vision", "language", "fit-projection", "finetune", "export")
    initial = {"model": "a", "heads": "b"}
    values = {name: MINIMAL[name] for name in ("vision", "finetune")} | {"initialize": initial}
    assert TrainConfig.read(_written(tmp_path, values)).stages == (
        *("render", "vision", "fit-projection", "finetune", "export"),
    )


def test_steps_replace_those_of_every_stage(tmp_path: Path) -> None:
    config = TrainConfig.read(_written(tmp_path, MINIMAL), steps=7)
    assert config.language is not None
    assert (config.vision.steps, config.language.steps, config.finetune.steps) == (7, 7, 7)


def test_a_configuration_is_immutable(tmp_path: Path) -> None:
    config = TrainConfig.read(_written(tmp_path, MINIMAL))
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.vision.loss_weights.kind = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"vision": None}, "vision", "valid dictionary"),
        ({"vision": {"learning_rate": 1e-3}}, "vision.steps", "required"),
        ({"vision": {"steps": 0, "learning_rate": 1e-3}}, "vision.steps", "greater than or equal to 1"),
        ({"vision": {"steps": 9, "learning_rate": 0}}, "vision.learning_rate", "greater than 0"),
        ({"vision": {"steps": 9, "learning_rate": 5}}, "vision.learning_rate", "less than or equal to 0.1"),
        ({"vision": {"steps": 9, "learning_rate": 1e-3, "minutes": 5}}, "vision.minutes", "unknown key"),
        ({"vision": {"steps": 9, "learning_rate": 1e-3, "noise_pool": 8}}, "vision", "noise_pool"),
        ({"vision": {"steps": 9, "learning_rate": 1e-3, "brightness": [1.1, 0.9]}}, "vision", "brightness"),
        (
            {"vision": {"steps": 9, "learning_rate": 1e-3, "loss_weights": {"kind": -1}}},
            "vision.loss_weights.kind",
            "greater than or equal to 0",
        ),
        (
            {"language": {"steps": 9, "learning_rate": 1e-3, "loss_weights": {"colour": 1}}},
            "language.loss_weights.colour",
            "unknown key",
        ),
        ({"finetune": {"steps": 9, "learning_rate": 1e-3, "processes": 0}}, "finetune.processes", "greater than"),
        ({"model": {"vision_width": 130}}, "model", "vision_width must be a multiple"),
        ({"model": {"language_width": 100}}, "model", "language_width must be a multiple"),
        ({"model": {"language_layers": 4}}, "model.language_layers", "greater than or equal to 5"),
        ({"model": {"language_heads": 2}}, "model.language_heads", "greater than or equal to 3"),
        ({"data": {"shard_size": 10, "vision_shards": 2, "validation_images": 20}}, "data", "validation_images"),
        ({"data": {"shard_size": 300, "language_shards": 1}}, None, "fit_projection.images"),
        (
            {"data": {"shard_size": 600, "language_shards": 1}, "fit_projection": {"images": 9}}
            | {"finetune": {"steps": 9, "learning_rate": 1e-3, "scenes_per_step": 601}},
            None,
            "finetune.scenes_per_step",
        ),
        ({"language": None}, None, "exactly one of the sections"),
        ({"initialize": {"model": "a", "heads": "b"}}, None, "exactly one of the sections"),
        ({"language": None, "initialize": {"model": "a", "heads": "b"}, "tokenizer": "c"}, None, "leave it out"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"threads": 0}, "threads", "greater than or equal to 1"),
        ({"checkpoint_steps": 0}, "checkpoint_steps", "greater than or equal to 1"),
    ],
)
def test_bad_values_are_refused_by_key(tmp_path: Path, changes: dict[str, Any], key: str | None, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        TrainConfig.read(_written(tmp_path, {**MINIMAL, **changes}))
    assert refused.value.param == key
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("text", "words"), [("[1, 2", "read as YAML"), ("- 1", "keys and values"), ("", "keys and values")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        TrainConfig.read(_written(tmp_path, text))


def test_a_mistake_is_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(missing)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"There is no configuration file {missing}.\n"


def test_a_stage_that_the_run_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {name: MINIMAL[name] for name in ("vision", "finetune")} | {"initialize": {"model": "a", "heads": "b"}}
    with pytest.raises(SystemExit):
        main(["--config", str(_written(tmp_path, values)), "--stage", "language"])
    assert "has no stage 'language'" in capsys.readouterr().err


def test_stage_inputs_are_the_settings_of_a_result(tmp_path: Path) -> None:
    config = TrainConfig.read(_written(tmp_path, MINIMAL))
    longer = TrainConfig.read(_written(tmp_path, {**MINIMAL, "finetune": {"steps": 31, "learning_rate": 1e-3}}))
    faster = TrainConfig.read(_written(tmp_path, {**MINIMAL, "threads": 2, "checkpoint_steps": 3}))
    for stage in ("vision", "language", "fit-projection"):
        assert config.stage_inputs(stage) == longer.stage_inputs(stage) == faster.stage_inputs(stage)
    assert config.stage_inputs("finetune") != longer.stage_inputs("finetune")
    assert config.stage_inputs("finetune") == faster.stage_inputs("finetune")
