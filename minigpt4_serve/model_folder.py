"""The parts of a model folder that need no torch: its type, tokenizer, conversation template, generation defaults."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minigpt4_serve.downloads import reject_wrong_download
from minigpt4_serve.errors import WeightsError
from minigpt4_serve.prompt.encoder import PromptEncoder
from minigpt4_serve.prompt.tokenizer import VOCABULARY_FILE
from minigpt4_serve.prompt.variants import VARIANTS

__all__ = [
    "GenerationDefaults",
    "check_model_type",
    "read_generation_defaults",
    "read_json_object",
    "read_prompt_encoder",
    "reject_disagreement",
]

_MODEL_TYPE = "minigpt4"
_PROCESSOR_FILE = "processor_config.json"
_MAX_JSON_BYTES = 32 * 2**20
_MAX_IMAGE_TOKENS = 65536
_MAX_TOKEN_ID = 2**24


class GenerationDefaults(BaseModel):
    """The part of ``generation_config.json`` that applies where a request leaves a parameter out.

    None, as a missing key, leaves the parameter to the server's own default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_new_tokens: int | None = Field(default=None, ge=1)


def read_prompt_encoder(folder: Path) -> PromptEncoder:
    """The tokenizer and the conversation template of a model folder.

    Raises:
        WeightsError: the folder isn't a MiniGPT-4 model, or a file is missing or damaged.
    """
    _check_processor(folder, check_model_type(folder))
    try:
        reject_wrong_download(folder / VOCABULARY_FILE)
        return PromptEncoder.from_folder(folder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:  # RuntimeError: SentencePiece's
        raise WeightsError(f"{folder} can't be loaded; convert it again.") from error


def _check_processor(folder: Path, model: Mapping[str, Any]) -> None:
    """Check the numbers of ``processor_config.json`` and that they agree with ``model``, those of ``config.json``."""
    damaged = f"{folder} can't be loaded; convert it again."
    try:
        values = read_json_object(folder / _PROCESSOR_FILE)
    except WeightsError as error:
        raise WeightsError(f"{damaged} {error.message}") from error
    variant = values.get("conversation_format")
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise WeightsError(f"{damaged} In {_PROCESSOR_FILE}, 'conversation_format' has an invalid value.")
    for name, at_most in {"num_image_tokens": _MAX_IMAGE_TOKENS, "image_token_id": _MAX_TOKEN_ID}.items():
        value = values.get(name)
        if type(value) is not int or not 0 < value <= at_most:
            raise WeightsError(f"{damaged} In {_PROCESSOR_FILE}, '{name}' has an invalid value.")
    shared = [name for name in ("conversation_format", "image_token_id") if name in model]
    reject_disagreement(folder, {name: (values[name], model[name]) for name in shared})


def reject_disagreement(folder: Path, numbers: Mapping[str, tuple[Any, Any]]) -> None:
    """Compare numbers of ``processor_config.json`` with those of ``config.json``.

    Raises:
        WeightsError: one of them differs.
    """
    for name, (made, taken) in numbers.items():
        if made != taken:
            raise WeightsError(
                f"{folder / _PROCESSOR_FILE} and config.json disagree about '{name}': {made} and {taken}. The files "
                "are from two models; convert the model again."
            )


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """The generation defaults of a model folder; all None if it has no ``generation_config.json``.

    Raises:
        WeightsError: the file is damaged or holds an impossible value.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults()
    try:
        return GenerationDefaults.model_validate(read_json_object(path))
    except ValidationError as error:
        key = ".".join(str(step) for step in error.errors(include_input=False, include_url=False)[0]["loc"])
        raise WeightsError(f"{path} has an invalid value for '{key}'; correct it or convert the model again.") from None


def check_model_type(folder: Path) -> dict[str, Any]:
    """Check that the folder holds a MiniGPT-4 model, by its ``config.json``, whose values are returned.

    Raises:
        WeightsError: it doesn't.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder} is not a model folder: it has no config.json. `minigpt4 convert` makes one.")
    values = read_json_object(path)
    kind = values.get("model_type")
    if kind != _MODEL_TYPE:
        raise WeightsError(f"{folder} holds a model of type {kind!r}, not a MiniGPT-4; `minigpt4 convert` makes one.")
    return values


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        WeightsError: the file can't be read, is too large or holds something else.
    """
    try:
        reject_wrong_download(path)
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise WeightsError(f"{path} is larger than any such file; convert or download the model again.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: it holds no JSON object.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is damaged: it holds no JSON object.")
    return values
