"""Attention targets of hand-made dialogues."""

import pytest
import torch

from minigpt4_serve.model import MiniGPT4Tokenizer
from minigpt4_serve.settings import TINY_MODEL
from tools.tiny.attention_supervision import AttentionSupervision, BatchTarget, Role, supervision_loss
from tools.tiny.network import QUERIES
from tools.tiny.questions import Dialogue
from tools.tiny.tokens import branch
from tools.tiny.world import Scene, Thing

WHOLE = QUERIES - 1
SCENE = Scene(
    (Thing("star", "red", 0.2, 0.2, 0.1), Thing("moon", "blue", 0.8, 0.2, 0.1), Thing("star", "blue", 0.8, 0.8, 0.1)),
    "white",
)
# the queries that own them
RED_STAR = 0
BLUE_MOON = 3
BLUE_STAR = 15


@pytest.fixture(scope="module")
def tokenizer() -> MiniGPT4Tokenizer:
    return MiniGPT4Tokenizer(str(TINY_MODEL / "tokenizer.model"))


class _Targets:
    """The targets of a dialogue, addressed by words."""

    def __init__(self, tokenizer: MiniGPT4Tokenizer, question: str, answer: str) -> None:
        tokens = branch(Dialogue("short", ((question, answer),)), tokenizer, 3.0)
        pieces = [tokenizer.sentencepiece.id_to_piece(i).strip("▁ ") for i in tokens.ids]
        self._first_of_answer = next(i for i, weight in enumerate(tokens.weights) if weight > 0)
        self._pieces = pieces
        self._targets = list(AttentionSupervision(tokenizer).targets(tokens, SCENE, (RED_STAR, BLUE_MOON, BLUE_STAR)))

    def asked(self, word: str) -> int:
        """Position of a word in the question."""
        return self._pieces[: self._first_of_answer].index(word)

    def answered(self, word: str) -> int:
        """Position of a word in the answer."""
        return self._pieces.index(word, self._first_of_answer)

    def keys(self, role: Role, position: int) -> dict[int, float]:
        """Share by key."""
        found = [target for target in self._targets if (target.role, target.position) == (role, position)]
        return {key: target.share for target in found for key in target.keys}


def test_a_word_attends_to_all_objects_that_it_names(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "Where is the red star?", "The red star is at the top left.")
    assert targets.keys(Role.GROUND, targets.asked("red")) == {RED_STAR: 1.0}
    assert targets.keys(Role.GROUND, targets.asked("star")) == {RED_STAR: 1.0}  # after "red"
    many = _Targets(tokenizer, "How many stars are there?", "There are two stars.")
    # "stars" is two tokens of this vocabulary
    assert many.keys(Role.GROUND, many.asked("star")) == {RED_STAR: 0.5, BLUE_STAR: 0.5}


def test_an_absent_object_is_grounded_in_the_whole_image(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "Is there a fish?", "No, there is no fish.")
    assert targets.keys(Role.GROUND, targets.asked("fish")) == {WHOLE: 1.0}
    assert targets.keys(Role.COUNT, targets.asked("fish")) == {WHOLE: 1.0}


def test_the_counting_head_gives_each_object_a_fifth(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "How many stars are there?", "There are two stars.")
    shares = targets.keys(Role.COUNT, targets.asked("star"))
    assert shares == {RED_STAR: 0.2, BLUE_STAR: 0.2, WHOLE: pytest.approx(0.6)}
    assert targets.keys(Role.COUNT, targets.answered("star")) == {}  # questions only


def test_a_fact_is_retrieved_by_the_token_before_it(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "What color is the moon?", "The moon is blue.")
    before = targets.answered("blue") - 1
    assert targets.keys(Role.RETRIEVE, before) == {BLUE_MOON: 1.0}
    assert targets.keys(Role.LINK, before) == {targets.answered("moon"): 1.0}


def test_a_place_is_that_of_the_phrase_before_it(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "Where is the red star?", "The red star is at the top left.")
    assert targets.keys(Role.RETRIEVE, targets.answered("top") - 1) == {RED_STAR: 1.0}
    assert targets.keys(Role.RETRIEVE, targets.answered("left") - 1) == {RED_STAR: 1.0}


def test_a_background_is_that_of_the_whole_image(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "What is the background?", "The background is white.")
    assert targets.keys(Role.RETRIEVE, targets.answered("white") - 1) == {WHOLE: 1.0}


def test_a_color_before_a_noun_means_the_noun(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "What is in the picture?", "A blue moon.")
    assert targets.keys(Role.RETRIEVE, targets.answered("blue") - 1) == {BLUE_MOON: 1.0}  # not the blue star
    assert targets.keys(Role.GROUND, targets.answered("blue")) == {BLUE_MOON: 0.5, BLUE_STAR: 0.5}


def test_later_mentions_link_to_earlier_ones(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "Is the moon above the red star?", "No, the moon is not above the red star.")
    moon = targets.asked("moon")
    red = targets.asked("red")
    star = targets.asked("star")
    assert targets.keys(Role.LINK, moon) == {}
    assert targets.keys(Role.LINK, red) == {moon: 1.0}
    assert targets.keys(Role.LINK, star) == {moon: 1.0}  # "red star" is one mention
    assert targets.keys(Role.LINK, targets.answered("moon") - 1) == {moon: 1.0}


def test_conclusions_are_read_at_the_last_mention(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "Is the moon above the red star?", "No, the moon is not above the red star.")
    last = targets.asked("star")
    before = targets.answered("No") - 1
    assert targets.keys(Role.READOUT, before) == {last: 1.0}
    assert targets.keys(Role.LINK, before) == {last: 1.0}
    assert targets.keys(Role.READOUT, targets.answered("not") - 1) == {targets.answered("moon"): 1.0}


def test_the_question_retrieves_the_first_fact_of_the_answer(tokenizer: MiniGPT4Tokenizer) -> None:
    targets = _Targets(tokenizer, "What is below the moon?", "The blue star is below the moon.")
    assert targets.keys(Role.RETRIEVE, targets.asked("moon")) == {BLUE_STAR: 1.0}
    nothing = _Targets(tokenizer, "What is above the moon?", "Nothing is above the moon.")
    assert nothing.keys(Role.RETRIEVE, nothing.asked("moon")) == {BLUE_MOON: 1.0}


def test_the_loss_is_least_at_the_target_attention() -> None:
    targets = {Role.GROUND: [BatchTarget(0, 4, 2, 0.5), BatchTarget(0, 4, 3, 0.5)]}

    def loss(shares: dict[int, float]) -> float:
        attention = torch.zeros(1, 2, 5, QUERIES)
        for key, share in shares.items():
            attention[0, :, 4, key] = share
        return float(supervision_loss({Role.GROUND: attention}, targets))

    assert loss({2: 0.5, 3: 0.5}) == pytest.approx(0.6931, abs=1e-3)  # the target's entropy
    assert loss({2: 0.5, 3: 0.5}) < loss({2: 0.7, 3: 0.3}) < loss({2: 1.0}) < loss({0: 1.0})


def test_every_role_has_heads_of_its_own() -> None:
    used = [(role.layer, head) for role in Role for head in range(role.heads.start, role.heads.stop)]
    assert len(used) == len(set(used))
    assert max(layer for layer, _ in used) < 5  # ModelConfig.language_layers
    assert max(head for _, head in used) < 3  # ModelConfig.language_heads
