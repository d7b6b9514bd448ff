"""Which server, which key, which model, when a developer names none. Knows the environment and ``GET /models``."""

import os
from collections.abc import Sequence
from typing import Any, cast

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import SecretStr

from minigpt4_serve.errors import InvalidRequest, ModelNotFound

__all__ = ["DEFAULT_BASE_URL", "find_model", "find_model_async", "server_address", "server_key"]

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"

_UNNAMED = "default"  # servers that list no models have one, and any name will do
_NO_LIST = (404, 405, 501)
# Nobody could use or close a connection that outlives its event loop.
_CLOSING: Any = {"headers": {"Connection": "close"}}


def server_address(given: str | None = None) -> str:
    """The address to ask, ending in ``/v1`` if it has no path: given, or ``MINIGPT4_BASE_URL``, or the default.

    Raises:
        InvalidRequest: it isn't an address.
    """
    address = (given or os.environ.get("MINIGPT4_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    scheme, separator, rest = address.partition("://")
    if scheme not in ("http", "https") or not separator or not rest:
        raise InvalidRequest("The vision server's address should look like http://127.0.0.1:8000/v1.", param="base_url")
    return address if "/" in rest else f"{address}/v1"


def server_key(given: SecretStr | None = None) -> SecretStr:
    """The key to show: ``given``, ``MINIGPT4_API_KEY``, or ``none``, which servers without keys ignore."""
    return given or SecretStr(os.environ.get("MINIGPT4_API_KEY") or "none")


def find_model(client: OpenAI) -> str:
    """The only model that the server lists.

    Raises:
        ModelNotFound: it lists several.
        OpenAIError: it can't be asked.
    """
    try:
        return _only(client.get("/models", cast_to=object, options=_CLOSING))
    except openai.APIStatusError as error:
        return _without_list(error)


async def find_model_async(client: AsyncOpenAI) -> str:
    """The same for callers in an event loop."""
    try:
        return _only(await client.get("/models", cast_to=object, options=_CLOSING))
    except openai.APIStatusError as error:
        return _without_list(error)


def _without_list(error: openai.APIStatusError) -> str:
    if error.status_code in _NO_LIST:
        return _UNNAMED
    raise error


def _only(listed: object) -> str:
    cards = listed.get("data") if isinstance(listed, dict) else listed
    cards = cast(Sequence[Any], cards) if isinstance(cards, list) else []
    names = [card["id"] for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]
    if len(names) > 1:
        raise ModelNotFound("The vision server offers several models; its operator must name the one to use.")
    return names[0] if names else _UNNAMED
