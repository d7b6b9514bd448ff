"""What the HTTP side reads of a model folder, and the errors of a wrong one."""

import json
import os
import shutil
from pathlib import Path

import pytest

from minigpt4_serve.errors import WeightsError
from minigpt4_serve.model_folder import GenerationDefaults, read_generation_defaults, read_prompt_encoder
from minigpt4_serve.settings import TINY_MODEL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "processor_config.json", "tokenizer.model", "generation_config.json"):
        shutil.copy(TINY_MODEL / name, tmp_path / name)
    return tmp_path


def test_the_encoder_of_the_embedded_model(folder: Path) -> None:
    encoder = read_prompt_encoder(folder)
    assert (encoder.variant.name, encoder.num_image_tokens, encoder.image_token_id) == ("vicuna", 17, 800)
    assert encoder.encode_prompt("Hello")[0] == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", None, "has no config.json. `minigpt4 convert` makes one"),
        ("config.json", "[]", "is damaged: it holds no JSON object"),
        ("config.json", "{", "is damaged: it holds no JSON object"),
        ("config.json", '{"model_type": "llama"}', "holds a model of type 'llama', not a MiniGPT-4"),
        ("processor_config.json", None, "can't be loaded; convert it again"),
        ("processor_config.json", "{}", "can't be loaded; convert it again"),
        ("processor_config.json", "[]", "can't be loaded; convert it again"),
        ("tokenizer.model", None, "can't be loaded; convert it again"),
    ],
)
def test_a_wrong_folder_is_named(folder: Path, file: str, text: str | None, message: str) -> None:
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(WeightsError, match=str(folder)) as caught:
        read_prompt_encoder(folder)
    assert message in caught.value.message


def test_a_truncated_vocabulary_is_an_error(folder: Path) -> None:
    os.truncate(folder / "tokenizer.model", 1000)
    with pytest.raises(WeightsError, match="can't be loaded"):
        read_prompt_encoder(folder)


def test_generation_defaults_ignore_other_keys(folder: Path) -> None:
    assert read_generation_defaults(folder) == GenerationDefaults()
    rules = {"do_sample": True, "temperature": 0.6, "top_k": 50, "eos_token_id": [2], "top_p": None}
    (folder / "generation_config.json").write_text(json.dumps(rules))
    assert read_generation_defaults(folder) == GenerationDefaults(do_sample=True, temperature=0.6, top_k=50)
    (folder / "generation_config.json").unlink()
    assert read_generation_defaults(folder) == GenerationDefaults()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"top_k": "many"}', "'top_k'"),
        ('{"top_k": -1}', "'top_k'"),
        ('{"temperature": NaN}', "'temperature'"),
        ('{"temperature": -1}', "'temperature'"),
        ('{"top_p": 1.5}', "'top_p'"),
        ('{"repetition_penalty": 0}', "'repetition_penalty'"),
        ('{"max_new_tokens": 0}', "'max_new_tokens'"),
        ("5", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
    ],
)
def test_damaged_generation_defaults_are_named(folder: Path, text: str, message: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_generation_defaults(folder)
