"""The language objective: packed training equals the model's own loss, one dialogue at a time."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional

from minigpt4_serve.model import MiniGPT4Tokenizer
from minigpt4_serve.settings import TINY_MODEL
from tools.tiny.alternative_renderer import draw_alternative
from tools.tiny.config import LanguageLossWeights, ModelConfig
from tools.tiny.language import LanguageLoss, assign_scene, pack_dialogues
from tools.tiny.network import CELLS, QUERIES, new_model
from tools.tiny.packed_attention import BIN_TOKENS, BINS
from tools.tiny.questions import KINDS_OF_QUESTION, Dialogue
from tools.tiny.tokens import branch, prefix
from tools.tiny.world import KINDS, Scene, Thing, draw, scene

NO_PRESENCE = np.zeros(CELLS * CELLS, np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> MiniGPT4Tokenizer:
    return MiniGPT4Tokenizer(str(TINY_MODEL / "tokenizer.model"))


def test_dialogues_fill_the_bins(tokenizer: MiniGPT4Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(20):
        bins = pack_dialogues(scene(rng), rng, tokenizer, KINDS_OF_QUESTION, 3.0)
        sizes = [sum(len(tokens.ids) for _, tokens in of_bin) for of_bin in bins]
        assert len(sizes) == BINS
        assert all(size <= BIN_TOKENS for size in sizes)
        assert sum(sizes) > 0.6 * BINS * BIN_TOKENS


@torch.no_grad()
def test_packed_loss_equals_one_dialogue_at_a_time(tokenizer: MiniGPT4Tokenizer) -> None:
    model = new_model(ModelConfig(), tokenizer.vocab_size)
    rng = random.Random(0)
    language = model.language_model
    images = 0.3 * torch.randn(2, QUERIES, model.config.text_config.hidden_size)
    assigned = [assign_scene(scene(rng), NO_PRESENCE) for _ in images]
    packed = [pack_dialogues(one.scene, rng, tokenizer, KINDS_OF_QUESTION, 3.0) for one in assigned]
    loss, exact = LanguageLoss(model, tokenizer, LanguageLossWeights(attention=0))(images, packed, assigned)
    language.set_attn_implementation("eager")
    table = language.get_input_embeddings()
    total = 0.0
    weight = 0.0
    for image, bins in zip(images, packed, strict=True):
        for _, tokens in (one for of_bin in bins for one in of_bin):
            start = table(torch.tensor(prefix(tokenizer)))
            ids = torch.tensor(tokens.ids)
            logits = language(inputs_embeds=torch.cat([start, image, table(ids)]).unsqueeze(0)).logits
            weights = torch.tensor(tokens.weights[1:])
            each = functional.cross_entropy(logits[0, -len(ids) : -1], ids[1:], reduction="none")
            total += float((each * weights).sum())
            weight += float(weights.sum())
    assert float(loss) == pytest.approx(total / weight, rel=1e-5)
    assert sum(map(len, exact.values())) == sum(len(of_bin) for bins in packed for of_bin in bins)


@torch.no_grad()
def test_attention_supervision_is_added_by_weight(tokenizer: MiniGPT4Tokenizer) -> None:
    model = new_model(ModelConfig(), tokenizer.vocab_size)
    rng = random.Random(0)
    images = 0.3 * torch.randn(1, QUERIES, model.config.text_config.hidden_size)
    assigned = [assign_scene(scene(rng), NO_PRESENCE)]
    packed = [pack_dialogues(assigned[0].scene, rng, tokenizer, KINDS_OF_QUESTION, 3.0)]
    answers, tenth, whole = (
        float(LanguageLoss(model, tokenizer, LanguageLossWeights(attention=weight))(images, packed, assigned)[0])
        for weight in (0, 0.1, 1)
    )
    assert whole - answers > 1  # five roles, each of a few nats before training
    assert tenth - answers == pytest.approx((whole - answers) / 10, rel=1e-4)


def test_key_words_and_short_answers_weigh_more(tokenizer: MiniGPT4Tokenizer) -> None:
    tokens = branch(Dialogue("color", (("What color is the star?", "The star is red."),)), tokenizer, 3.0)
    plain = branch(Dialogue("color", (("What color is the star?", "The star is red."),)), tokenizer, 1.0)
    answer = [weight for weight in plain.weights if weight]
    assert answer == [len(answer) ** -0.5] * len(answer)
    pieces = [tokenizer.sentencepiece.id_to_piece(i) for i in tokens.ids[-len(answer) :]]
    ratio = dict(zip(pieces, np.array(tokens.weights[-len(answer) :]) / answer, strict=True))
    assert (ratio["▁star"], ratio["▁red"], ratio["▁is"]) == (pytest.approx(3), pytest.approx(3), pytest.approx(1))
    assert tokens.weights[: -len(answer)] == [0.0] * (len(tokens.ids) - len(answer))


def test_assigned_objects_are_in_the_order_of_queries() -> None:
    things = (Thing("star", "red", 0.9, 0.9, 0.1), Thing("moon", "blue", 0.1, 0.1, 0.1))
    assigned = assign_scene(Scene(things, "white"), NO_PRESENCE)
    assert assigned.scene.things == (things[1], things[0])
    assert assigned.queries == (0, CELLS * CELLS - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_alternative_renderer_differs_in_pixels_only(kind: str) -> None:
    one = Scene((Thing(kind, "red", 0.5, 0.5, 0.3),), "white", seed=5)
    image = draw_alternative(one)
    red = [
        (x / image.width, y / image.height)
        for x in range(0, image.width, 8)
        for y in range(0, image.height, 8)
        if image.getpixel((x, y)) == (255, 0, 0)
    ]
    assert len(red) > 25
    assert all(abs(x - 0.5) < 0.34 and abs(y - 0.5) < 0.34 for x, y in red)
    assert draw_alternative(one).tobytes() == image.tobytes()
    assert image.resize((112, 112)).tobytes() != draw(one).resize((112, 112)).tobytes()
