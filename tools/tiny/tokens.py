"""The embedded model's vocabulary, and dialogues as ids exactly as the server splits them. Knows text, no tensors."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from questions import KEY_WORDS, KINDS_OF_QUESTION, Dialogue, ask
from world import scene

from minigpt4_serve.model import MiniGPT4Tokenizer
from minigpt4_serve.model.conversation import FORMATS, IMAGE_PLACEHOLDER, Turn, render

__all__ = ["Branch", "branch", "make_vocabulary", "prefix"]

VOCABULARY = 800
_FORMAT = FORMATS["vicuna"]
# The system text is always the same: a few pieces instead of fifty keep prompts short.
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


def make_vocabulary(file: Path) -> None:
    """Train SentencePiece's byte-pair encoding on questions and answers of the world, with bytes to fall back on."""
    rng = random.Random("vocabulary")
    lines = [_OUTSIDE] * 40 + [_FORMAT.system] * 40
    while len(lines) < 40_000:
        dialogue = ask(scene(rng), rng.choice(tuple(KINDS_OF_QUESTION)), rng)
        if dialogue is not None:
            lines += [words for turn in dialogue.turns for words in turn]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(file.with_suffix("")),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["$$", "###", "<Img>", "</Img>", "Human:", "Assistant:", *_SYSTEM_PIECES],
        num_threads=1,
        minloglevel=2,
    )
    file.with_suffix(".vocab").unlink()


def prefix(tokenizer: MiniGPT4Tokenizer) -> list[int]:
    """Ids of a prompt up to its picture."""
    prompt = render([Turn("user", "", images=1)], _FORMAT)
    return [1, *tokenizer.encode_segment(prompt.split(IMAGE_PLACEHOLDER)[0])]


@dataclass(frozen=True)
class Branch:
    """What follows the picture.

    Attributes:
        ids: question (with earlier turns), answer and the mark of its end.
        weights: for the loss of predicting each id; 0 up to the answer.
    """

    ids: list[int]
    weights: list[float]


def branch(dialogue: Dialogue, tokenizer: MiniGPT4Tokenizer) -> Branch:
    """The dialogue as the server would put it to the model, and the answer that the model should give."""
    turns = [Turn("user", dialogue.turns[0][0], images=1)]
    for (_, answer), (question, _) in zip(dialogue.turns, dialogue.turns[1:], strict=False):
        turns += [Turn("assistant", answer), Turn("user", question)]
    asked = tokenizer.encode_segment(render(turns, _FORMAT).split(IMAGE_PLACEHOLDER)[1])
    answer = tokenizer.encode_segment(dialogue.answer + _FORMAT.separator)
    pieces = [tokenizer.sentencepiece.id_to_piece(i) for i in answer]
    keys = [3.0 if re.sub(r"\W", "", piece.replace("▁", "")) in KEY_WORDS else 1.0 for piece in pieces]
    scale = len(answer) ** -0.5
    return Branch(asked + answer, [0.0] * len(asked) + [key * scale for key in keys])
