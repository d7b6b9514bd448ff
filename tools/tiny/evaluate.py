"""Measure the embedded model on scenes and wordings from seeds that were never trained on nor watched.

``python tools/tiny/evaluate.py [FOLDER] [--each N]`` prints the table of the model's README: exact answers of the plain
``generate()`` path, greedy, in float32. Lists may come in any order; every fact must be right.
"""

import argparse
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from other_hands import redraw
from PIL import Image
from questions import KINDS_OF_QUESTION, Dialogue, ask, is_right
from wordings import NEW, STRANGERS, TRAINED
from world import Scene, draw, scene

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Processor
from minigpt4_serve.model.conversation import Turn, render

__all__ = ["answers", "fresh", "load"]

FACTUAL = tuple(kind for kind in KINDS_OF_QUESTION if kind not in ("refusal", "greeting"))
ROWS: dict[str, tuple[str, ...]] = {
    "colour": ("colour",),
    "which thing": ("which",),
    "how many in all": ("count_all",),
    "exists": ("exists",),
    "where": ("where",),
    "background": ("background",),
    "follow-ups": ("follow_up",),
    "biggest, smallest": ("biggest", "smallest"),
    "how many X": ("count",),
    "relation, yes or no": ("relation_yn",),
    "is X of that colour": ("is_it",),
    "what is left, right, above, below": ("relation",),
    "short description": ("short",),
    "caption": ("caption",),
    "detailed description": ("detail",),
    "refusal": ("refusal",),
    "greeting": ("greeting",),
}


@dataclass(frozen=True)
class Asked:
    """A question about a scene, and the scene of another question of its kind."""

    scene: Scene
    dialogue: Dialogue


def fresh(
    kind: str, count: int, patterns: Mapping[str, tuple[str, ...]] = TRAINED, *, seed: str = "evaluation"
) -> list[Asked]:
    """``count`` questions of one kind about scenes of their own."""
    rng = random.Random(zlib.crc32(f"{seed} {kind} {patterns is not TRAINED}".encode()))
    asked: list[Asked] = []
    while len(asked) < count:
        one = scene(rng)
        dialogue = ask(one, kind, rng, patterns)
        if dialogue is not None and not _was_told(dialogue):
            asked.append(Asked(one, dialogue))
    return asked


def _was_told(dialogue: Dialogue) -> bool:
    """Does an earlier answer hold this one's last fact? Blind models repeat it: no evidence of seeing."""
    fact = dialogue.answer.rstrip(".").split()[-1]
    return dialogue.kind == "follow_up" and any(fact in answer for _, answer in dialogue.turns[:-1])


def load(folder: Path) -> tuple[MiniGPT4ForConditionalGeneration, MiniGPT4Processor]:
    """The model of a folder in float32."""
    model = MiniGPT4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, MiniGPT4Processor.from_pretrained(folder)


def answers(model: Any, processor: Any, asked: list[tuple[Image.Image, Dialogue]], batch: int = 48) -> list[str]:
    """Greedy answers to the last question of each dialogue about its picture."""
    said: list[str] = []
    separator = processor.tokenizer.encode_segment(processor.format.separator)[-1]
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][1].answer))
    for start in range(0, len(order), batch):
        part = [asked[i] for i in order[start : start + batch]]
        prompts = []
        for _, dialogue in part:
            turns = [Turn("user", dialogue.turns[0][0], images=1)]
            for before, after in zip(dialogue.turns, dialogue.turns[1:], strict=False):
                turns += [Turn("assistant", before[1]), Turn("user", after[0])]
            prompts.append(render(turns, processor.format))
        inputs = processor([picture for picture, _ in part], prompts)
        ids = model.generate(**inputs, max_new_tokens=100, do_sample=False, eos_token_id=separator, pad_token_id=2)
        said += [processor.decode_answer(row) for row in ids.tolist()]
    return [text for _, text in sorted(zip(order, said, strict=True))]


def share(model: Any, processor: Any, asked: list[Asked], pictures: list[Image.Image]) -> float:
    """Fraction of right answers about these pictures."""
    given = [(picture, one.dialogue) for picture, one in zip(pictures, asked, strict=True)]
    said = answers(model, processor, given)
    return sum(is_right(one.dialogue, text) for one, text in zip(asked, said, strict=True)) / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("minigpt4_serve/weights/tiny"))
    parser.add_argument("--each", type=int, default=130, help="questions of each kind")
    given = parser.parse_args()
    model, processor = load(given.folder)
    by_kind = {kind: fresh(kind, given.each) for kind in KINDS_OF_QUESTION}
    drawn = {kind: [draw(one.scene) for one in asked] for kind, asked in by_kind.items()}
    print("| kind | exact | questions |\n|---|---|---|")
    for row, kinds in ROWS.items():
        right = [share(model, processor, by_kind[kind], drawn[kind]) for kind in kinds]
        print(f"| {row} | {sum(right) / len(right):.1%} | {given.each * len(kinds)} |", flush=True)
    for name, patterns in (("new wordings", NEW), ("asked by a stranger", STRANGERS)):
        shares = {}
        for kind in KINDS_OF_QUESTION:
            asked = fresh(kind, given.each // 3, patterns)
            shares[kind] = share(model, processor, asked, [draw(one.scene) for one in asked])
        mean = sum(shares.values()) / len(shares)
        print(f"| {name}, mean | {mean:.1%} | {len(shares) * (given.each // 3)} |")
        print(f"| {name}, refusals and greetings | {(shares['refusal'] + shares['greeting']) / 2:.1%} | |")
        print(f"{name} by kind:", " ".join(f"{kind} {value:.2f}" for kind, value in shares.items()), flush=True)
    others = [share(model, processor, by_kind[k], [redraw(one.scene) for one in by_kind[k]]) for k in FACTUAL]
    print(f"| drawn by other hands, factual kinds | {sum(others) / len(others):.1%} | {given.each * len(FACTUAL)} |")
    wrong = [share(model, processor, by_kind[k][:40], drawn[k][1:41]) for k in FACTUAL]
    print(f"| wrong picture, factual kinds | {sum(wrong) / len(wrong):.1%} | {40 * len(FACTUAL)} |")
    blank = [Image.new("RGB", (224, 224), "white")] * 40
    blind = [share(model, processor, by_kind[k][:40], blank) for k in FACTUAL]
    print(f"| blank picture, factual kinds | {sum(blind) / len(blind):.1%} | {40 * len(FACTUAL)} |")


if __name__ == "__main__":
    main()
