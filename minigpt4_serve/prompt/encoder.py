"""Chats → token ids with image slots: the template, the tokenizer and the context limit together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4_serve.errors import ContextLengthExceeded
from minigpt4_serve.prompt.templates import (
    IMAGE_PLACEHOLDER,
    TEMPLATES,
    ConversationTemplate,
    Turn,
    render,
    truncate_history,
    truncation_points,
)
from minigpt4_serve.prompt.tokenizer import VOCABULARY_FILE, PromptTokenizer

__all__ = ["EncodedChat", "PromptEncoder"]


@dataclass(frozen=True)
class EncodedChat:
    """A chat as ids.

    Attributes:
        token_ids: the prompt; every picture is ``num_image_tokens`` times ``image_token_id``.
        dropped_messages: messages whose text was forgotten to fit the context; their pictures are still there.
    """

    token_ids: list[int]
    dropped_messages: int = 0


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenizer and conversation template of one model folder.

    Attributes:
        template: the strings around the turns.
        num_image_tokens: slots per image.
        image_token_id: the id of a slot; outside the LLM's vocabulary.
    """

    tokenizer: PromptTokenizer
    template: ConversationTemplate
    num_image_tokens: int = 32
    image_token_id: int = 32000

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptEncoder":
        """The encoder of a model folder: its ``processor_config.json`` and ``tokenizer.model``.

        Raises:
            OSError, ValueError, RuntimeError: a file is missing or damaged.
        """
        settings = json.loads((folder / "processor_config.json").read_text("utf-8"))
        return cls(
            PromptTokenizer(folder / VOCABULARY_FILE),
            TEMPLATES[settings["conversation_format"]],
            settings["num_image_tokens"],
            settings["image_token_id"],
        )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Ids of a rendered prompt: one BOS, each stretch between placeholders encoded for itself, slots between."""
        ids = [self.tokenizer.bos_id]
        for i, segment in enumerate(prompt.split(IMAGE_PLACEHOLDER)):
            if i:
                ids += [self.image_token_id] * self.num_image_tokens
            ids += self.tokenizer.encode_segment(segment)
        return ids

    def encode_chat(self, turns: Sequence[Turn], *, max_tokens: int | None = None) -> EncodedChat:
        """A chat that awaits its next answer, as ids.

        If it is longer than ``max_tokens``, the text of as many of the oldest exchanges as needed is dropped; pictures
        and the last question stay.

        Raises:
            ContextLengthExceeded: too long even then.
        """
        ids = self.encode_prompt(render(turns, self.template))
        if max_tokens is None or len(ids) <= max_tokens:
            return EncodedChat(ids)
        ends = truncation_points(turns)
        found: EncodedChat | None = None
        low, high = 0, len(ends)
        # Halving: a chat of thousands of turns is encoded a dozen times, not once for every exchange.
        while low < high:
            middle = (low + high) // 2
            kept, dropped = truncate_history(turns, ends[middle])
            ids = self.encode_prompt(render(kept, self.template))
            if len(ids) <= max_tokens:
                found, high = EncodedChat(ids, dropped), middle
            else:
                low = middle + 1
        if found is None:
            raise ContextLengthExceeded(
                f"The question with its pictures takes {len(ids)} tokens; the model reads at most {max_tokens}. "
                "Ask with fewer words or fewer pictures.",
                param="messages",
            )
        return found

    def decode_answer(self, ids: Sequence[int]) -> str:
        """The answer as the original shows it: special tokens dropped, cut at the format's stop string, stripped."""
        text = self.tokenizer.decode_ids(list(ids))
        for stop in self.template.stop:
            text = text.split(stop, 1)[0]
        return text.strip()
