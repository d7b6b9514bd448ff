"""What is asked: one question about one image, and what its right answer is."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4_serve.errors import InvalidRequest

__all__ = ["Question", "check_questions", "fingerprint"]

_MAX_NAMED = 3


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique in its task.
        image: its file.
        prompt: the text that is sent after the image.
        truth: what the task's score compares answers with, as JSON values.
        split: the part of the task that gets figures of its own; empty if there is only one.
        history: earlier questions and answers of the same chat, oldest first; the image precedes the first of them.
    """

    id: str
    image: Path
    prompt: str
    truth: Any
    split: str = ""
    history: tuple[tuple[str, str], ...] = ()

    @property
    def group(self) -> str:
        """Questions about one image depend on each other: intervals resample them together."""
        return self.image.name if self.image.name != "image.png" else self.image.parent.name


def check_questions(questions: Sequence[Question]) -> None:
    """Raise unless there are questions with distinct ids, and every image exists.

    Raises:
        InvalidRequest: what is wrong, and with which file.
    """
    if not questions:
        raise InvalidRequest("The data folder holds no questions for this task.")
    if len({question.id for question in questions}) < len(questions):
        raise InvalidRequest("Two questions of the data folder have the same id.")
    missing = sorted({question.image for question in questions if not question.image.is_file()})
    if missing:
        named = ", ".join(str(path) for path in missing[:_MAX_NAMED])
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise InvalidRequest(f"Images are missing: {named}{more}. --images names the folder that holds them.")


def fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 of ids, images' names and prompts: equal for runs that ask the same."""
    digest = hashlib.sha256()
    for question in questions:
        asked = [question.id, question.image.name, question.prompt, question.history]
        digest.update(json.dumps(asked).encode() + b"\n")
    return digest.hexdigest()
