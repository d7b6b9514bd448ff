"""Messages of a chat completion request → turns of the prompt, and references to their images.

The chat may be another model's. Calls of tools and their results, for which the family has no roles, become text.
"""

import json
from collections.abc import Sequence

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.prompt.templates import Turn
from minigpt4_serve.server.openai.chat_request import ImagePart, Message, RefusalPart, TextPart, ToolCall

__all__ = ["read_turns"]

_ROLES = {"developer": "system", "tool": "user", "function": "user"}


def read_turns(messages: Sequence[Message]) -> tuple[list[Turn], list[tuple[str, str]]]:
    """The turns of a chat, and (URL, name of the field) of each image in order.

    A turn for each message, except that empty messages of the assistant at the end are left out. A system message that
    is alone is the question.

    Raises:
        InvalidRequest: there is no question, or an image isn't in a message of the user or of a tool.
    """
    turns: list[Turn] = []
    references: list[tuple[str, str]] = []
    tools: dict[str, str] = {}  # id of a call → name of its tool
    for i, message in enumerate(messages):
        role = _ROLES.get(message.role, message.role)
        texts: list[str] = []
        num_images = 0
        for j, part in enumerate(message.content):
            if isinstance(part, ImagePart):
                num_images += 1
                references.append((part.image_url.url, f"messages[{i}].content[{j}].image_url"))
            elif isinstance(part, TextPart):
                texts.append(part.text)
            elif isinstance(part, RefusalPart):
                texts.append(part.refusal)
        if num_images and role != "user":
            raise InvalidRequest("Only user messages can hold pictures.", param=f"messages[{i}].content")
        if message.role == "assistant":
            tools |= {call.id: call.function.name for call in message.tool_calls}
            texts += [message.refusal] if message.refusal else []
            texts += map(_describe_call, message.tool_calls)
        text = "\n".join(texts)
        if message.role in ("tool", "function"):
            name = message.name or tools.get(message.tool_call_id, "")
            text = f"Result of {name}: {text}" if name else f"Result: {text}"
        turns.append(Turn(role, text, num_images))  # type: ignore[arg-type]  # only Turn's roles are left
    return _with_question(turns), references


def _describe_call(call: ToolCall) -> str:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{call.function.name}({text})"


def _with_question(turns: list[Turn]) -> list[Turn]:
    """The turns up to the last one that isn't an empty message of the assistant.

    Raises:
        InvalidRequest: no one asks, or the last question is empty.
    """
    while turns and turns[-1].role == "assistant" and not turns[-1].text.strip():
        turns = turns[:-1]
    if len(turns) == 1 and turns[0].role == "system":
        turns = [Turn("user", turns[0].text)]
    asked = [turn for turn in turns[_starts_with_system(turns) :] if turn.role != "assistant"]
    if not asked or not (asked[-1].text.strip() or asked[-1].images):
        raise InvalidRequest("The chat must hold a question: a user's message with text or pictures.", param="messages")
    return turns


def _starts_with_system(turns: Sequence[Turn]) -> bool:
    return bool(turns) and turns[0].role == "system"
