"""The embedded model's vocabulary, and dialogues as token ids, split exactly as the server splits them."""

import io
import random
import re
from dataclasses import dataclass

import sentencepiece

from minigpt4_serve.model import MiniGPT4Tokenizer
from minigpt4_serve.prompt.templates import IMAGE_PLACEHOLDER, Turn, render
from minigpt4_serve.prompt.variants import TEMPLATES
from tools.tiny.questions import KEY_WORDS, KINDS_OF_QUESTION, Dialogue, ask
from tools.tiny.world import scene

__all__ = ["Branch", "branch", "make_vocabulary", "prefix"]

_FORMAT = TEMPLATES["vicuna"]
# The system text never varies: four pieces instead of fifty keep prompts short.
_SYSTEM_PIECES = [
    "▁Give▁the▁following▁image:▁",
    "ImageContent",
    ".▁You▁will▁be▁able▁to▁see▁the▁image▁once▁I▁provide▁it▁to▁you.",
    "▁Please▁answer▁my▁questions.",
]
_OUTSIDE = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. 0 1 2 3 4 5 6 7 8 9 "
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz , . ; : ! ? ' \" ( ) [ ] - + * / = & % # @ _ < > { } | ~ $"
)


def make_vocabulary(size: int) -> bytes:
    """Train a SentencePiece BPE model of ``size`` pieces, with byte fallback, on generated questions and answers.

    Returns:
        The serialized model; the same for the same size.
    """
    model = io.BytesIO()
    rng = random.Random("vocabulary")
    lines = [_OUTSIDE] * 40 + [_FORMAT.system] * 40
    while len(lines) < 40_000:
        dialogue = ask(scene(rng), rng.choice(tuple(KINDS_OF_QUESTION)), rng)
        if dialogue is not None:
            lines += [words for turn in dialogue.turns for words in turn]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["$$", "###", "<Img>", "</Img>", "Human:", "Assistant:", *_SYSTEM_PIECES],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def prefix(tokenizer: MiniGPT4Tokenizer) -> list[int]:
    """Token ids of a prompt up to its image."""
    prompt = render([Turn("user", "", images=1)], _FORMAT)
    return [1, *tokenizer.encode_segment(prompt.split(IMAGE_PLACEHOLDER)[0])]


@dataclass(frozen=True)
class Branch:
    """The tokens of one dialogue that follow the image.

    Attributes:
        ids: earlier turns, question, answer and separator.
        weights: weight of the loss of predicting each id; 0 before the answer.
    """

    ids: list[int]
    weights: list[float]


def branch(dialogue: Dialogue, tokenizer: MiniGPT4Tokenizer, key_word_weight: float) -> Branch:
    """Tokenize a dialogue as the server does.

    The weights of an answer of n tokens are 1/√n, so that long descriptions don't outweigh short facts; those of
    ``KEY_WORDS`` are ``key_word_weight`` times that.
    """
    turns = [Turn("user", dialogue.turns[0][0], images=1)]
    for (_, answer), (question, _) in zip(dialogue.turns, dialogue.turns[1:], strict=False):
        turns += [Turn("assistant", answer), Turn("user", question)]
    question_ids = tokenizer.encode_segment(render(turns, _FORMAT).split(IMAGE_PLACEHOLDER)[1])
    answer_ids = tokenizer.encode_segment(dialogue.answer + _FORMAT.separator)
    words = [re.sub(r"\W", "", tokenizer.sentencepiece.id_to_piece(i).replace("▁", "")) for i in answer_ids]
    scale = len(answer_ids) ** -0.5
    weights = [scale * (key_word_weight if word in KEY_WORDS else 1.0) for word in words]
    return Branch(question_ids + answer_ids, [0.0] * len(question_ids) + weights)
