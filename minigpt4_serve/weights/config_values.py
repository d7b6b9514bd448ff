"""What may stand in a ``config.json``: sizes within bounds, and nothing that makes transformers load code."""

import re
from pathlib import Path
from typing import Any

from minigpt4_serve.errors import WeightsError

__all__ = ["plain_values"]

_CODE = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "attn_implementation",
    "auto_map",
    "custom_generate",
    "experts_implementation",
    "transformers_weights",
    "use_kernels",
}
"""Keys that name code to run, on the hub or beside the file, or other files to load."""

_MAX_DEPTH = 32
_MAX_INTEGER = 2**53
_MAX_COUNT = 4096
_COUNT = re.compile("layer|block|depth|expert|head|repeat|stage")
"""Keys of numbers of modules, whatever a model's type calls them."""
_MAX_ITEMS = 65536
_LARGEST = {
    "image_size": 8192,
    "num_attention_heads": 1024,
    "num_hidden_layers": 512,
    "num_key_value_heads": 1024,
    "num_query_tokens": 4096,
    "patch_size": 1024,
    "patches_per_token": 1024,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**24,
    "vocab_size": 2**22,
}
"""Sizes that must be between 1 and this number."""


def plain_values(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of a ``config.json`` without the keys that name code.

    Sizes are bounded, because modules are built for them before they are compared with the stored tensors.

    Raises:
        WeightsError: a size out of bounds, or values nested deeper than any configuration.
    """
    return {key: _plain(key, value, path, 0) for key, value in values.items() if key not in _CODE}


def _plain(key: str, value: Any, path: Path, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise WeightsError(f"{path} is damaged: its values are nested too deep.")
    if isinstance(value, dict):
        return {name: _plain(name, part, path, depth + 1) for name, part in value.items() if name not in _CODE}
    if isinstance(value, list):
        if len(value) > _MAX_ITEMS:
            raise WeightsError(f"{path} is damaged: '{key}' has {len(value):,} items.")
        return [_plain(key, part, path, depth + 1) for part in value]
    if isinstance(value, int) and not isinstance(value, bool):
        largest = _LARGEST.get(key, _MAX_COUNT if _COUNT.search(key) else _MAX_INTEGER)
        smallest = 1 if key in _LARGEST else -_MAX_INTEGER
        if not smallest <= value <= largest:
            raise WeightsError(
                f"{path} has an impossible value for '{key}': it must be between {smallest} and {largest}."
            )
    return value
