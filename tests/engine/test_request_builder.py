"""From prompts to requests: seeds, limits and the ids that the prefix cache compares."""

import time
from typing import Any

import pytest
from engine_driving import IMAGES

from minigpt4_serve.engine.request import Request
from minigpt4_serve.engine.request_builder import RequestBuilder
from minigpt4_serve.engine.sequence import make_content_ids
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.protocol import Prompt, SamplingParams

IMAGE_TOKEN = 100


def make_builder(small_model: Any, **changes: Any) -> RequestBuilder:
    values = {
        "tokenizer": small_model[1].tokenizer,
        "eos_ids": [2],
        "vocab_size": 512,
        "image_token_id": 512,
        "num_image_tokens": 8,
        "context_length": 64,
        "block_size": 4,
        "num_blocks": 16,
        "max_running": 4,
    }
    return RequestBuilder(**{**values, **changes})


def build(builder: RequestBuilder, asked: Prompt, sampling: SamplingParams) -> Request:
    return builder.build(asked, [], sampling, request_id="r", grammar=None, received=time.monotonic())


async def test_answers_have_seeds_of_their_own(small_model: Any) -> None:
    builder = make_builder(small_model)
    asked = Prompt((5,) * 8)
    several = build(builder, asked, SamplingParams(temperature=1, n=3, seed=7))
    seeds = [answer.sequence.seed for answer in several.answers]
    assert len(set(seeds)) == 3
    assert seeds[0] == 7, "the first answer is that of a request for one"
    unseeded = [build(builder, asked, SamplingParams(temperature=1)).answers[0].sequence.seed for _ in range(2)]
    assert unseeded[0] != unseeded[1]


async def test_max_tokens_are_limited_by_the_context(small_model: Any) -> None:
    request = build(make_builder(small_model), Prompt((5,) * 60), SamplingParams(max_tokens=50, min_tokens=9))
    sampling = request.answers[0].sequence.sampling
    assert (sampling.max_tokens, sampling.min_tokens) == (4, 4)


async def test_a_beam_search_takes_a_slot_for_each_beam(small_model: Any) -> None:
    builder = make_builder(small_model)
    sampling = SamplingParams(beams=4, n=2, max_tokens=4)
    builder.validate(Prompt((5,) * 8), sampling)
    request = build(builder, Prompt((5,) * 8), sampling)
    assert [sequence.running_slots for sequence in request.sequences] == [4]
    assert request.num_sequences == 4
    for changes in ({"max_running": 3}, {"num_blocks": 8}):
        with pytest.raises(InvalidRequest, match="4 beams"):
            make_builder(small_model, **changes).validate(Prompt((5,) * 8), sampling)


def test_content_ids_depend_on_image_and_index() -> None:
    def content_ids(*colors: str) -> list[int]:
        images = tuple(IMAGES[color] for color in colors)
        token_ids = (1, *(IMAGE_TOKEN,) * 2, 7, *(IMAGE_TOKEN,) * 2)
        return make_content_ids(token_ids, images, image_token_id=IMAGE_TOKEN, num_image_tokens=2)

    red_blue = content_ids("red", "blue")
    blue_red = content_ids("blue", "red")
    assert (red_blue[0], red_blue[3]) == (1, 7), "text ids stay as they are"
    assert red_blue[1:3] == blue_red[4:6], "an image has the same ids wherever it is"
    assert len({*red_blue, *blue_red}) == 6
    assert min(red_blue[1:3] + red_blue[4:6]) >= 1 << 62, "larger than any text id"
