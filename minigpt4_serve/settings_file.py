"""Settings from YAML files: reading and validating them, with one sentence for what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from minigpt4_serve.errors import InvalidRequest

__all__ = ["read_settings_file", "validate_settings"]

_Settings = TypeVar("_Settings", bound=BaseModel)


def read_settings_file(file: Path, *, example: str) -> dict[str, Any]:
    """Read a YAML file of settings; ``example`` is a line of one, for the error.

    A key without a value at the top, such as ``server:``, counts as not given.

    Raises:
        InvalidRequest: no such file, not YAML, or no keys and values.
    """
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise InvalidRequest(f"There is no settings file {file}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"The settings file {file} can't be read as YAML.") from error
    if not isinstance(values, dict):
        raise InvalidRequest(f"The settings file {file} must hold keys and values, such as '{example}'.")
    return {name: value for name, value in values.items() if value is not None}


def validate_settings(settings: type[_Settings], values: Mapping[str, Any], file: Path | None) -> _Settings:
    """Validate values, some of which came from ``file``.

    Raises:
        InvalidRequest: an unknown key or an invalid value. It names the key, never its value.
    """
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(step) for step in first["loc"])
        reason = (
            "there is no such setting"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        source = f" in {file}" if file is not None else ""
        raise InvalidRequest(f"Settings{source}: {key + ': ' if key else ''}{reason}.", param=key or None) from None
