"""A recorded set: its variants, each of them converted, loaded and paired with the original's numbers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import StoppingCriteriaList

from minigpt4_serve.errors import WeightsError
from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor, Turn
from minigpt4_serve.model.stopping import StopAtText
from minigpt4_serve.prompt.templates import IMAGE_PLACEHOLDER, escape_control_tokens, render
from minigpt4_serve.prompt.variants import VARIANTS, Variant
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.infer_config import Hyperparameters
from minigpt4_serve.weights.load import load_model
from minigpt4_serve.weights.reader import open_tensors

__all__ = [
    "BOS",
    "EOS",
    "RecordedTurn",
    "Subject",
    "load_subject",
    "recorded_hyperparameters",
    "recorded_turns",
    "recorded_variants",
]

BOS = 1
EOS = 2


@dataclass(frozen=True)
class Subject:
    """A variant as this package runs it, and what was recorded from the original.

    Attributes:
        expected: the set's ``expected.json``.
        vision, language: the recorded tensors by name; empty where none were recorded.
    """

    model: MiniGPT4ForConditionalGeneration
    processor: MiniGPT4Processor
    images: list[Image.Image]
    expected: dict[str, Any]
    vision: dict[str, torch.Tensor]
    language: dict[str, torch.Tensor]

    def image_indices(self, texts: Sequence[str], recorded: dict[str, Any]) -> list[int]:
        """The images that recorded texts show: as recorded, else one after the other."""
        shown = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
        return list(recorded.get("images", range(shown)))

    @property
    def stopping(self) -> StoppingCriteriaList:
        """The format's stop strings."""
        strings = self.processor.format.stop
        return StoppingCriteriaList([StopAtText(self.processor.tokenizer, strings)] if strings else [])

    def pixels(self, indices: Sequence[int]) -> torch.Tensor | None:
        """These images as ``[N, 3, side, side]``; None for none."""
        if not indices:
            return None
        return torch.stack([self.processor.image_processor.to_tensor(self.images[i]) for i in indices])

    def with_image_tokens(self, recorded_ids: Sequence[int]) -> list[int]:
        """Recorded ids, which have -1 in an image's place, with our image token there."""
        return [self.processor.image_token_id if i < 0 else i for i in recorded_ids]


@dataclass(frozen=True)
class RecordedTurn:
    """One turn of a recorded chat.

    Attributes:
        recorded: the original's prompt, ids and answers.
        images: indices of the images so far.
        prompt: ours; None where it differs on purpose.
    """

    recorded: dict[str, Any]
    images: list[int]
    prompt: str | None


def recorded_turns(subject: Subject) -> Iterator[RecordedTurn]:
    """Every recorded turn, chat by chat.

    Our prompt differs on purpose where the history is the demo's ``</s>``, or where a user typed a control string.
    """
    for case in subject.expected["cases"].values():
        turns: list[Turn] = []
        images: list[int] = []
        recorded = iter(case["turns"])
        differs = False
        for step, *argument in case["steps"]:
            if step == "image":
                images.append(argument[0])
                turns.append(Turn("user", images=1))
            elif step == "ask":
                turns.append(Turn("user", argument[0]))
                differs |= escape_control_tokens(argument[0]) != argument[0]
            elif step != "answer":
                differs = True  # stream_mark: v2's demo drops its answers from the history; ours keeps them
            else:
                turn = next(recorded)
                yield RecordedTurn(turn, list(images), None if differs else render(turns, subject.processor.format))
                turns.append(Turn("assistant", turn["messages_after"][-1][1]))


def recorded_variants(golden: Path) -> list[str]:
    """Variants that a set has numbers of.

    Raises:
        ValueError: the folder holds no such set.
    """
    try:
        named = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))["variants"]
    except (OSError, ValueError, KeyError, TypeError):
        named = []
    found = [str(name) for name in named if (golden / str(name) / "expected.json").is_file()]
    if not found:
        raise ValueError(f"{golden} holds no recorded numbers: no MANIFEST.json names variants that are there.")
    return found


def load_subject(golden: Path, variant: str, attention: str, folder: Path) -> Subject:
    """Convert a variant's files into ``folder`` (unless it exists) and load it in float32 on the CPU.

    Raises:
        MiniGPT4Error: the files can't be converted.
    """
    manifest = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))
    expected = json.loads((golden / variant / "expected.json").read_text(encoding="utf-8"))
    if not folder.exists():
        of_variant = _find_variant(variant, expected)
        convert(
            variant=of_variant.name,
            llm=golden / expected["files"]["llm"],
            vit=_find_checkpoint(golden, "cls_token"),
            qformer=_find_checkpoint(golden, "query_tokens") if of_variant.has_qformer else None,
            checkpoint=golden / expected["files"]["ckpt"],
            out=folder,
            dtype="float32",
            hyperparameters=recorded_hyperparameters(golden, expected["image_size"]),
        )
    settings = ModelSettings(path=folder, device="cpu", dtype="float32")
    model, processor = load_model(settings, attention=attention)
    images = [_read_image(golden / "inputs" / name) for name in manifest["images"]]
    tensors = {
        kind: load_file(path) if (path := golden / variant / f"{kind}.safetensors").is_file() else {}
        for kind in ("vision", "language")
    }
    return Subject(model, processor, images, expected, tensors["vision"], tensors["language"])


def recorded_hyperparameters(golden: Path, image_size: int | None) -> Hyperparameters:
    """What the tensors of a set don't determine, as its ``MANIFEST.json`` says under ``config``."""
    config = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8")).get("config", {})
    return Hyperparameters(
        vit_heads=config.get("vit_heads"),
        vit_depth=config.get("vit_depth"),
        image_size=image_size,
        qformer_heads=config.get("qf_heads"),
        lora_alpha=config.get("lora_alpha"),
    )


def _find_variant(name: str, expected: dict[str, Any]) -> Variant:
    """The variant that a recorded one belongs to, by its name or its conversation's."""
    names = f"{name} {expected['files'].get('conv', '')}".lower()
    found = next((key for key in ("vicuna", "v2", "llama2") if key in names), "llama2")
    return VARIANTS[found]


def _find_checkpoint(golden: Path, tensor: str) -> Path:
    """The ``.pth`` that holds a tensor, wherever it is and whatever its name.

    Raises:
        WeightsError: there is none.
    """
    for path in sorted(golden.rglob("*.pth")):
        if tensor in open_tensors(path):
            return path
    raise WeightsError(f"{golden} holds no .pth with a tensor {tensor}.", missing=[tensor])


def _read_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image
