"""What training computes is what the model computes: dialogues that share a picture's row don't see each other."""

import random
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "tiny"
sys.path.insert(0, str(TOOLS))

from network import QUERIES, new_model  # noqa: E402
from other_hands import redraw  # noqa: E402
from questions import KINDS_OF_QUESTION  # noqa: E402
from speech import BIN, BINS, dialogues, spoken_loss  # noqa: E402
from tokens import prefix  # noqa: E402
from world import KINDS, Scene, Thing, draw, scene  # noqa: E402

from minigpt4_serve.model import MiniGPT4Tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> MiniGPT4Tokenizer:
    return MiniGPT4Tokenizer(str(ROOT / "minigpt4_serve" / "weights" / "tiny" / "tokenizer.model"))


def test_dialogues_fill_the_bins(tokenizer: MiniGPT4Tokenizer) -> None:
    rng = random.Random(3)
    for _ in range(20):
        bins = dialogues(scene(rng), rng, tokenizer, KINDS_OF_QUESTION)
        sizes = [sum(len(branch.ids) for _, branch in row) for row in bins]
        assert len(sizes) == BINS
        assert all(size <= BIN for size in sizes)
        assert sum(sizes) > 0.6 * BINS * BIN


@torch.no_grad()
def test_packed_loss_equals_one_dialogue_at_a_time(tokenizer: MiniGPT4Tokenizer) -> None:
    model, rng = new_model(tokenizer.vocab_size), random.Random(0)
    language = model.language_model
    images = 0.3 * torch.randn(2, QUERIES, model.config.text_config.hidden_size)
    asked = [dialogues(scene(rng), rng, tokenizer, KINDS_OF_QUESTION) for _ in images]
    language.set_attn_implementation("bins")
    packed, exact = spoken_loss(model, tokenizer, images, asked)
    language.set_attn_implementation("eager")
    table, total, weight = language.get_input_embeddings(), 0.0, 0.0
    for image, bins in zip(images, asked, strict=True):
        for _, branch in (one for row in bins for one in row):
            start, ids = table(torch.tensor(prefix(tokenizer))), torch.tensor(branch.ids)
            logits = language(inputs_embeds=torch.cat([start, image, table(ids)]).unsqueeze(0)).logits
            weights = torch.tensor(branch.weights[1:])
            each = functional.cross_entropy(logits[0, -len(ids) : -1], ids[1:], reduction="none")
            total, weight = total + float((each * weights).sum()), weight + float(weights.sum())
    assert float(packed) == pytest.approx(total / weight, rel=1e-5)
    assert sum(len(hits) for hits in exact.values()) == sum(len(row) for bins in asked for row in bins)


@pytest.mark.parametrize("kind", KINDS)
def test_other_hands_draw_the_same_thing_differently(kind: str) -> None:
    one = Scene((Thing(kind, "red", 0.5, 0.5, 0.3),), "white", seed=5)
    theirs = redraw(one)
    red = [
        (x / theirs.width, y / theirs.height)
        for x in range(0, theirs.width, 8)
        for y in range(0, theirs.height, 8)
        if theirs.getpixel((x, y)) == (255, 0, 0)
    ]
    assert len(red) > 25
    assert all(abs(x - 0.5) < 0.34 and abs(y - 0.5) < 0.34 for x, y in red)
    assert redraw(one).tobytes() == theirs.tobytes()
    assert theirs.resize((112, 112)).tobytes() != draw(one).resize((112, 112)).tobytes()
