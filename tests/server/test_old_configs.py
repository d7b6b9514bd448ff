"""Configuration files of 0.1.0 still load."""

from pathlib import Path

import pytest
import yaml

from minigpt4_serve.settings import ServeSettings, read_serve_settings

FOLDER = Path(__file__).parent / "configs-0.1.0"


@pytest.mark.parametrize("file", ["serve-tiny.yaml", "serve-gpus.yaml"])
def test_server_settings_load(file: str) -> None:
    path = FOLDER / file
    settings = read_serve_settings(path, {"keys_file": "keys.json"})
    for section, values in yaml.safe_load(path.read_text()).items():
        if isinstance(values, dict):
            for name, value in values.items():
                _assert_set(getattr(settings, section), name, value)
        else:
            _assert_set(settings, section, values)


def _assert_set(settings: object, name: str, value: object) -> None:
    given = getattr(settings, name)
    assert given == type(given)(value)


def test_arguments_of_a_serve_config_file_load() -> None:
    (application,) = yaml.safe_load((FOLDER / "ray-serve.yaml").read_text())["applications"]
    assert application["import_path"] == "minigpt4_serve.serving.app:build"
    settings = ServeSettings.model_validate(application["args"])
    assert set(application["args"]) <= settings.model_fields_set
