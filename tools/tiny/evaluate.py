"""Evaluate an exported model on scenes and wordings from seeds that were never used in training.

``python -m tools.tiny.evaluate [FOLDER] [--each N]`` prints the table of the model's README: exact answers by greedy
decoding with the model's own ``generate()`` in float32. Lists may be in any order; every fact must be right.
"""

import argparse
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.prompt.templates import Turn, render
from minigpt4_serve.settings import TINY_MODEL
from tools.tiny.alternative_renderer import draw_alternative
from tools.tiny.questions import KINDS_OF_QUESTION, Dialogue, ask, is_correct
from tools.tiny.wordings import HELD_OUT, INDEPENDENT, TRAINED
from tools.tiny.world import Scene, draw, scene

__all__ = ["Question", "answers", "evaluation_set", "exact_share", "load"]

FACTUAL = tuple(kind for kind in KINDS_OF_QUESTION if kind not in ("refusal", "greeting"))
ROWS: dict[str, tuple[str, ...]] = {
    "color": ("color",),
    "which thing": ("which",),
    "how many in all": ("count_all",),
    "exists": ("exists",),
    "where": ("where",),
    "background": ("background",),
    "follow-ups": ("follow_up",),
    "biggest, smallest": ("biggest", "smallest"),
    "how many X": ("count",),
    "relation, yes or no": ("relation_yn",),
    "is X of that color": ("is_it",),
    "what is left, right, above, below": ("relation",),
    "short description": ("short",),
    "caption": ("caption",),
    "detailed description": ("detail",),
    "refusal": ("refusal",),
    "greeting": ("greeting",),
}


_SEED_NAMES = {"color": "colour"}
"""Names that seed the evaluation set where they differ from the kind's: published figures depend on them."""


@dataclass(frozen=True)
class Question:
    """A dialogue about a scene."""

    scene: Scene
    dialogue: Dialogue


def evaluation_set(
    kind: str, count: int, patterns: Mapping[str, tuple[str, ...]] = TRAINED, *, seed: str = "evaluation"
) -> list[Question]:
    """``count`` questions of one kind, each about a scene of its own; the same ones for the same arguments.

    Args:
        patterns: wordings by kind.
    """
    name = _SEED_NAMES.get(kind, kind)
    rng = random.Random(zlib.crc32(f"{seed} {name} {patterns is not TRAINED}".encode()))
    questions: list[Question] = []
    while len(questions) < count:
        one = scene(rng)
        dialogue = ask(one, kind, rng, patterns)
        if dialogue is not None and not _repeats_a_fact(dialogue):
            questions.append(Question(one, dialogue))
    return questions


def _repeats_a_fact(dialogue: Dialogue) -> bool:
    """Whether an earlier answer states the fact of the last one, which can then be given without the image."""
    fact = dialogue.answer.rstrip(".").split()[-1]
    return dialogue.kind == "follow_up" and any(fact in answer for _, answer in dialogue.turns[:-1])


def load(folder: Path) -> tuple[MiniGPT4ForConditionalGeneration, MiniGPT4Processor]:
    """The model of a folder in float32, in evaluation mode, and its processor."""
    model = MiniGPT4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, MiniGPT4Processor.from_pretrained(folder)


def answers(
    model: MiniGPT4ForConditionalGeneration,
    processor: MiniGPT4Processor,
    questions: Sequence[tuple[Image.Image, Dialogue]],
    batch: int = 48,
) -> list[str]:
    """Greedy answers to the last question of each dialogue about its image."""
    texts: list[str] = []
    separator = processor.tokenizer.encode_segment(processor.format.separator)[-1]
    order = sorted(range(len(questions)), key=lambda i: len(questions[i][1].answer))
    for start in range(0, len(order), batch):
        part = [questions[i] for i in order[start : start + batch]]
        prompts = []
        for _, dialogue in part:
            turns = [Turn("user", dialogue.turns[0][0], images=1)]
            for before, after in zip(dialogue.turns, dialogue.turns[1:], strict=False):
                turns += [Turn("assistant", before[1]), Turn("user", after[0])]
            prompts.append(render(turns, processor.format))
        inputs = processor([image for image, _ in part], prompts)
        ids = model.generate(**inputs, max_new_tokens=100, do_sample=False, eos_token_id=separator, pad_token_id=2)
        answered = ids[:, inputs["input_ids"].shape[-1] :]
        texts += [processor.decode_answer(row) for row in answered.tolist()]
    return [text for _, text in sorted(zip(order, texts, strict=True))]


def exact_share(
    model: MiniGPT4ForConditionalGeneration,
    processor: MiniGPT4Processor,
    questions: Sequence[Question],
    images: Sequence[Image.Image],
) -> float:
    """Fraction of correct answers when each question is asked about the image at its place in ``images``."""
    pairs = [(image, question.dialogue) for image, question in zip(images, questions, strict=True)]
    texts = answers(model, processor, pairs)
    correct = [is_correct(question.dialogue, text) for question, text in zip(questions, texts, strict=True)]
    return sum(correct) / len(correct)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=TINY_MODEL, help="an exported model (the embedded one)")
    parser.add_argument("--each", type=int, default=130, help="questions of each kind (130)")
    given = parser.parse_args()
    if given.each < 1:
        parser.error("--each must be at least 1")
    print_table(*load(given.folder), given.each)


def print_table(model: MiniGPT4ForConditionalGeneration, processor: MiniGPT4Processor, each: int) -> None:
    """Evaluate ``each`` questions of every kind (a third as many in other wordings) and print the results by row."""
    questions = {kind: evaluation_set(kind, each) for kind in KINDS_OF_QUESTION}
    images = {kind: [draw(one.scene) for one in of_kind] for kind, of_kind in questions.items()}
    print("| kind | exact | questions |\n|---|---|---|")
    for row, kinds in ROWS.items():
        shares = [exact_share(model, processor, questions[kind], images[kind]) for kind in kinds]
        _print_row(row, _mean(shares), each * len(kinds))
    fewer = max(1, each // 3)
    for name, patterns in (("held-out wordings", HELD_OUT), ("independent wordings", INDEPENDENT)):
        by_kind = {}
        for kind in KINDS_OF_QUESTION:
            of_kind = evaluation_set(kind, fewer, patterns)
            by_kind[kind] = exact_share(model, processor, of_kind, [draw(one.scene) for one in of_kind])
        _print_row(f"{name}, mean", _mean(by_kind.values()), len(by_kind) * fewer)
        _print_row(f"{name}, refusals and greetings", _mean([by_kind["refusal"], by_kind["greeting"]]), None)
        print(f"{name} by kind:", " ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items()), flush=True)

    def factual(images_of: Callable[[str], Sequence[Image.Image]], most: int) -> float:
        return _mean(
            [
                exact_share(model, processor, questions[kind][: len(replaced)], replaced)
                for kind in FACTUAL
                if (replaced := images_of(kind)[:most])
            ]
        )

    alternative = factual(lambda kind: [draw_alternative(one.scene) for one in questions[kind]], each)
    _print_row("alternative renderer, factual kinds", alternative, each * len(FACTUAL))
    few = min(40, each - 1)
    if few:
        _print_row("wrong image, factual kinds", factual(lambda kind: images[kind][1:], few), few * len(FACTUAL))
    blank = Image.new("RGB", (224, 224), "white")
    few = min(40, each)
    _print_row("blank image, factual kinds", factual(lambda kind: [blank] * few, few), few * len(FACTUAL))


def _mean(shares: Iterable[float]) -> float:
    values = list(shares)
    return sum(values) / len(values)


def _print_row(name: str, share: float, count: int | None) -> None:
    print(f"| {name} | {share:.1%} | {'' if count is None else count} |".replace("|  |", "| |"), flush=True)


if __name__ == "__main__":
    main()
