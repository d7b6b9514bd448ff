"""Keys and shapes of tensors: those that a configuration requires, those in a model folder, and their differences."""

from collections.abc import Mapping
from pathlib import Path

import torch

from minigpt4_serve.errors import WeightsError
from minigpt4_serve.model import MiniGPT4Config, MiniGPT4ForConditionalGeneration
from minigpt4_serve.weights.reader import model_files, open_tensors

__all__ = ["Shapes", "check_tensors", "compare_shapes", "model_shapes", "stored_shapes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Key of a tensor → its shape."""


def model_shapes(config: MiniGPT4Config) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration stores. Allocates no memory (meta device)."""
    with torch.device("meta"):
        model = MiniGPT4ForConditionalGeneration(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if config.get_text_config().tie_word_embeddings:
        shapes.pop("language_model.lm_head.weight", None)  # shares the embedding's tensor, which is stored once
    return shapes


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor in a folder's safetensors files, from their headers.

    Raises:
        WeightsError: a file is missing, truncated or damaged.
        InvalidRequest: a file can't be read.
    """
    return {key: tensor.shape for path in model_files(folder) for key, tensor in open_tensors(path).items()}


def check_tensors(folder: Path, config: MiniGPT4Config) -> None:
    """Compare the tensors of a model folder with those that its configuration requires.

    Raises:
        WeightsError: names missing and unexpected keys and wrong shapes; or no model can be built from ``config``.
        InvalidRequest: a file can't be read.
    """
    try:
        required = model_shapes(config)
    except Exception as error:  # transformers raises any kind for values that don't fit together
        path = folder / "config.json"
        raise WeightsError(f"{path} describes no MiniGPT-4 model that this version supports.") from error
    compare_shapes(stored_shapes(folder), required, what=str(folder))


def compare_shapes(found: Shapes, required: Shapes, *, what: str) -> None:
    """Raise a ``WeightsError`` if keys or shapes differ; ``what`` begins its message.

    Raises:
        WeightsError: has all missing and unexpected keys, or the first five wrong shapes.
    """
    missing = required.keys() - found.keys()
    unexpected = found.keys() - required.keys()
    if missing or unexpected:
        raise WeightsError(
            f"{what} doesn't match the model: {len(missing)} missing keys, {len(unexpected)} unexpected keys.",
            missing=missing,
            unexpected=unexpected,
        )
    wrong = [
        f"{key} is {list(found[key])}, not {list(shape)}" for key, shape in required.items() if found[key] != shape
    ]
    if wrong:
        raise WeightsError(f"{what} doesn't match the model: {'; '.join(wrong[:5])} ({len(wrong)} wrong shapes).")
