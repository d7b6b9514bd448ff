"""Encodes chats as token ids: applies the template and the tokenizer, and truncates history to the context length."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4_serve.errors import ContextLengthExceeded
from minigpt4_serve.prompt.templates import (
    IMAGE_PLACEHOLDER,
    ConversationTemplate,
    Turn,
    render,
    truncate_history,
    truncation_points,
)
from minigpt4_serve.prompt.tokenizer import VOCABULARY_FILE, PromptTokenizer
from minigpt4_serve.prompt.variants import VARIANTS, Variant

__all__ = ["EncodedChat", "PromptEncoder"]


@dataclass(frozen=True)
class EncodedChat:
    """A chat as token ids.

    Attributes:
        token_ids: the prompt; each image is ``num_image_tokens`` times ``image_token_id``.
        dropped_messages: oldest messages whose text was dropped to fit the context; their images are kept.
    """

    token_ids: list[int]
    dropped_messages: int = 0


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenizer and variant of one model folder.

    Attributes:
        variant: of the MiniGPT-4 family; its template has the strings around the turns.
        num_image_tokens: image tokens per image.
        image_token_id: their id; outside the LLM's vocabulary.
    """

    tokenizer: PromptTokenizer
    variant: Variant
    num_image_tokens: int = 32
    image_token_id: int = 32000

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptEncoder":
        """The encoder of a model folder: its ``processor_config.json`` and ``tokenizer.model``.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: a file is missing or damaged.
        """
        settings = json.loads((folder / "processor_config.json").read_text("utf-8"))
        return cls(
            PromptTokenizer(folder / VOCABULARY_FILE),
            VARIANTS[settings["conversation_format"]],
            settings["num_image_tokens"],
            settings["image_token_id"],
        )

    @property
    def template(self) -> ConversationTemplate:
        """The variant's conversation template."""
        return self.variant.template

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt: BOS, then each segment between placeholders encoded on its own."""
        ids = [self.tokenizer.bos_id]
        for i, segment in enumerate(prompt.split(IMAGE_PLACEHOLDER)):
            if i:
                ids += [self.image_token_id] * self.num_image_tokens
            ids += self.tokenizer.encode_segment(segment)
        return ids

    def encode_chat(self, turns: Sequence[Turn], *, max_tokens: int | None = None) -> EncodedChat:
        """Token ids of a chat up to where its next answer begins.

        If they are more than ``max_tokens``, the text of as many of the oldest exchanges as necessary is dropped;
        images and the last question are kept.

        Raises:
            ContextLengthExceeded: the chat is too long even then.
        """
        ids = self.encode_prompt(render(turns, self.template))
        if max_tokens is None or len(ids) <= max_tokens:
            return EncodedChat(ids)
        ends = truncation_points(turns)
        found: EncodedChat | None = None
        low = 0
        high = len(ends)
        # Binary search: a chat of thousands of turns is encoded a dozen times, not once for every exchange.
        while low < high:
            middle = (low + high) // 2
            kept, dropped = truncate_history(turns, ends[middle])
            ids = self.encode_prompt(render(kept, self.template))
            if len(ids) <= max_tokens:
                found = EncodedChat(ids, dropped)
                high = middle
            else:
                low = middle + 1
        if found is None:
            raise ContextLengthExceeded(
                f"The question with its images takes {len(ids)} tokens; at most {max_tokens} fit. Shorten the question "
                "or send fewer images.",
                param="messages",
            )
        return found

    def decode_answer(self, ids: Sequence[int]) -> str:
        """The answer as the original shows it: without special tokens, cut at the template's stop string, stripped."""
        text = self.tokenizer.decode_ids(list(ids))
        for stop in self.template.stop:
            text = text.split(stop, 1)[0]
        return text.strip()
