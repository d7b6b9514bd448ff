"""Write the embedded model's evaluation set as a data folder of ``minigpt4 evaluate scenes``.

``python -m tools.tiny.write_questions FOLDER [--each N]`` writes ``questions.jsonl`` and ``images/``: the questions
that ``tools.tiny.evaluate`` asks in the wordings of training, about the same scenes.
"""

import argparse
import json
from pathlib import Path

from tools.tiny.evaluate import evaluation_set
from tools.tiny.questions import KINDS_OF_QUESTION
from tools.tiny.world import draw

__all__ = ["write_questions"]


def write_questions(folder: Path, each: int) -> int:
    """Write ``each`` questions of every kind, and return how many there are in all."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for kind in KINDS_OF_QUESTION:
        for number, question in enumerate(evaluation_set(kind, each)):
            name = f"{kind}-{number}.png"
            draw(question.scene).save(images / name)
            turns = question.dialogue.turns
            records.append({"id": f"{kind}/{number}", "image": name, "turns": turns, "kind": kind})
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    return len(records)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny.write_questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=130, help="questions of each kind (130)")
    given = parser.parse_args()
    if given.each < 1:
        parser.error("--each must be at least 1")
    print(f"{write_questions(given.folder, given.each)} questions in {given.folder}")


if __name__ == "__main__":
    main()
