"""The processor: chats and images as model inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from minigpt4_serve.images import decode_base64, decode_image
from minigpt4_serve.model.image_processing_minigpt4 import MiniGPT4ImageProcessor, read_images
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
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Rendered prompts (with ``<ImageHere>``) and their images, in reading order, as model inputs.

        Args:
            images: as ``read_images`` accepts them; a list for each prompt or one for all.
            text: one prompt or several.
            return_tensors: ``pt``, ``np``, or None for lists of ids.
            kwargs: ``padding`` (``"max_length"``), ``padding_side``, ``truncation``, ``max_length`` and
                ``add_special_tokens=False`` (no ``<s>`` in front) have the meaning that they have in transformers;
                others are ignored.

        Returns ``input_ids`` and ``attention_mask`` ``[B, T]``, padded on the left for generation unless
        ``padding_side``, or that of the tokenizer, is ``right``, and ``pixel_values`` ``[N, 3, H, W]``.
        """
        prompts = [text] if isinstance(text, str) else list(text or [])
        return self._batch(prompts, read_images(images), return_tensors, **kwargs)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """One chat or several, in transformers' message format, as prompt text or (``tokenize=True``) model inputs.

        Content is a string or a list of ``{"type": "text", "text": …}`` and ``{"type": "image", "image": …}`` parts
        (``path``, ``url`` and ``base64`` work too; for a bare ``{"type": "image"}`` the image is an argument of the
        processor's call). The template is the variant's; no other can be set.

        Args:
            add_generation_prompt: end with the beginning of an answer. If not given, this is so unless the last message
                is an answer.
            continue_final_message: end within the last message, which the model continues.
            return_dict: with ``tokenize``; False returns ``input_ids`` only.
            return_tensors, processor_kwargs, kwargs: with ``tokenize``; as in the processor's call.

        Text for training (the last message is an answer) ends with what the model learns to end an answer with: the
        separator, or else ``</s>``.

        Raises:
            ValueError: an unknown role or part, a missing image, a ``chat_template``, or a generation prompt together
                with ``continue_final_message``.
        """
        if chat_template is not None:
            raise ValueError("MiniGPT-4 models have one template, that of their training; chat_template can't be set.")
        if add_generation_prompt and continue_final_message:
            raise ValueError("Set add_generation_prompt or continue_final_message, not both.")
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        chats = [_read_messages(chat) for chat in (conversation if batched else [conversation])]
        prompts = [self._render(turns, add_generation_prompt, continue_final_message) for turns, _ in chats]
        if not tokenize:
            return prompts if batched else prompts[0]
        images = [_read_image_part(part) for _, parts in chats for part in parts]
        inputs = self._batch(prompts, images, return_tensors, **{**kwargs, **(processor_kwargs or {})})
        return inputs if return_dict else inputs["input_ids"]

    def _render(self, turns: Sequence[Turn], add_generation_prompt: bool | None, continue_final_message: bool) -> str:
        template = self.format
        prompt = render(turns, template)
        ends_with_answer = bool(turns) and turns[-1].role == "assistant"
        if add_generation_prompt or (
            add_generation_prompt is None and not (ends_with_answer or continue_final_message)
        ):
            return prompt
        prompt = prompt.removesuffix(template.assistant)
        if continue_final_message:
            return prompt.removesuffix(template.separator)
        return prompt + self.variant.answer_end if ends_with_answer and not template.separator else prompt

    def _batch(
        self,
        prompts: list[str],
        images: list[Image.Image],
        return_tensors: str | None,
        *,
        padding: bool | str = True,
        padding_side: str | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        **_: Any,
    ) -> BatchFeature:
        rows = [self.encode_prompt(prompt)[0 if add_special_tokens else 1 :] for prompt in prompts]
        if truncation and max_length is not None:
            rows = [row[:max_length] for row in rows]
        pads_right = (padding_side or self.tokenizer.padding_side) == "right"
        longest = max((len(row) for row in rows), default=0)
        if padding == "max_length" and max_length is not None:
            longest = max(longest, max_length)
        ids: list[list[int]] = []
        mask: list[list[int]] = []
        for row in rows:
            pad = [self.tokenizer.pad_token_id] * (longest - len(row))
            ids.append(row + pad if pads_right else pad + row)
            attended = [1] * len(row)
            mask.append(attended + [0] * len(pad) if pads_right else [0] * len(pad) + attended)
        data: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if images:
            data["pixel_values"] = self.image_processor.preprocess(images)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


_IMAGE_TYPES = ("image", "image_url")


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
        unknown = {part["type"] for part in parts} - {"text", *_IMAGE_TYPES}
        if unknown:
            raise ValueError(f"A message's parts must be of type text or image, not {', '.join(sorted(unknown))}.")
        image_parts = [part for part in parts if part["type"] in _IMAGE_TYPES]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        images += image_parts
        turns.append(Turn(role, text, len(image_parts)))
    return turns, images


def _read_base64(text: str) -> bytes:
    try:
        return decode_base64(text)
    except ValueError as error:
        raise ValueError("An image's base64 text is damaged.") from error


def _read_image_part(part: dict[str, Any]) -> Image.Image:
    source = next((part[key] for key in ("image", "path", "url", "image_url") if key in part), None)
    if isinstance(source, dict):  # OpenAI's shape
        source = source.get("url")
    images = [decode_image(_read_base64(part["base64"]))] if "base64" in part else read_images(source)
    if len(images) != 1:
        raise ValueError('An image part needs "image": an image, "path": a file, or "base64".')
    return images[0]
