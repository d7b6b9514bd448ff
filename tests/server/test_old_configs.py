"""Configuration files of 0.1.0 still load."""

from pathlib import Path

import pytest
import yaml

from minigpt4_serve.settings import ServeSettings, read_serve_settings

FOLDER = Path(__file__).parent / "configs-0.1.0"


@pytest.mark.parametrize("name", ["serve-tiny", "serve-gpus"])
def test_server_settings_load(name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    settings = read_serve_settings(file, {"keys_file": "keys.json"})
    for key, value in yaml.safe_load(file.read_text()).items():
        given = getattr(settings, key)
        if isinstance(value, dict):
            assert {name: str(getattr(given, name)) for name in value} == {
                name: str(one) for name, one in value.items()
            }
        else:
            assert str(given) == str(value)


def test_arguments_of_a_serve_config_file_load() -> None:
    (application,) = yaml.safe_load((FOLDER / "ray-serve.yaml").read_text())["applications"]
    assert application["import_path"] == "minigpt4_serve.serving.app:build"
    settings = ServeSettings.model_validate(application["args"])
    assert set(application["args"]) <= settings.model_fields_set
