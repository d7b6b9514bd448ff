"""The model to ask: the one rule by which it is chosen from ``GET /models``, and its card.

A named model is the one. Without a name it is the only model that the server lists, by its first name if it has several
(cards with the same ``root``); several models are an error, because the choice would be arbitrary. Servers that list
none have one, and any name will do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

from minigpt4_serve.client.json_fields import get_int, get_mapping, get_number
from minigpt4_serve.errors import ModelNotFound

__all__ = ["ModelCard", "fetch_card", "find_model", "find_model_async"]

_UNNAMED = "default"
_NO_LIST = (404, 405, 501)
# A connection that outlives its event loop can neither be used nor closed.
_CLOSING: Any = {"headers": {"Connection": "close"}}


@dataclass(frozen=True)
class ModelCard:
    """The server's report about its model; None for what it leaves out.

    Attributes:
        max_images: images of one chat.
        max_image_bytes: size of one image.
        context_length: tokens of question and answer together.
        max_beams: widest beam search; 1 if it can't search.
        boxes: the model reads and writes MiniGPT-v2's task tags and boxes.
        temperature, top_p, max_tokens: the server's defaults.
    """

    name: str
    max_images: int | None = None
    max_image_bytes: int | None = None
    context_length: int | None = None
    max_beams: int = 1
    boxes: bool = False
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


async def fetch_card(client: AsyncOpenAI, wanted: str | None) -> ModelCard:
    """The card of the wanted model, or of the only one.

    Raises:
        ModelNotFound: it isn't listed, or none is named and several are listed.
        OpenAIError: the request failed.
        ValueError: the response isn't JSON.
    """
    return _choose(await _list_models_async(client), wanted)


def find_model(client: OpenAI) -> str:
    """The name of the only model.

    Raises:
        ModelNotFound: several are listed.
        OpenAIError: the request failed.
    """
    try:
        listed = client.get("/models", cast_to=object, options=_CLOSING)
    except openai.APIStatusError as error:
        listed = _no_list(error)
    return _choose(listed, None).name


async def find_model_async(client: AsyncOpenAI) -> str:
    """``find_model`` for callers in an event loop."""
    return _choose(await _list_models_async(client), None).name


async def _list_models_async(client: AsyncOpenAI) -> object:
    try:
        return await client.get("/models", cast_to=object, options=_CLOSING)
    except openai.APIStatusError as error:
        return _no_list(error)


def _no_list(error: openai.APIStatusError) -> object:
    if error.status_code in _NO_LIST:
        return []
    raise error


def _choose(listed: object, wanted: str | None) -> ModelCard:
    cards = listed.get("data") if isinstance(listed, Mapping) else listed
    named = [card for card in cards if isinstance(card, Mapping)] if isinstance(cards, list) else []
    named = [card for card in named if isinstance(card.get("id"), str)]
    if not named:
        return ModelCard(wanted or _UNNAMED)
    found = [card for card in named if wanted in (None, card["id"])]
    if not found:
        raise ModelNotFound("The vision server lists no such model; its operator must correct the model's name.")
    if wanted is None and len({card.get("root") or card["id"] for card in found}) > 1:
        raise ModelNotFound("The vision server offers several models; its operator must name the one to use.")
    return _read_card(found[0])


def _read_card(card: Mapping[str, Any]) -> ModelCard:
    defaults = get_mapping(card, "defaults")
    capabilities = get_mapping(card, "capabilities")
    return ModelCard(
        name=card["id"],
        max_images=get_int(card, "max_images"),
        max_image_bytes=get_int(card, "max_image_bytes"),
        context_length=get_int(card, "context_length"),
        max_beams=get_int(capabilities, "max_beams") or 1,
        boxes=capabilities.get("boxes") is True,
        temperature=get_number(defaults, "temperature"),
        top_p=get_number(defaults, "top_p"),
        max_tokens=get_int(defaults, "max_tokens"),
    )
