"""What lets Hugging Face's Auto classes load a converted folder without an import of this package before.

A file of code in the folder, named by ``auto_map``, imports the classes from the installed package: users of the hub
pass ``trust_remote_code=True``. Where ``minigpt4_serve.model`` is imported, its registered classes are used instead.
"""

import json
from pathlib import Path
from typing import Any

from minigpt4_serve.weights.writer import write_json

__all__ = ["add_hub_code"]

_MODULE = "minigpt4_hub"
_CODE = '''"""The classes of this model, from the package minigpt4-serve."""

from minigpt4_serve.model import (
    MiniGPT4Config,
    MiniGPT4ForConditionalGeneration,
    MiniGPT4ImageProcessor,
    MiniGPT4Processor,
    MiniGPT4Tokenizer,
)
'''
_AUTO_MAPS: dict[tuple[str, ...], dict[str, Any]] = {
    ("config.json",): {
        "AutoConfig": f"{_MODULE}.MiniGPT4Config",
        "AutoModelForImageTextToText": f"{_MODULE}.MiniGPT4ForConditionalGeneration",
    },
    ("processor_config.json",): {"AutoProcessor": f"{_MODULE}.MiniGPT4Processor"},
    ("processor_config.json", "image_processor"): {"AutoImageProcessor": f"{_MODULE}.MiniGPT4ImageProcessor"},
    ("tokenizer_config.json",): {"AutoTokenizer": [f"{_MODULE}.MiniGPT4Tokenizer", None]},  # slow and fast class
}
"""(file, keys to an object in it) → that object's ``auto_map``."""


def add_hub_code(folder: Path) -> None:
    """Add the file of code and the ``auto_map`` of each configuration to a model folder that is otherwise complete."""
    (folder / f"{_MODULE}.py").write_text(_CODE, encoding="utf-8")
    for (name, *keys), auto_map in _AUTO_MAPS.items():
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        part = content
        for key in keys:
            part = part[key]
        part["auto_map"] = auto_map
        write_json(path, content)
