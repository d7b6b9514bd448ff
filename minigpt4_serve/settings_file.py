"""Settings from YAML files: reading and validating them, with one sentence for what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from minigpt4_serve.errors import InvalidRequest

__all__ = ["read_settings_file", "validate_settings"]

_Settings = TypeVar("_Settings", bound=BaseModel)

_MAX_BYTES = 2**20
_MAX_NODES = 50_000  # keys, values and lists, those of aliases counted wherever they are used


def read_settings_file(file: Path, *, example: str) -> dict[str, Any]:
    """Read a YAML file of settings; ``example`` is a line of one, for the error.

    A key without a value at the top, such as ``server:``, counts as not given.

    Raises:
        InvalidRequest: no such file, not YAML, or no keys and values.
    """
    import yaml

    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InvalidRequest(f"The settings file {file} is larger than {_MAX_BYTES // 2**20} MiB.")
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is not None:
            _check_size(root, file)
        values = (loader.construct_document(root) if root is not None else None) or {}
    except FileNotFoundError:
        raise InvalidRequest(f"There is no settings file {file}.") from None
    except InvalidRequest:
        raise
    except Exception as error:  # PyYAML's parser and constructors raise many kinds, such as RecursionError
        raise InvalidRequest(f"The settings file {file} can't be read as YAML.") from error
    if not isinstance(values, dict):
        raise InvalidRequest(f"The settings file {file} must hold keys and values, such as '{example}'.")
    return {name: value for name, value in values.items() if value is not None}


def _check_size(root: Any, file: Path) -> None:
    """Bound the values of a YAML document with its aliases written out: nine levels of nine are 400 million.

    Raises:
        InvalidRequest: too many values, or an alias that contains itself.
    """
    import yaml

    sizes: dict[int, int] = {}
    enclosing: set[int] = set()

    def count(node: yaml.Node) -> int:
        key = id(node)
        if key in enclosing:
            raise InvalidRequest(f"The settings file {file} has an alias that contains itself.")
        if key not in sizes:
            enclosing.add(key)
            size = 1
            if isinstance(node, yaml.SequenceNode):
                size += sum(count(part) for part in node.value)
            elif isinstance(node, yaml.MappingNode):
                size += sum(count(name) + count(value) for name, value in node.value)
            enclosing.remove(key)
            sizes[key] = size
        return sizes[key]

    if count(root) > _MAX_NODES:
        raise InvalidRequest(f"The settings file {file} has more than {_MAX_NODES:,} values, aliases written out.")


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
