"""The chat model: LangChain's own suites, against the fake server; tests/e2e runs them on the real one."""

import base64
import copy
import pickle
from typing import Any, Literal

import openai
import pytest
from drawing import draw, encode
from fakes.openai_replies import KEY, USAGE
from fakes.openai_server import MODEL, OpenAIServer
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_minigpt4 import ChatMiniGPT4
from langchain_suites import ChatModelFlags, drawn_downloads
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel
from serving_app import serving

from minigpt4_serve.errors import InvalidRequest, ModelNotFound


@pytest.fixture
def downloads_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_downloads(monkeypatch)


def question(color: str, words: str = "What colour?") -> HumanMessage:
    picture = {"type": "image", "base64": base64.b64encode(encode(draw(color))).decode(), "mime_type": "image/png"}
    return HumanMessage([picture, {"type": "text", "text": words}])


class TestChatUnit(ChatModelFlags, ChatModelUnitTests):
    """LangChain's own checks."""

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"MINIGPT4_BASE_URL": "http://eyes:1/v1", "MINIGPT4_API_KEY": KEY}
        return environment, {}, {"openai_api_base": "http://eyes:1/v1", "openai_api_key": KEY}


class TestChatIntegration(ChatModelFlags, ChatModelIntegrationTests):
    """LangChain's own checks of a conversation."""

    @property
    def model_override_value(self) -> str:
        return MODEL

    @pytest.fixture(autouse=True)
    def _with_server(self, server: OpenAIServer, downloads_are_drawn: None) -> None:
        """The constructor takes its address from the environment."""


def test_answers_carry_usage_and_the_listed_model(server: OpenAIServer) -> None:
    answer = ChatMiniGPT4().invoke([SystemMessage("Be short."), question("green")])
    assert answer.text == "green"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == USAGE["prompt_tokens"]
    assert answer.usage_metadata["input_token_details"] == {"cache_read": 40}
    assert answer.response_metadata["model_name"] == MODEL
    assert server.requests[0].body["model"] == MODEL, "the only one that the server lists"


async def test_the_model_is_the_named_one_or_the_only_one(server: OpenAIServer) -> None:
    server.models = ["a", "b"]
    assert (await ChatMiniGPT4(model="b").ainvoke([question("red")])).text == "red"
    assert (await ChatMiniGPT4().bind(model="a").ainvoke([question("red")])).text == "red"
    assert [request.body["model"] for request in server.requests] == ["b", "a"]
    for asked in (ChatMiniGPT4().ainvoke("Hello"), anext(ChatMiniGPT4().astream("Hello"))):
        with pytest.raises(ModelNotFound, match="name the one"):
            await asked
    server.models = ["new"]
    assert ChatMiniGPT4().invoke([question("blue")]).text == "blue"


@pytest.mark.parametrize("given", ["http://eyes:8000", "http://eyes:8000/", "http://eyes:8000/v1/"])
def test_addresses_are_completed_as_the_tool_does(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT4_BASE_URL", given)
    assert ChatMiniGPT4().openai_api_base == "http://eyes:8000/v1"
    assert ChatMiniGPT4(base_url=given).openai_api_base == "http://eyes:8000/v1"
    with pytest.raises(InvalidRequest, match="should look like"):
        ChatMiniGPT4(base_url="eyes:8000")


def test_an_empty_environment_never_means_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT4_BASE_URL", "")
    monkeypatch.setenv("MINIGPT4_API_KEY", "")
    monkeypatch.setenv("OPENAI_API_BASE", "https://elsewhere.example/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = ChatMiniGPT4()
    assert str(model.root_client.base_url) == "http://127.0.0.1:8000/v1/"
    assert model.root_client.api_key == "none"


async def test_streams_carry_usage(server: OpenAIServer) -> None:
    pieces = [piece async for piece in ChatMiniGPT4().astream([question("red"), AIMessage("red"), question("blue")])]
    assert "".join(piece.text for piece in pieces) == "red and blue"
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == USAGE["total_tokens"]
    assert server.requests[0].body["stream_options"] == {"include_usage": True}


def test_the_key_is_sent_and_not_shown(server: OpenAIServer) -> None:
    server.key = KEY
    model = ChatMiniGPT4(api_key=KEY)  # type: ignore[arg-type]
    assert model.invoke([question("red")]).text == "red"
    assert KEY not in repr(model) + str(model)
    with pytest.raises(openai.AuthenticationError):
        ChatMiniGPT4(api_key="wrong", max_retries=0).invoke("Hello")  # type: ignore[arg-type]


def test_unsupported_features_raise_with_advice() -> None:
    with pytest.raises(NotImplementedError, match="MiniGPT4VisionTool"):
        ChatMiniGPT4().bind_tools([])
    with pytest.raises(NotImplementedError, match="json_schema"):
        ChatMiniGPT4().with_structured_output({}, method="function_calling")


class Scene(BaseModel):
    """What is in the picture."""

    background: Literal["white", "black", "gray"]
    objects: Literal[1, 2, 3, 4]


SCENE = {"title": "Scene", "description": "What is in the picture.", **Scene.model_json_schema()}


def test_answers_follow_a_schema(small_model: Any) -> None:
    with serving(small_model) as (client, _):
        model = ChatMiniGPT4(base_url=f"{client.base_url}/v1", api_key="none")  # type: ignore[arg-type]
        scene = model.with_structured_output(Scene).invoke([question("red")])
        as_dict = model.with_structured_output(SCENE).invoke([question("red")])
    assert isinstance(scene, Scene)
    assert Scene.model_validate(as_dict) == scene


def test_tokens_are_counted_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("no connection is needed")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("tiktoken.encoding_for_model", refuse)
    monkeypatch.setattr("tiktoken.get_encoding", refuse)
    model = ChatMiniGPT4(model="any")
    assert model.get_num_tokens("hi") == 1
    assert model.get_num_tokens("") == 0
    assert 20 <= model.get_num_tokens("The quick brown fox jumps over the lazy dog. " * 2) <= 40
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert model.get_num_tokens_from_messages([HumanMessage([image]), AIMessage("hi")]) > 256
    kept = trim_messages([HumanMessage("a" * 900), HumanMessage("b")], max_tokens=50, token_counter=model)
    assert [message.content for message in kept] == ["b"]
    with pytest.raises(NotImplementedError, match="custom_get_token_ids"):
        model.get_token_ids("hi")
    exact = ChatMiniGPT4(model="any", custom_get_token_ids=lambda text: list(text.encode()))
    assert exact.get_num_tokens("hi there") == 8


def test_copies_of_the_model_work(server: OpenAIServer) -> None:
    model = ChatMiniGPT4(api_key=KEY, temperature=0.5, max_retries=0)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.model_copy(deep=True)):
        assert (made.temperature, made.max_retries, made.openai_api_key) == (0.5, 0, model.openai_api_key)
        assert made.invoke([question("red")]).text == "red"
