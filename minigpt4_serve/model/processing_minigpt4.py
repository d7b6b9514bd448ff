"""The processor: chats and images as model inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from minigpt4_serve.model.image_processing_minigpt4 import MiniGPT4ImageProcessor
from minigpt4_serve.model.tokenization_minigpt4 import MiniGPT4Tokenizer
from minigpt4_serve.prompt.encoder import EncodedChat, PromptEncoder
from minigpt4_serve.prompt.templates import ConversationTemplate, Turn, render
from minigpt4_serve.prompt.variants import VARIANTS, Variant

__all__ = ["EncodedChat", "MiniGPT4Processor"]


class MiniGPT4Processor(ProcessorMixin):
    """Image processor, tokenizer and conversation template of one model folder.

    Args:
        conversation_format: name of the variant, a key of ``minigpt4_serve.prompt.variants.VARIANTS``.
        num_image_tokens: image tokens per image.
        image_token_id: their id; outside the LLM's vocabulary.
    """

    def __init__(
        self,
        image_processor: MiniGPT4ImageProcessor,
        tokenizer: MiniGPT4Tokenizer,
        conversation_format: str = "vicuna",
        num_image_tokens: int = 32,
        image_token_id: int = 32000,
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.conversation_format = conversation_format
        self.num_image_tokens = num_image_tokens
        self.image_token_id = image_token_id

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> "MiniGPT4Processor":
        """The processor of a model folder.

        Builds the image processor directly: transformers' Auto class for it requires torchvision in some versions.
        """
        settings, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        image = MiniGPT4ImageProcessor(**settings.pop("image_processor", {}))
        tokenizer = MiniGPT4Tokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        own = ("conversation_format", "num_image_tokens", "image_token_id")
        return cls(image, tokenizer, **{name: settings[name] for name in own if name in settings})

    @property
    def variant(self) -> Variant:
        """The variant that ``conversation_format`` names."""
        return VARIANTS[self.conversation_format]

    @property
    def format(self) -> ConversationTemplate:
        """The variant's template."""
        return self.variant.template

    @property
    def encoder(self) -> PromptEncoder:
        """The encoder of prompts and chats."""
        return PromptEncoder(self.tokenizer.prompt_tokenizer, self.variant, self.num_image_tokens, self.image_token_id)

    def encode_prompt(self, prompt: str) -> list[int]:
        """As ``PromptEncoder.encode_prompt``."""
        return self.encoder.encode_prompt(prompt)

    def encode_chat(self, turns: Sequence[Turn], *, max_tokens: int | None = None) -> EncodedChat:
        """As ``PromptEncoder.encode_chat``."""
        return self.encoder.encode_chat(turns, max_tokens=max_tokens)

    def decode_answer(self, ids: Sequence[int]) -> str:
        """As ``PromptEncoder.decode_answer``."""
        return self.encoder.decode_answer(ids)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Rendered prompts (with ``<ImageHere>``) and their images, in reading order, as model inputs.

        Returns ``input_ids`` and ``attention_mask`` ``[B, T]``, padded on the left for generation, and
        ``pixel_values`` ``[N, 3, H, W]``.
        """
        prompts = [text] if isinstance(text, str) else list(text or [])
        return self._batch([self.encode_prompt(prompt) for prompt in prompts], _as_list(images))

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> str | BatchFeature:
        """One chat or several, in transformers' message format, as prompt text or (``tokenize=True``) model inputs.

        Content is a string or a list of ``{"type": "text", "text": …}`` and ``{"type": "image", "image": PIL.Image}``
        parts (``path`` works too; for a bare ``{"type": "image"}`` the image is an argument of the processor's call).
        The template is the variant's; no other can be set.

        Raises:
            ValueError: an unknown role or part, a missing image, or a ``chat_template``.
        """
        if chat_template is not None:
            raise ValueError("MiniGPT-4 models have one template, that of their training; chat_template can't be set.")
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        chats = [_read_messages(chat) for chat in (conversation if batched else [conversation])]
        prompts = [render(turns, self.format) for turns, _ in chats]
        if not tokenize:
            return prompts if batched else prompts[0]  # type: ignore[return-value]
        images = [_open_image(part) for _, parts in chats for part in parts]
        return self._batch([self.encode_prompt(p) for p in prompts], images)

    def _batch(self, rows: list[list[int]], images: list[Image.Image]) -> BatchFeature:
        longest = max((len(row) for row in rows), default=0)
        pad = [longest - len(row) for row in rows]
        ids = [[self.tokenizer.pad_token_id] * n + row for n, row in zip(pad, rows, strict=True)]
        mask = [[0] * n + [1] * len(row) for n, row in zip(pad, rows, strict=True)]
        data: dict[str, Any] = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if images:
            data["pixel_values"] = self.image_processor.preprocess(images)["pixel_values"]
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def _as_list(images: Image.Image | Sequence[Image.Image] | None) -> list[Image.Image]:
    if images is None:
        return []
    return [images] if isinstance(images, Image.Image) else list(images)


def _read_messages(messages: Sequence[dict[str, Any]]) -> tuple[list[Turn], list[dict[str, Any]]]:
    """Messages in transformers' format as turns and their image parts, which aren't opened."""
    turns: list[Turn] = []
    images: list[dict[str, Any]] = []
    for message in messages:
        role = message["role"]
        content = message["content"]
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"A message's role must be system, user or assistant, not {role!r}.")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        unknown = {part["type"] for part in parts} - {"text", "image"}
        if unknown:
            raise ValueError(f"A message's parts must be of type text or image, not {', '.join(sorted(unknown))}.")
        image_parts = [part for part in parts if part["type"] == "image"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        images += image_parts
        turns.append(Turn(role, text, len(image_parts)))
    return turns, images


def _open_image(part: dict[str, Any]) -> Image.Image:
    image = part.get("image", part.get("path", part.get("url")))
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | Path) and "://" not in str(image):
        # The orientation in the EXIF data of photos is applied.
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened)
    raise ValueError('An image part needs "image": a PIL image, or "path": a file; addresses are not fetched.')
