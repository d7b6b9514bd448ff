"""The parts of a model folder that the HTTP side reads: tokenizer, conversation template, generation defaults."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from minigpt4_serve.errors import WeightsError
from minigpt4_serve.prompt.encoder import PromptEncoder

__all__ = ["GenerationDefaults", "check_model_type", "read_generation_defaults", "read_prompt_encoder"]

_MODEL_TYPE = "minigpt4"


class GenerationDefaults(BaseModel):
    """The part of ``generation_config.json`` that applies where a request leaves a parameter out.

    None, as a missing key, leaves the parameter to the server's own default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def read_prompt_encoder(folder: Path) -> PromptEncoder:
    """The tokenizer and the conversation template of a model folder.

    Raises:
        WeightsError: the folder isn't a MiniGPT-4 model, or a file is missing or damaged.
    """
    check_model_type(folder)
    try:
        return PromptEncoder.from_folder(folder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:  # RuntimeError: SentencePiece's
        raise WeightsError(f"{folder} can't be loaded; convert it again.") from error


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """The generation defaults of a model folder; all None if it has no ``generation_config.json``.

    Raises:
        WeightsError: the file is damaged or holds a value of the wrong type.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults()
    try:
        return GenerationDefaults.model_validate(_read_object(path))
    except ValidationError as error:
        key = ".".join(str(step) for step in error.errors(include_input=False, include_url=False)[0]["loc"])
        raise WeightsError(f"{path} has an invalid value for '{key}'; correct it or convert the model again.") from None


def check_model_type(folder: Path) -> None:
    """Check that the folder holds a MiniGPT-4 model, by its ``config.json``.

    Raises:
        WeightsError: it doesn't.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder} is not a model folder: it has no config.json. `minigpt4 convert` makes one.")
    kind = _read_object(path).get("model_type")
    if kind != _MODEL_TYPE:
        raise WeightsError(f"{folder} holds a model of type {kind!r}, not a MiniGPT-4; `minigpt4 convert` makes one.")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged: it holds no JSON object.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is damaged: it holds no JSON object.")
    return values
